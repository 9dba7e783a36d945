"""What tokens of grids cost and keep: quality, seams, and cells coded together with them.

    python benchmarks/grid_tokens.py --data FOLDER

Tokenizers `grid` are fitted on the Gulf of Guinea, the Arabian Sea, the S Atlantic and Middle America west, and tested
on the South China Sea and Middle America east. Bits are those of streams: ids by the `context` codec with tables fitted
on the training regions (they come with a tokenizer), tiles of 256 x 256 cells, 8 bytes a tile for its mean. SZ3 codes
the whole grid in the same process. The exit code is 1 if a promise is missed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gridding.loading import DATASETS, load
from gridding.promises import kept
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

from tokenshard.codecs.base import id_dtype
from tokenshard.codecs.context import ContextCodec
from tokenshard.codecs.fit import Earlier
from tokenshard.grids.bounded import decode_tile, encode_tile
from tokenshard.report.grid_peers import sz3
from tokenshard.tokenizers.grid import GridTokenizer
from tokenshard.tokenizers.grid_codes import Codes, LatticeTokenizer
from tokenshard.tokenizers.lapped import RING

Field = NDArray[np.float64]
Ids = NDArray[np.uint16]
TILE, PATCH = 256, 8
NEAR = 16
MEAN_BYTES = 8
TRAINED_ON = ("Gulf of Guinea", "Arabian Sea", "S Atlantic", "Middle America west")
TESTED_ON = ("South China Sea", "Middle America east")
MANY_IDS = 100_000_000
"""Ids that share the tables: those of all datasets."""


@dataclass(frozen=True)
class Rate:
    """A tokenizer, and what is wanted of it on the South China Sea (None: nothing)."""

    name: str
    options: dict[str, float | int]
    bits: float
    mae: float
    ssim: float | None


RATES = (
    Rate("low", {"k": 256, "codebooks": 2, "step": 48.0, "floor": 120.0}, 0.14, 47, 0.93),
    Rate("high", {"k": 256, "codebooks": 5, "step": 16.0, "floor": 12.8}, 0.50, 21, None),
)


def regions(data: Path) -> dict[str, Field]:
    names = ("Gulf of Guinea", "Arabian Sea", "S Atlantic", "South China Sea", "ETOPO1", "global 10'")
    grids = {name: load(data, DATASETS[name])[0].astype(np.float64) for name in names}
    whole = grids.pop("ETOPO1")
    return grids | {"Middle America west": whole[:, :336], "Middle America east": whole[:, 672:]}


def tiles(height: int, width: int) -> Iterator[tuple[slice, slice]]:
    for top in range(0, height, TILE):
        for left in range(0, width, TILE):
            yield slice(top, min(height, top + TILE)), slice(left, min(width, left + TILE))


def tile_ids(tokenizer: LatticeTokenizer, z: Field) -> list[tuple[Ids, float]]:
    """Ids of each tile, and its mean in steps."""
    codes = tokenizer.codes(z / tokenizer.step)
    found = []
    for rows, columns in tiles(*z.shape):
        part = codes.part(tuple(slice(span.start // PATCH, -(-span.stop // PATCH)) for span in (rows, columns)))  # type: ignore[arg-type]
        mean = float(np.rint(z[rows, columns].mean() / tokenizer.step))
        found.append((tokenizer.ids(Codes(part.there, part.means - mean, part.gains, part.shapes)), mean))
    return found


class Tables:
    """Codecs of all levels, fitted on the training regions."""

    def __init__(self, tokenizer: LatticeTokenizer, ids: list[Ids]) -> None:
        self.codecs, earlier = [], None
        for level, alphabet in enumerate(tokenizer.spec.levels):
            flat, grids = _flat(ids, level, alphabet)
            self.codecs.append(ContextCodec.fit(flat, grids, alphabet, earlier=earlier, expected_ids=MANY_IDS))
            earlier = Earlier(flat, alphabet)
        self.alphabets = tokenizer.spec.levels

    def size(self, ids: list[Ids]) -> int:
        """Bytes of the streams."""
        total, earlier = 0, None
        for level, (codec, alphabet) in enumerate(zip(self.codecs, self.alphabets, strict=True)):
            flat, grids = _flat(ids, level, alphabet)
            total += len(codec.encode(flat, grids, earlier)[0])
            earlier = flat
        return total


def _flat(ids: list[Ids], level: int, alphabet: int) -> tuple[NDArray[np.uint16], NDArray[np.int32]]:
    flat = np.concatenate([one[level].reshape(-1) for one in ids]).astype(id_dtype(alphabet))
    return flat, np.array([one.shape[1:] for one in ids], np.int32)


def decoded(tokenizer: LatticeTokenizer, z: Field) -> Field:
    """What the tokens of a grid say, each tile with its neighbours: as of the whole."""
    cells = tokenizer.field(tokenizer.codes(z / tokenizer.step))
    return cells[: z.shape[0], : z.shape[1]] * tokenizer.step


def jump(error: Field, borders: NDArray[np.bool_]) -> float:
    """How much more an error jumps into columns that are ``borders`` than into others. Column 0: from the last."""
    size = np.abs(error - np.roll(error, 1, axis=1)).mean(axis=0)
    return float(size[borders].mean() / size[~borders][1:].mean())


def seams(tokenizer: LatticeTokenizer, z: Field) -> tuple[float, float]:
    """Jumps at borders of tiles of 64 columns: decoded with the patches around them, and each tile alone."""
    z = z[:, : z.shape[1] // 64 * 64]
    columns = np.arange(z.shape[1])
    borders = (columns % 64 == 0) & (columns > 0)
    alone = np.concatenate([decoded(tokenizer, z[:, left : left + 64]) for left in range(0, z.shape[1], 64)], axis=1)
    return jump(decoded(tokenizer, z) - z, borders), jump(alone - z, borders)


def meridians(tokenizer: GridTokenizer, z: Field) -> NDArray[np.float64]:
    """Jumps into every eighth column of a grid around the earth, against NEAR columns to both sides; the first is the
    180 degree line.

    Where the line lies changes no cell (tests/grids/test_lattice.py turns a grid and compares bits), so these are the
    jumps of a line put there.
    """
    ring = RING * PATCH
    wide = np.pad(z, ((0, 0), (ring, ring)), mode="wrap")
    error = (decoded(tokenizer, wide) - wide)[:, ring:-ring]
    size = np.abs(error - np.roll(error, 1, axis=1)).mean(axis=0)
    beside = np.array([offset for offset in range(-NEAR, NEAR + 1) if offset])
    places = np.arange(0, z.shape[1], PATCH)
    return size[places] / size[(places[:, None] + beside) % z.shape[1]].mean(axis=1)


def dateline(tokenizer: GridTokenizer, z: Field) -> NDArray[np.float64]:
    """Jumps at the 180 degree line with the patches at each of PATCH places along it.

    One column has a relief of its own and errors that fall as they do: patches that begin in other rows give others at
    the same cells.
    """
    return np.array([meridians(tokenizer, z[first:])[0] for first in range(PATCH)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the grids")
    data = parser.parse_args().data
    grids = regions(data)
    promises: list[tuple[str, bool]] = []
    print("| tokens | region | bits a cell | MAE m | RMSE m | largest m | SSIM | codes used | fitted in CPU s |")
    print("|---|---|---|---|---|---|---|---|---|")
    made: dict[str, tuple[GridTokenizer, Tables]] = {}
    for rate in RATES:
        start = time.process_time()
        tokenizer = GridTokenizer.fit([grids[name] for name in TRAINED_ON], 0, **rate.options)
        spent = time.process_time() - start
        learned = [ids for name in TRAINED_ON for ids, _ in tile_ids(tokenizer, grids[name])]
        tables = Tables(tokenizer, learned)
        made[rate.name] = tokenizer, tables
        used = [np.concatenate([one[level].reshape(-1) for one in learned]) for level in range(2, len(learned[0]))]
        use = min(len(np.unique(ids)) / size for ids, size in zip(used, tokenizer.spec.levels[2:], strict=True))
        for name in TESTED_ON:
            z = grids[name]
            ids = tile_ids(tokenizer, z)
            bits = 8 * (tables.size([one for one, _ in ids]) + MEAN_BYTES * len(ids)) / z.size
            found = decoded(tokenizer, z)
            error = found - z
            mae = float(np.abs(error).mean())
            ssim = float(structural_similarity(z, found, data_range=float(np.ptp(z))))
            print(
                f"| {rate.name} | {name} | {bits:.4f} | {mae:.1f} | {np.sqrt((error**2).mean()):.1f} | "
                f"{np.abs(error).max():.0f} | {ssim:.4f} | {use:.0%} | {spent:.1f} |"
            )
            if name == TESTED_ON[0]:
                wanted = f"{rate.name}: <= {rate.bits} bits, MAE <= {rate.mae} m"
                promises.append((wanted, bits <= rate.bits and mae <= rate.mae))
                promises.append((f"{rate.name}: codes used >= 80 %", use >= 0.8))
                if rate.ssim is not None:
                    promises.append((f"{rate.name}: SSIM >= {rate.ssim}", ssim >= rate.ssim))
    print("\n| jumps of the error at borders of tiles | with the patches around | each tile alone |\n|---|---|---|")
    for rate in RATES:
        tokenizer, _ = made[rate.name]
        lapped, alone = seams(tokenizer, grids[TESTED_ON[0]])
        print(f"| {rate.name}, {TESTED_ON[0]} | {lapped:.3f} | {alone:.3f} |")
        lines, line = (how(tokenizer, grids["global 10'"][:, :2160]) for how in (meridians, dateline))
        print(
            f"| {rate.name}, global 10', the line at each of {len(lines)} meridians | {lines.mean():.3f} (sd "
            f"{lines.std():.3f}) | |\n| {rate.name}, global 10', 180 degrees, patches at {len(line)} places | "
            f"{line.mean():.3f} (sd {line.std():.3f}; as converted {line[0]:.3f}, at most {line.max():.3f}) | |"
        )
        promises.append((f"{rate.name}: seams in {TESTED_ON[0]} <= 1.10", lapped <= 1.10))
        promises.append((f"{rate.name}: seam at 180 degrees, each place <= 1.10", line.max() <= 1.10))
        promises.append((f"{rate.name}: mean of the meridians <= 1.10", lines.mean() <= 1.10))
    print("\n| cells and tokens | bound | cells alone | with tokens: cells | tokens | both | SZ3 | of alone | of SZ3 |")
    print("|---|---|---|---|---|---|---|---|---|")
    tokenizer, tables = made["low"]
    for name in TESTED_ON:
        stored = load(data, DATASETS[name if name in DATASETS else "ETOPO1"])[0]
        stored = stored if name in DATASETS else np.ascontiguousarray(stored[:, 672:])
        ids = tile_ids(tokenizer, stored.astype(np.float64))
        tokens = 8 * (tables.size([one for one, _ in ids]) + MEAN_BYTES * len(ids)) / stored.size
        for most in (5, 25):
            alone = guided = 0
            for (rows, columns), (own, mean) in zip(tiles(*stored.shape), ids, strict=True):
                cells = np.ascontiguousarray(stored[rows, columns])
                guide = (tokenizer.decode(own[None], cells.shape)[0] + mean) * tokenizer.step
                coded = encode_tile(cells, f"abs:{most}", guide=guide)
                back, _ = decode_tile(coded.stream, cells.shape, guide=guide)
                assert np.abs(back.astype(np.float64) - cells).max() <= most * (1 + 1e-6)
                alone += len(encode_tile(cells, f"abs:{most}").stream)
                guided += len(coded.stream)
            peer = 8 * sz3(stored, np.ones(stored.shape, np.bool_), most)[0] / stored.size
            own_bits, with_tokens = 8 * alone / stored.size, 8 * guided / stored.size
            both = with_tokens + tokens
            print(
                f"| {name} | {most} m | {own_bits:.3f} | {with_tokens:.3f} | {tokens:.3f} | {both:.3f} | {peer:.3f} | "
                f"{both / own_bits:.3f} | {both / peer:.3f} |"
            )
            if most == 5:
                promises.append((f"{name}, 5 m: <= 1.08 of cells alone", both <= 1.08 * own_bits))
            promises.append((f"{name}, {most} m: <= SZ3", both <= (1.0 if most == 5 else 1.15) * peer))
    return kept(promises)


if __name__ == "__main__":
    sys.exit(main())
