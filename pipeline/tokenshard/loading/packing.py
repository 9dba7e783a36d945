"""Which samples share a sequence: best-fit decreasing over the samples of a pool, as a pure function of their lengths.

Source: Johnson, "Near-optimal bin packing algorithms" (1973); used for training sequences by Ding et al., "Fewer
truncations improve language modeling" (ICML 2024).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenshard.compiled import kernel as compiled

Longs = NDArray[np.int64]
_kernel: Callable[[Callable[..., Any]], Callable[..., Any]] = compiled()


@dataclass(frozen=True)
class Packed:
    """Pieces of samples, in the order of the sequences (bins) they lie in; int64 arrays, one element a piece."""

    bins: int
    bin: Longs
    sample: Longs
    """number in the pool"""
    start: Longs
    length: Longs
    """part of the sample"""

    def only(self, chosen: NDArray[np.bool_]) -> Packed:
        """The pieces that are marked."""
        return Packed(self.bins, *(array[chosen] for array in (self.bin, self.sample, self.start, self.length)))


def pack(lengths: Longs, capacity: int, order: np.random.Generator) -> Packed:
    """Samples of these lengths in bins of ``capacity``; longer ones are cut, so that nothing is lost.

    ``order`` shuffles the bins; in a bin, samples are in the order they were given in.
    """
    full, rest = np.divmod(lengths, capacity)
    cut = np.repeat(np.arange(len(lengths)), full)  # pieces that fill a bin
    nth = np.arange(len(cut)) - np.repeat(np.cumsum(full) - full, full)
    loose = np.flatnonzero(rest)
    loose = loose[np.argsort(-rest[loose], kind="stable")]
    placed = np.empty(len(loose), np.int64)
    count = best_fit(rest[loose], capacity, placed) + len(cut)
    numbers = order.permutation(count)
    bins = numbers[np.concatenate([np.arange(len(cut)), placed + len(cut)])]
    sample = np.concatenate([cut, loose])
    start = np.concatenate([nth * capacity, full[loose] * capacity])
    length = np.concatenate([np.full(len(cut), capacity, np.int64), rest[loose]])
    sort = np.lexsort((sample, bins))
    return Packed(count, bins[sort], sample[sort], start[sort], length[sort])


@_kernel
def best_fit(lengths: Any, capacity: int, placed: Any) -> int:
    """Puts each item into the fullest bin that holds it; ``placed[i]``: its bin. Number of bins.

    ``lengths``: 0 < length <= capacity, falling.
    """
    newest = np.full(capacity + 1, -1, np.int64)  # by room left: the last bin that came to it, and the one before
    before = np.empty(lengths.shape[0], np.int64)
    count = 0
    for item in range(lengths.shape[0]):
        room = lengths[item]
        while room < capacity and newest[room] < 0:
            room += 1
        if room >= capacity:
            chosen, room = count, capacity
            count += 1
        else:
            chosen = newest[room]
            newest[room] = before[chosen]
        left = room - lengths[item]
        before[chosen] = newest[left]
        newest[left] = chosen
        placed[item] = chosen
    return count
