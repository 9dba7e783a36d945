"""The `zstd` codec: ids stay readable for any Parquet reader, as lists that Parquet compresses itself.

It does no coding of its own: ``layout`` tells the shard writer to store ``list<uint16>`` (``list<uint32>`` above
65,536 ids) with dictionary encoding and zstd. :meth:`ZstdCodec.parquet_bytes` estimates what that will cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from tokenshard.codecs.base import Bytes, Grids, Ids, Lengths, sample_sizes
from tokenshard.codecs.blocks import check_ids, check_lengths, ids_buffer
from tokenshard.codecs.pack import PackCodec
from tokenshard.errors import FormatError

_LEVEL = 3
_PAGE_BYTES = 1 << 20


@dataclass(frozen=True)
class ZstdCodec:
    """Little-endian ids of 2 or 4 bytes, back to back."""

    alphabet: int
    name: ClassVar[Literal["zstd"]] = "zstd"
    layout: ClassVar[Literal["list"]] = "list"
    group: ClassVar[int] = 1
    needs_earlier: ClassVar[bool] = False

    def encode(self, ids: Ids, grids: Grids, earlier: Ids | None = None) -> tuple[Bytes, Lengths]:
        sizes = sample_sizes(grids)
        check_ids(ids, sizes, self.alphabet)
        stored = np.ascontiguousarray(ids, self._stored)
        return stored.view(np.uint8), (sizes * self._stored.itemsize).astype(np.int32)

    def decode(
        self, data: Bytes, lengths: Lengths, grids: Grids, out: Ids | None = None, earlier: Ids | None = None
    ) -> Ids:
        check_lengths(data, lengths, grids)
        sizes = sample_sizes(grids)
        if (lengths != sizes * self._stored.itemsize).any():
            raise FormatError("lists of ids are not as long as their grids; the shard is damaged")
        ids = ids_buffer(out, int(sizes.sum()), self.alphabet)
        stored = np.ascontiguousarray(data).view(self._stored)
        if len(stored) and stored.max() >= self.alphabet:
            raise FormatError(f"id {stored.max()} is outside the alphabet of {self.alphabet}; the shard is damaged")
        ids[:] = stored
        return ids

    def model_bytes(self) -> None:
        return None

    def parquet_bytes(self, ids: Ids) -> int:
        """Estimated bytes of a Parquet column chunk of these ids: its dictionary and bit-packed pages under zstd."""
        import zstandard

        used, indices = np.unique(ids, return_inverse=True)
        packer = PackCodec(max(len(used), 1))
        packed, _ = packer.encode(indices.astype(np.int32), np.array([[len(ids)]], np.int32))
        pages = [used.astype("<u4"), *(packed[at : at + _PAGE_BYTES] for at in range(0, len(packed), _PAGE_BYTES))]
        compressor = zstandard.ZstdCompressor(level=_LEVEL)
        return sum(len(compressor.compress(page.tobytes())) for page in pages)

    @property
    def _stored(self) -> np.dtype[np.uint16] | np.dtype[np.uint32]:
        return np.dtype("<u2") if self.alphabet <= 1 << 16 else np.dtype("<u4")
