"""A set of sample keys that holds eight bytes a key: finds keys that occur twice in a dataset of any size."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import xxhash
from numpy.typing import NDArray


class KeySet:
    """Remembers the 64-bit XXH3 hashes of keys as a few sorted arrays (each at least twice as long as the next).

    Two different keys are taken for one with probability n² / 2^65: 3 in 10,000 for a hundred million keys.
    """

    def __init__(self) -> None:
        self._runs: list[NDArray[np.uint64]] = []

    def __len__(self) -> int:
        """Different keys seen so far."""
        return sum(len(run) for run in self._runs)

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return sum(run.nbytes for run in self._runs)

    def add(self, keys: Iterable[str]) -> NDArray[np.bool_]:
        """Adds the keys; True for each that was there before, in an earlier call or earlier in this one."""
        digest = xxhash.xxh3_64_intdigest
        hashes = np.fromiter((digest(key.encode(errors="surrogateescape")) for key in keys), np.uint64)
        fresh, first = np.unique(hashes, return_index=True)
        seen = np.ones(len(hashes), np.bool_)
        seen[first] = self._contains(fresh)
        run = fresh[~seen[first]]
        while len(run) and self._runs and len(self._runs[-1]) < 2 * len(run):
            run = np.concatenate([self._runs.pop(), run])
            run.sort(kind="stable")  # merges the two sorted halves
        if len(run):
            self._runs.append(run)
        return seen

    def _contains(self, hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
        found = np.zeros(len(hashes), np.bool_)
        for run in self._runs:
            place = np.minimum(np.searchsorted(run, hashes), len(run) - 1)
            found |= run[place] == hashes
        return found
