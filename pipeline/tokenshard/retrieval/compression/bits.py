"""Sign bits: one a dimension, no codebook and no factor. Scored with float queries, or by Hamming distance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from tokenshard.retrieval.compression import kernels
from tokenshard.retrieval.compression.base import Encoded, Scorer, Streams
from tokenshard.retrieval.compression.checks import checked_vectors
from tokenshard.retrieval.compression.grid import SignScorer
from tokenshard.retrieval.compression.untrained import Untrained
from tokenshard.retrieval.exact import Multivectors, Vectors


class Bits(Untrained):
    """``bits``: bit j of a vector (lowest of a byte first) says whether component j is above 0."""

    name: ClassVar[str] = "bits"
    streams: ClassVar[tuple[str, ...]] = ("bits",)

    def encode(self, pages: Multivectors) -> Encoded:
        rows = np.packbits(checked_vectors(pages, self.dimensions) > 0, 1, bitorder="little")
        return Encoded(pages.offsets, streams={"bits": Streams.rows(rows, pages.offsets)})

    def decode(self, encoded: Encoded) -> Multivectors:
        signs = np.unpackbits(self._rows(encoded), axis=1, count=self.dimensions, bitorder="little")
        return Multivectors((2 * signs.astype(np.float32) - 1) * self._size, encoded.offsets)

    def open(self, encoded: Encoded) -> SignScorer:
        rows = self._rows(encoded)
        factors = np.full(len(rows), self._size, np.float32)
        axes = np.eye(self.dimensions, dtype=np.float32)
        return SignScorer(encoded.offsets, rows, factors, axes, np.zeros(self.dimensions, np.float32))

    def open_hamming(self, encoded: Encoded) -> HammingScorer:
        """For queries that become bits, too: the first stage of a search."""
        rows = self._rows(encoded)
        return HammingScorer(encoded.offsets, _words(rows))

    @property
    def _size(self) -> np.float32:
        return np.float32(1 / np.sqrt(self.dimensions))

    def _rows(self, encoded: Encoded) -> NDArray[np.uint8]:
        width = (-(-self.dimensions // 8),)
        return encoded.streams["bits"].as_rows("bits", np.uint8, width, encoded.offsets)


@dataclass(frozen=True)
class HammingScorer(Scorer):
    """MaxSim where the similarity of two vectors is the number of signs they share."""

    offsets: NDArray[np.int64]
    bits: NDArray[np.uint64]
    """[N, words]"""

    @property
    def nbytes(self) -> int:
        return self.bits.nbytes

    def prepare(self, query: Vectors) -> NDArray[np.uint64]:
        return _words(np.packbits(query > 0, 1, bitorder="little"))

    def score(self, prepared: NDArray[np.uint64], pages: NDArray[np.int64], out: Vectors) -> None:
        kernels.hamming_maxsim(prepared, self.bits, self.offsets, pages, (0,) * prepared.shape[1], out)


def _words(rows: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Bytes [N, b] as 64-bit words, filled up with zeros."""
    padded = np.zeros((len(rows), -(-rows.shape[1] // 8) * 8), np.uint8)
    padded[:, : rows.shape[1]] = rows
    return padded.view("<u8").astype(np.uint64, copy=False)
