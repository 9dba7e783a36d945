"""How a codebook is used: how often each code occurs, and in which samples most. Reports of parts can be merged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Place(NamedTuple):
    """A sample in which a code occurs."""

    sample: str
    times: int


@dataclass(frozen=True)
class CodeUse:
    """Use of the codes of one level in some samples."""

    counts: NDArray[np.int64]
    """[codes]: how often each occurs"""
    top: tuple[tuple[Place, ...], ...]
    """[codes]: the samples in which it occurs most, falling; equal counts by the key of the sample"""
    most: int
    """samples kept of each code"""

    @classmethod
    def of(cls, samples: Sequence[tuple[str, NDArray[Any]]], alphabet: int, most: int = 0) -> CodeUse:
        """Of samples: keys, which are unique, and ids of any shape below ``alphabet``."""
        counts = np.zeros(alphabet, np.int64)
        top: list[list[Place]] = [[] for _ in range(alphabet)]
        for key, ids in samples:
            own = np.bincount(ids.ravel(), minlength=alphabet)
            counts += own
            for code in np.flatnonzero(own) if most else ():
                top[code].append(Place(key, int(own[code])))
        return cls(counts, tuple(_first(places, most) for places in top), most)

    def merged(self, other: CodeUse) -> CodeUse:
        """The report of the samples of both, which have none in common."""
        most = min(self.most, other.most)
        pairs = zip(self.top, other.top, strict=True)
        return CodeUse(self.counts + other.counts, tuple(_first((*a, *b), most) for a, b in pairs), most)

    @property
    def usage(self) -> float:
        """Share of the codes that occur; needs some 20 ids a code to mean anything."""
        return float(np.count_nonzero(self.counts) / len(self.counts))

    @property
    def entropy(self) -> float:
        """Bits an id of the distribution of codes, without context (Shannon 1948)."""
        counts = self.counts[self.counts > 0]
        share = counts / max(1, counts.sum())
        return float(-(share * np.log2(share)).sum())

    @property
    def perplexity(self) -> float:
        """2 to the entropy: as many equally frequent codes would have it."""
        return float(2**self.entropy)

    def rows(self, level: int) -> Iterator[dict[str, Any]]:
        """One row a code, for a table: level, code, count, and the top samples as `key:count` after spaces."""
        for code, (count, places) in enumerate(zip(self.counts.tolist(), self.top, strict=True)):
            shown = " ".join(f"{place.sample}:{place.times}" for place in places)
            yield {"level": level, "code": code, "count": count, "samples": shown}


def _first(places: Sequence[Place], most: int) -> tuple[Place, ...]:
    return tuple(sorted(places, key=lambda place: (-place.times, place.sample))[:most])


def conditional_entropy(grids: Sequence[NDArray[Any]], axis: int) -> float:
    """Bits an id of ids [rows, columns] given the neighbour before it along ``axis`` (0: above, 1: to the left).

    From the counts of pairs in these very grids, so a lower bound for a coder that knows that neighbour only, and too
    low by far where there are fewer ids than pairs of codes. 0 without pairs.
    """
    before = [grid[:-1] if axis == 0 else grid[:, :-1] for grid in grids]
    after = [grid[1:] if axis == 0 else grid[:, 1:] for grid in grids]
    a, b = (np.concatenate([part.ravel() for part in parts]).astype(np.int64) for parts in (before, after))
    if not len(a):
        return 0.0
    pairs = np.unique(a * (int(b.max()) + 1) + b, return_counts=True)[1]
    alone = np.unique(a, return_counts=True)[1]
    return float((_log_sum(alone) - _log_sum(pairs)) / len(a))


def _log_sum(counts: NDArray[np.int64]) -> float:
    return float((counts * np.log2(counts)).sum())
