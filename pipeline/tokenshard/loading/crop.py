"""Crops of token grids: samples of all shapes -> tensors of one shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from tokenshard.codecs.base import Grids, Ids
from tokenshard.errors import SpecError

Place = Literal["random", "centre"]
Numbers = NDArray[np.uint64]


@dataclass(frozen=True)
class Crop:
    """A part of every token grid: ``size`` ids along each axis, at a `random` place or in the `centre`.

    A loader raises SpecError where it does not fit the number of axes, or a sample is smaller.
    """

    size: tuple[int, ...]
    place: Place = "random"
    from_start: bool = False
    """whether it begins where the first axis does: groups of frames can only be decoded from the first on"""

    def check(self, rank: int) -> None:
        """Raises SpecError where it does not fit grids with ``rank`` axes, or ``place`` is neither of the two."""
        if self.place not in get_args(Place):
            raise SpecError(f"a crop is taken at one of {', '.join(get_args(Place))}, not {self.place!r}")
        if len(self.size) != rank or min(self.size) < 1:
            raise SpecError(f"crop={self.size} does not fit token grids with {rank} axes")

    def corners(self, grids: Grids, seed: int, epoch: NDArray[np.int64], sample: NDArray[np.int64]) -> Grids:
        """Where the crop of each sample begins, int32 [n, rank]: a function of seed, epoch and number of the sample.

        ``grids``: int32 [n, rank]; ``epoch`` and ``sample``: int64 [n]. Raises SpecError for grids that are
        smaller than the crop.
        """
        room = grids.astype(np.int64) - np.array(self.size)
        if (room < 0).any():
            small = "x".join(map(str, grids[(room < 0).any(axis=1)][0].tolist()))
            raise SpecError(f"crop={self.size}: there is a sample of {small} ids; leave such samples out with where=")
        if self.from_start:
            room[:, 0] = 0
        if self.place == "centre":
            return cast(Grids, (room // 2).astype(np.int32))
        drawn = _mixed(np.full(len(grids), seed, np.uint64))
        for numbers in (epoch, sample):
            drawn = _mixed(drawn + numbers.astype(np.uint64))
        axes = np.stack([_mixed(drawn + np.uint64(axis)) for axis in range(len(self.size))], axis=1)
        return cast(Grids, (axes % (room + 1).astype(np.uint64)).astype(np.int32))

    def cut(self, ids: Ids, grids: Grids, corners: Grids) -> Ids:
        """The crops of samples that lie back to back in ``ids`` (flat): [n, *size], of its dtype.

        ``grids`` and ``corners``: int32 [n, rank].
        """
        from tokenshard.loading import gather_kernels as kernels

        out = np.empty((len(grids), *self.size), ids.dtype)
        kernels.crop(ids, _three(grids, 1), _three(corners, 0), out.reshape(len(grids), *_padded(self.size)))
        return out


def _padded(size: tuple[int, ...]) -> tuple[int, ...]:
    return (1,) * (3 - len(size)) + size


def _three(values: Grids, fill: int) -> Grids:
    """Grids with three axes: those that are missing come first."""
    missing = np.full((len(values), 3 - values.shape[1]), fill, np.int32)
    return np.ascontiguousarray(np.concatenate([missing, values], axis=1))


def _mixed(values: Numbers) -> Numbers:
    """SplitMix64 (Steele et al., OOPSLA 2014) of each word."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
