"""Fields of grids for training: read once into memory, cut and turned at random, split on a lattice of patches.

Which crops a step gets is a pure function of (seed, step), as for images. A crop begins a patch wherever it lies, so
that the network sees all places of the lattice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenshard.errors import SpecError
from tokenshard.grids.normalise import physical
from tokenshard.sources.grids.source import open_grid_source
from tokenshard.sources.grids.tiles import GridTile
from tokenshard.sources.images.decoded import decoded_samples
from tokenshard.spec.grids import GridSourceSpec
from tokenshard.spec.train import TrainingGridsSpec, TrainingImagesSpec
from tokenshard.tokenizers.grid_fit import fit_surface, floor_units, ids_of_means, own_step
from tokenshard.tokenizers.grid_network import GAIN, Frame, Planes, planes_of
from tokenshard.tokenizers.grid_split import rest_of
from tokenshard.tokenizers.lapped import UNIT
from tokenshard.training.images import apart, beyond_memory

TILE = 512
"""Cells of a side of the fields that are held."""
LARGEST_SURFACE = 2048
"""Weights of the surface are whole numbers up to this, which float16 holds."""


class FieldBatch(NamedTuple):
    """Crops as :class:`~tokenshard.tokenizers.grid_network.Planes`, with what the loss needs."""

    cells: Tensor
    """float32 [B, PLANES, h, w]"""
    frame: Tensor
    """float32 [B, FRAME, rows, columns]"""
    scale: Tensor
    """float32 [B, 1, h, w]: what the decoder draws in, in the mean scale of the pool"""
    rest: Tensor
    """float32 [B, 1, h, w]: what it should draw, in the same"""

    @property
    def valid(self) -> Tensor:
        """float32 [B, 1, h, w]: 1 where a cell has a value."""
        return self.cells[:, 1:2]

    @property
    def used(self) -> Tensor:
        """bool [B, rows, columns]: patches that have shapes."""
        return self.depth > 0

    @property
    def depth(self) -> Tensor:
        """int64 [B, rows, columns]: the gain of a patch, which is how many shapes it may have."""
        return (4 * self.frame[:, GAIN]).round().long()


@dataclass(frozen=True)
class Lattice:
    """What splits fields: side of a patch, frame, and surface of :mod:`~tokenshard.tokenizers.lapped`."""

    side: int
    frame: Frame
    surface: NDArray[np.int32]


class FieldPool:
    """Fields float64 [height, width] in the unit of their grid (NaN: no value)."""

    def __init__(
        self,
        fields: list[NDArray[np.float64]],
        lattice: Lattice,
        device: str | torch.device = "cpu",
        scale: float | None = None,
    ) -> None:
        self.fields, self.lattice, self._device = fields, lattice, torch.device(device)
        sizes = np.array([np.isfinite(field).sum() for field in fields], np.float64)
        self._shares = np.cumsum(sizes / sizes.sum())
        self.scale = scale or float(np.mean([self._planes(field).scale.mean() for field in fields]))
        """the mean scale of the decoder, 1 / 64 steps; found where it is not given"""

    def __len__(self) -> int:
        return len(self.fields)

    def to(self, device: str | torch.device) -> FieldPool:
        """The same pool, which gives its crops to a device."""
        return FieldPool(self.fields, self.lattice, device, self.scale)

    def checksum(self) -> int:
        """A number that differs where fields do."""
        return int(sum(float(np.nansum(np.abs(field))) for field in self.fields)) % (1 << 52)

    def draw(self, count: int, side: int, seed: int, step: int, part: slice = slice(None)) -> FieldBatch:
        """Those of ``part`` of ``count`` random crops of ``side`` cells, flipped and transposed at random."""
        draw = np.random.Generator(np.random.Philox(key=[seed, step]))
        chosen = np.minimum(np.searchsorted(self._shares, draw.random(count)), len(self) - 1)
        places, turns = draw.random((count, 2)), draw.integers(0, 2, (count, 3)).astype(bool)
        crops = [self._crop(*one, side) for one in zip(chosen[part], places[part], turns[part], strict=True)]
        return self.batch(crops)

    def centres(self, side: int, most: int) -> list[NDArray[np.float64]]:
        """Windows in the middle of at most ``most`` fields, spread evenly."""
        chosen = np.linspace(0, len(self) - 1, min(most, len(self))).round().astype(np.int64)
        return [self._crop(number, np.full(2, 0.5), np.zeros(3, bool), side) for number in chosen.tolist()]

    def batch(self, crops: list[NDArray[np.float64]]) -> FieldBatch:
        """Fields of one size as a batch on the device."""
        planes = [self._planes(crop) for crop in crops]
        cells, frame, scale, rest = (np.stack(part) for part in zip(*planes, strict=True))
        arrays = cells, frame, scale[:, None] / self.scale, rest[:, None] / self.scale
        return FieldBatch(*(torch.from_numpy(array.astype(np.float32)).to(self._device) for array in arrays))

    def _planes(self, field: NDArray[np.float64]) -> Planes:
        found = rest_of(field / self.lattice.frame.step, self._patch, self.lattice.surface, self.lattice.frame.floor)
        return planes_of(found, self._patch, self.lattice.frame.floor)

    @property
    def _patch(self) -> tuple[int, int]:
        return self.lattice.side, self.lattice.side

    @property
    def metres(self) -> float:
        """Of one in the numbers of the loss, in the unit of the grid."""
        return self.scale / UNIT * self.lattice.frame.step

    def _crop(
        self, number: int, place: NDArray[np.float64], turns: NDArray[np.bool_], side: int
    ) -> NDArray[np.float64]:
        field = self.fields[number]
        top, left = (
            int(share * max(1, size - side + 1)) for share, size in zip(place.tolist(), field.shape, strict=True)
        )
        found = np.full((side, side), np.nan)
        part = field[top : top + side, left : left + side]
        found[: part.shape[0], : part.shape[1]] = part
        for axis in (0, 1):
            found = np.flip(found, axis) if turns[axis] else found
        return found.T if turns[2] else found


def training_fields(
    spec: TrainingImagesSpec, side: int, seed: int, storage: Mapping[str, Any], say: Callable[[str], None]
) -> tuple[FieldPool, FieldPool]:
    """Fields to train on in patches of ``side`` cells, and those held out, spread evenly over all.

    Raises SpecError where there are too few.
    """
    grids = spec.grids or TrainingGridsSpec()
    fields = list(_read(spec, grids, storage, say))
    if len(fields) < 2:
        raise SpecError(
            f"{spec.path}: {len(fields)} tiles of {TILE} x {TILE} cells with values are too few; what is held out must "
            "be another one"
        )
    learned, held_out = apart(fields, spec.held_out)
    step = grids.step or own_step(learned, (side, side))
    units = floor_units(step, grids.floor)
    surface, widest = fit_surface(learned, seed, (side, side), step, units)
    frame = Frame(step=step, floor=units, means=ids_of_means(widest))
    lattice = Lattice(side, frame, np.clip(surface, -LARGEST_SURFACE, LARGEST_SURFACE))
    return FieldPool(learned, lattice), FieldPool(held_out, lattice)


def _read(
    spec: TrainingImagesSpec, grids: TrainingGridsSpec, storage: Mapping[str, Any], say: Callable[[str], None]
) -> Iterable[NDArray[np.float64]]:
    held = rejected = left_out = 0
    for path in (spec.path, *spec.also):
        source = open_grid_source(
            GridSourceSpec(path=path, variable=grids.variable, tile=TILE, levels=(grids.level,)), storage
        )
        for sample in decoded_samples(source, most=spec.images, threads=2):
            if not isinstance(sample, GridTile):
                rejected += 1
                continue
            values = physical(sample.core, sample.grid.elevation)
            if not sample.core_valid.any():
                continue
            if held + values.nbytes > spec.memory:
                left_out += 1
                continue
            held += values.nbytes
            yield np.where(sample.core_valid, values, np.nan)
    if rejected:
        say(f"{rejected:,} tiles could not be read and are left out")
    if left_out:
        say(beyond_memory(left_out, "tiles", held))
