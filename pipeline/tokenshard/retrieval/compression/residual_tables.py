"""Frequency tables of `ofec` residuals: a bank of a few, and which of them each component uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tokenshard.errors import FormatError
from tokenshard.retrieval.compression import residual_kernels
from tokenshard.retrieval.compression.base import Arrays, Streams
from tokenshard.retrieval.compression.checks import stored

BANK = 48
"""Tables of a bank."""
TOTAL = 4096
"""Sum of the frequencies of a table."""
_SYMBOLS = residual_kernels.SYMBOLS


@dataclass(frozen=True)
class ResidualTables:
    """``of`` uint8 [classes, d]: the table of each component of a vector, by the class of its centroid.

    ``frequencies`` uint16 [tables, 16]: sum 4096, that of the escape is at least 1; a symbol of frequency 0 is escaped.
    """

    of: NDArray[np.uint8]
    frequencies: NDArray[np.uint16]

    @classmethod
    def fit(cls, values: NDArray[np.int16], classes: NDArray[np.uint8], num_classes: int) -> Self:
        """Tables for quantized residuals [N, d] of vectors whose centroids have these classes [N].

        Components are sorted by the share of zeros, and neighbours share a table of the bank.
        """
        dimensions = values.shape[1]
        symbols = np.minimum(np.where(values > 0, 2 * values - 1, -2 * values), residual_kernels.ESCAPE)
        counts = np.zeros((num_classes, dimensions, _SYMBOLS), np.int64)
        for number in range(num_classes):
            own = symbols[classes == number] + _SYMBOLS * np.arange(dimensions)
            counts[number] = np.bincount(own.reshape(-1), minlength=dimensions * _SYMBOLS).reshape(dimensions, -1)
        flat = counts.reshape(-1, _SYMBOLS)
        seen = np.maximum(flat.sum(1), 1)
        order = np.argsort((seen - flat[:, 0]) / seen, kind="stable")
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order)) * min(BANK, len(order)) // len(order)
        bank = np.zeros((min(BANK, len(order)), _SYMBOLS), np.int64)
        np.add.at(bank, place, flat)
        return cls(place.astype(np.uint8).reshape(num_classes, dimensions), np.array([_table(row) for row in bank]))

    def encode(self, values: NDArray[np.int16], classes: NDArray[np.uint8], offsets: NDArray[np.int64]) -> Streams:
        """One stream a page of residuals [N, d]."""
        lengths = np.zeros(len(offsets) - 1, np.int64)
        largest = int(np.diff(offsets).max(initial=0)) * values.shape[1]
        words = np.empty(2 * values.size + 3 * len(lengths), np.uint16)
        scratch = np.empty(2 * largest + 3, np.uint16)
        used = residual_kernels.encode(
            values, classes, offsets, self.of, self._starts(), self.frequencies, scratch, words, lengths
        )
        data = words[:used].astype("<u2").view(np.uint8)
        return Streams(data, np.concatenate([[0], np.cumsum(2 * lengths)]))

    def decode(
        self, stream: Streams, classes: NDArray[np.uint8], offsets: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[Any], NDArray[Any]]:
        """What is not zero: (starts [N + 1], dims, values). Raises FormatError where a stream is damaged."""
        if len(stream) != len(offsets) - 1 or (stream.offsets % 2).any():
            raise FormatError("residual streams do not fit their pages; the shard is damaged")
        words = np.frombuffer(stream.data.tobytes(), "<u2").astype(np.uint16, copy=False)
        counts = np.empty(len(classes), np.int64)
        damaged = np.zeros(len(stream), np.bool_)
        dimensions = self.of.shape[1]
        room = min(8 * len(words) + 64, dimensions * len(classes))
        while True:
            dims = np.empty(room, np.uint8 if dimensions <= 256 else np.uint16)
            values = np.empty(room, np.int16)
            used = residual_kernels.decode(
                words, stream.offsets // 2, classes, offsets, self.of, self._starts(), self.frequencies, counts, dims,
                values, damaged,
            )  # fmt: skip
            if damaged.any():
                raise FormatError(f"the residual stream of page {int(damaged.argmax())} is damaged; restore the shard")
            if used <= room:
                break
            room = used
        dims, values = dims[:used].copy(), values[:used]
        small = used == 0 or int(np.abs(values).max()) < 128
        return np.concatenate([[0], np.cumsum(counts)]), dims, values.astype(np.int8 if small else np.int16)

    def _starts(self) -> NDArray[np.uint16]:
        return (np.cumsum(self.frequencies, 1, dtype=np.int64) - self.frequencies).astype(np.uint16)

    def arrays(self) -> Arrays:
        return {"tables": self.of, "frequencies": self.frequencies}

    @classmethod
    def from_arrays(cls, arrays: Arrays, dimensions: int) -> Self:
        of = stored(arrays, "tables", np.uint8, (None, dimensions))
        frequencies = stored(arrays, "frequencies", np.uint16, (None, _SYMBOLS))
        if of.max(initial=0) >= len(frequencies):
            raise FormatError("codebook: a component without a table; restore the file")
        if (frequencies.sum(1, dtype=np.int64) != TOTAL).any() or (frequencies[:, residual_kernels.ESCAPE] < 1).any():
            raise FormatError("codebook: frequencies that are no table; restore the file")
        return cls(of, frequencies)


def _table(counts: NDArray[np.int64]) -> NDArray[np.uint16]:
    """Frequencies near these counts, that sum to 4096; the escape has one in any case."""
    counts = counts.astype(np.float64)
    counts[-1] += 0.5
    wanted = counts * TOTAL / counts.sum()
    frequencies = np.where(counts > 0, np.maximum(np.floor(wanted), wanted >= 0.25), 0).astype(np.int64)
    frequencies[-1] = max(frequencies[-1], 1)
    frequencies[np.argmax(frequencies)] += TOTAL - frequencies.sum()
    return frequencies.astype(np.uint16)
