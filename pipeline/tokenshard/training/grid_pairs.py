"""Fields of grids at two levels, one twice as fine, as an upscaler learns from them: read once, held in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tokenshard.errors import SpecError
from tokenshard.grids.dataset import GridDataset
from tokenshard.grids.decode import GridDecoder
from tokenshard.grids.georeference import Window
from tokenshard.grids.normalise import physical
from tokenshard.loading.decoding import Batch
from tokenshard.shards.dataset import Dataset
from tokenshard.sources.grids.opened import valid_cells
from tokenshard.spec.upscaling import GridLevelsSpec
from tokenshard.training.models.upscaler import REACH

BLOCK = 512
"""Coarse cells of a side of what is read at a time."""
SAMPLE = 200_000
"""Coarse cells that the linear map is fitted to, at most."""
TRIES = 16
"""Places that are tried for a crop in which every cell has a value."""


@dataclass(frozen=True)
class Pair:
    """A field at two levels, in metres (or the unit of a grid that has no length)."""

    coarse: NDArray[np.float32]
    """[h, w]; cells without a value have that of the nearest cell"""
    fine: NDArray[np.float32]
    """[2 h, 2 w]"""
    there: NDArray[np.bool_]
    """[2 h, 2 w]: cells of the finer level that have a value, and under a coarse one that has one"""


def read_pairs(dataset: Dataset, spec: GridLevelsSpec) -> list[Pair]:
    """Blocks of all grids that have both levels, spread evenly where they are more than may be held.

    Raises SpecError where there are none.
    """
    grids = GridDataset(dataset)
    coarser = 2 * spec.level
    named = [name for name in grids.grids if {spec.level, coarser} <= set(grids.levels(name))]
    if not named:
        raise SpecError(
            f"{dataset.store.root}: no grid with levels {spec.level} and {coarser}; convert with --levels "
            f"{spec.level},{coarser}"
        )
    if str(dataset.manifest.preprocess.get("bound")) == "none":
        raise SpecError(f"{dataset.store.root}: has only tokens; convert with a --bound, to have cells to learn from")
    places = [(name, block) for name in named for block in _blocks(grids, name, spec.level)]
    most = max(1, spec.cells // (4 * BLOCK * BLOCK))
    chosen = np.unique(np.linspace(0, len(places) - 1, min(most, len(places))).round().astype(int))
    pairs = [_read(grids, places[number][0], places[number][1], spec) for number in chosen.tolist()]
    found = [pair for pair in pairs if pair is not None]
    if not found:
        raise SpecError(f"{dataset.store.root}: no cell of levels {spec.level} and {coarser} has a value")
    return found


def _blocks(grids: GridDataset, name: str, level: int) -> Iterator[Window]:
    """Windows of the coarser level whose cells lie above whole ones of the finer."""
    fine = grids.georeference(name, level).whole
    for rows in _cut(fine.rows.stop // 2):
        for columns in _cut(fine.columns.stop // 2):
            yield Window(rows, columns)


def _cut(length: int) -> Iterator[slice]:
    """Equal spans of at most BLOCK."""
    count = -(-length // BLOCK)
    for number in range(count):
        yield slice(number * length // count, (number + 1) * length // count)


def _read(grids: GridDataset, name: str, block: Window, spec: GridLevelsSpec) -> Pair | None:
    twice = Window(*(slice(2 * span.start, 2 * span.stop) for span in (block.rows, block.columns)))
    coarse, seen = _values(GridDecoder(grids, name, 2 * spec.level), block, spec.input)
    fine, there = _values(GridDecoder(grids, name, spec.level), twice, "elevation")
    there &= np.repeat(np.repeat(seen, 2, 0), 2, 1)
    if not there.any():
        return None
    return Pair(filled(coarse, seen), np.where(there, fine, 0).astype(np.float32), there)


def _values(decoder: GridDecoder, window: Window, band: str) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """A band in metres, and which cells have a value."""
    (values,) = decoder.read(window, decoder.bands([band]))
    layer = decoder.entry.elevation
    there = ~np.isnan(values) if band == "tokens" else valid_cells(values, layer)
    found = values.astype(np.float64) if band == "tokens" else physical(values, layer)
    return found * (decoder.entry.metres or 1.0), there


def filled(values: NDArray[np.float64], there: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Values with those of the nearest cell where there is none."""
    if not there.all():
        from scipy import ndimage

        rows, columns = ndimage.distance_transform_edt(~there, return_distances=False, return_indices=True)
        values = values[rows, columns]
    return values.astype(np.float32)


def least_squares(pairs: list[Pair], seed: int) -> NDArray[np.float64]:
    """The linear map [4, side, side] from the cells around a cell, less its own value, to its four finer cells.

    Places count in inverse proportion to their relief (at least the median), so that rough ones do not decide alone.
    """
    side, inputs, outputs = 2 * REACH + 1, [], []
    draw = np.random.default_rng(seed)
    total = sum(pair.coarse.size for pair in pairs)
    for pair in pairs:
        height, width = pair.coarse.shape
        padded = np.pad(pair.coarse.astype(np.float64), REACH, mode="edge")
        around = np.lib.stride_tricks.sliding_window_view(padded, (side, side)).reshape(-1, side * side)
        finer = pair.fine.reshape(height, 2, width, 2).swapaxes(1, 2).reshape(-1, 4)
        usable = np.flatnonzero(pair.there.reshape(height, 2, width, 2).all(axis=(1, 3)))
        count = min(len(usable), -(-SAMPLE * pair.coarse.size // total))
        chosen = np.sort(draw.choice(usable, count, replace=False))
        own = pair.coarse.reshape(-1, 1)[chosen].astype(np.float64)
        inputs.append(around[chosen] - own)
        outputs.append(finer[chosen] - own)
    left, right = np.concatenate(inputs), np.concatenate(outputs)
    size = np.abs(right).mean(axis=1, keepdims=True)
    weight = 1 / np.maximum(size, max(float(np.median(size)), 1e-9))
    gram = (left * weight).T @ left
    ridge = 1e-6 * np.trace(gram) / len(gram) + 1e-12
    found = np.linalg.solve(gram + ridge * np.eye(len(gram)), (left * weight).T @ right)
    found[side * side // 2] -= found.sum(axis=0)  # so that weights add up to zero
    return found.T.reshape(4, side, side)


class CropLoader:
    """Random crops of pairs, flipped and transposed at random: a function of seed and position alone.

    Pairs smaller than a crop are left out; where all are, crops are as large as the largest allows.
    """

    def __init__(self, pairs: list[Pair], crop: int, batch: int, seed: int, rank: int, world: int) -> None:
        self.crop = min(crop, max(min(pair.coarse.shape) for pair in pairs))
        self.pairs = [pair for pair in pairs if min(pair.coarse.shape) >= self.crop]
        self.seed, self.position = seed, 0
        self.global_batch_size, self._part = batch, slice(rank * (batch // world), (rank + 1) * (batch // world))
        sizes = np.array([pair.coarse.size for pair in self.pairs], np.float64)
        self._shares = np.cumsum(sizes / sizes.sum())

    def epoch_length(self, epoch: int) -> int:
        """Crops that cover the fields once."""
        return int(max(self.global_batch_size, sum(pair.coarse.size for pair in self.pairs) // self.crop**2))

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.position = int(state["position"])

    def __iter__(self) -> Iterator[Batch]:
        while True:
            draw = np.random.Generator(np.random.Philox(key=[self.seed, self.position]))
            cut = [self._one(draw) for _ in range(self.global_batch_size)][self._part]
            self.position += 1
            names = ("coarse", "fine", "there")
            yield {
                name: torch.from_numpy(np.stack([one[number] for one in cut])[:, None])
                for number, name in enumerate(names)
            }

    def _one(self, draw: np.random.Generator) -> list[NDArray[Any]]:
        side = self.crop
        for _ in range(TRIES):
            pair = self.pairs[min(int(np.searchsorted(self._shares, draw.random())), len(self.pairs) - 1)]
            top, left = (int(draw.integers(0, size - side + 1)) for size in pair.coarse.shape)
            place = np.s_[2 * top : 2 * (top + side), 2 * left : 2 * (left + side)]
            if pair.there[place].all():
                break
        found = [pair.coarse[top : top + side, left : left + side], pair.fine[place], pair.there[place]]
        turns = draw.integers(0, 2, 3)
        for axis in (0, 1):
            found = [np.flip(one, axis) if turns[axis] else one for one in found]
        return [np.ascontiguousarray(one.T if turns[2] else one) for one in found]
