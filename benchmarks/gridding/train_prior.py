"""Train the prior of the bounded codec of grids and write it into the package.

    python benchmarks/gridding/train_prior.py --data FOLDER

FOLDER holds `etopo2022_1min_Arabian_Sea.nc`, `etopo5_north_pacific_dateline_packed_km.nc`,
`etopo20_global_wrapcol.cdf`, `BlueTopo_BC25M26L_20221102b.tiff` and `F00788_SR_8m.tif`: grids that
`benchmarks/grids.py` does not measure. Beside them stand made surfaces for what these lack: oversampled ones with
noise, and cells that a resampling has copied.

Sets of predictors are least-squares fits to single tiles, chosen greedily so that the next helps all tiles most. Then
all tiles are coded one after another, in a fixed shuffled order, with a state that is never reset; it is kept, with
counters that still move fast.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loading import DATASETS, load
from tokenshard.grids.bounded.planes import LEVELS, Scan, code
from tokenshard.grids.bounded.predictors import bits_lost, fitted, neighbourhoods
from tokenshard.grids.bounded.prior import FILE, MODES, Prior, State, packed, untrained
from tokenshard.grids.bounded.scan import CAUSAL, CENTRES, KINDS, SIDES, TAPS

SIDE = 256
SETS = 15
REAL = ("Arabian Sea", "North Pacific 5'", "global 20'", "BlueTopo", "F00788")
SHARES = (0.06, 0.25, 1.0, 4.0, 16.0)
"""Slack, as a share of the median error of a simple predictor; 0 is always among them."""
FINENESS = 65
COUNT, CELLS = 4, 16
"""How much counters and ratios of scales count against what a tile shows."""

Tile = tuple[NDArray[np.int64], NDArray[np.bool_], int]
"""Plane, valid cells, slack."""


def surfaces(rng: np.random.Generator) -> Iterator[NDArray[np.float64]]:
    """Fractal surfaces of several roughnesses, smooth ones with noise, and copies of coarse ones."""
    frequency = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE)[None])
    frequency[0, 0] = 1
    for slope in (1.6, 2.0, 2.4, 3.0):
        spectrum = rng.normal(size=frequency.shape) + 1j * rng.normal(size=frequency.shape)
        surface = np.fft.irfft2(spectrum / frequency**slope, s=(SIDE, SIDE))
        surface *= 400 / surface.std()
        yield surface
        yield surface + rng.normal(size=surface.shape) * np.abs(np.diff(surface, axis=0)).mean()
        for factor in (1.6, 2.3, 3.4):
            rows = (np.arange(SIDE) / factor).astype(int)
            yield np.round(surface, 0)[rows][:, rows]


def tiles(data: Path) -> Iterator[Tile]:
    """Tiles of the training grids at all bounds."""
    rng = np.random.default_rng(0)
    grids = [load(data, DATASETS[name]) for name in REAL]
    masked = [(z.astype(np.float64), valid) for z, valid in grids]
    masked += [(surface, np.ones(surface.shape, np.bool_)) for surface in surfaces(rng)]
    for z, valid in masked:
        for y in range(0, z.shape[0], SIDE):
            for x in range(0, z.shape[1], SIDE):
                yield from at_all_bounds(z[y : y + SIDE, x : x + SIDE], valid[y : y + SIDE, x : x + SIDE])


def at_all_bounds(z: NDArray[np.float64], valid: NDArray[np.bool_]) -> Iterator[Tile]:
    """One tile with several slacks, some in fine steps and some on the lattice of whole numbers."""
    if valid.mean() < 0.1:
        return
    filled = np.where(valid, z, np.median(z[valid]))
    error = np.abs(filled[1:, 1:] - filled[:-1, 1:] - filled[1:, :-1] + filled[:-1, :-1])[valid[1:, 1:]]
    typical = max(float(np.median(error)), float(error.mean()) / 8, 1e-9)
    whole = np.round(filled).astype(np.int64)
    if typical > 2:
        yield whole - whole.min(), valid, 0
    else:
        yield np.round((filled - filled.min()) / typical * 8).astype(np.int64), valid, 0
    for share in SHARES:
        most = share * typical
        if most >= 1.5:
            yield whole - whole.min(), valid, int(most)
        if share >= 0.25:
            yield np.round((filled - filled.min()) / (2 * most / FINENESS)).astype(np.int64), valid, FINENESS // 2
        yield np.round((filled - filled.min()) / (2 * most)).astype(np.int64), valid, 0


def chosen_sets(samples: list[Tile]) -> NDArray[np.int64]:
    """``[SETS, KINDS, TAPS]``: fits to single tiles that together serve all."""
    rows, candidates = [], []
    for plane, valid, slack in samples:
        parts = [neighbourhoods(plane, valid, kind, slack, 1500) for kind in range(KINDS)]
        if min(values.size for _, values in parts) >= 8 * TAPS:
            rows.append((parts, slack + 0.5))
            candidates.append(np.stack([fitted(*part, slack + 0.5) for part in parts]))
    share = {CAUSAL: 1.0, CENTRES: 0.25, SIDES: 0.5}
    cost = np.array(
        [
            [
                sum(share[k] * bits_lost(*part, weights[k], noise) for k, part in enumerate(parts))
                for weights in candidates
            ]
            for parts, noise in rows
        ]
    )
    picked: list[int] = []
    least = np.full(len(rows), np.inf)
    for _ in range(SETS):
        picked.append(int(np.argmin(np.minimum(least[:, None], cost).sum(0))))
        least = np.minimum(least, cost[:, picked[-1]])
    return np.rint(np.stack([candidates[i] for i in picked]) * 65536).astype(np.int64)


def trained_state(samples: list[Tile], levels: int, start: Prior, passes: int) -> State:
    """What has adapted after all tiles, made ready to adapt again."""
    state = start.states[MODES[min(levels, 1)]].copy()
    kinds = (CENTRES, SIDES) if levels else (CAUSAL,)
    for _ in range(passes):
        for plane, valid, slack in samples:
            cost = np.zeros(len(start.predictors))
            for kind in kinds:
                part = neighbourhoods(plane, valid, kind, slack, 1500)
                if part[1].size:
                    cost += [bits_lost(*part, weights[kind] / 65536, slack + 0.5) for weights in start.predictors]
            predictors = start.predictors[int(np.argmin(cost))].copy()
            scan = Scan(levels, int(plane[valid].max()), slack, False, predictors)
            code(np.where(valid, plane, 0), valid, scan, state, np.zeros(8, np.uint8), True)
    for counters in state.counters:
        counters[...] = counters >> 10 << 10 | np.minimum(counters & 1023, COUNT)
    factor = np.minimum(1, CELLS / np.maximum(state.ratios[:, 2:], 1))
    state.ratios[...] = np.maximum(np.rint(state.ratios * factor), 1)
    return state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--passes", type=int, default=1)
    options = parser.parse_args()
    samples = list(tiles(options.data))
    order = np.random.default_rng(1).permutation(len(samples))
    samples = [samples[i] for i in order]
    start = untrained()
    start = Prior(np.concatenate([start.predictors, chosen_sets(samples[::3])]), start.states)
    states = {
        mode: trained_state(samples, level, start, options.passes)
        for mode, level in zip(MODES, (0, LEVELS), strict=True)
    }
    np.savez_compressed(FILE, **packed(Prior(start.predictors, states)))
    print(f"{len(samples)} tiles; {FILE}: {FILE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
