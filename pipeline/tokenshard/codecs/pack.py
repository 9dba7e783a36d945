"""The `pack` codec: fixed-width bit fields, for ids that nothing compresses. The fastest to read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from tokenshard.codecs.base import Bytes, DecodesInPlace, Grids, Ids, Lengths, RandomAccess, id_dtype, sample_sizes
from tokenshard.codecs.blocks import check_ids, check_lengths, ids_buffer, read_only
from tokenshard.errors import FormatError


@dataclass(frozen=True)
class PackCodec(DecodesInPlace, RandomAccess):
    """``ceil(log2 alphabet)`` bits an id, lowest bit first; each sample starts at a byte, padded with zero bits."""

    alphabet: int
    name: ClassVar[Literal["pack"]] = "pack"
    layout: ClassVar[Literal["binary"]] = "binary"
    group: ClassVar[int] = 1
    needs_earlier: ClassVar[bool] = False

    @property
    def bits(self) -> int:
        """Bits of one id."""
        return (self.alphabet - 1).bit_length()

    def encode(self, ids: Ids, grids: Grids, earlier: Ids | None = None) -> tuple[Bytes, Lengths]:
        sizes = sample_sizes(grids)
        check_ids(ids, sizes, self.alphabet)
        lengths = self._lengths(sizes)
        total = int(lengths.sum())
        if total == 0:
            return np.zeros(0, np.uint8), lengths.astype(np.int32)
        from tokenshard.codecs import pack_kernels

        data = np.zeros(total + pack_kernels.SLACK, np.uint8)
        pack_kernels.pack(read_only(ids), sizes, np.cumsum(lengths) - lengths, self.bits, data)
        return data[:total], lengths.astype(np.int32)

    def decode(
        self, data: Bytes, lengths: Lengths, grids: Grids, out: Ids | None = None, earlier: Ids | None = None
    ) -> Ids:
        data = np.ascontiguousarray(data)
        return self.decode_in_place(*_places(data, lengths, grids), lengths, grids, out)

    def decode_in_place(
        self,
        places: NDArray[np.uint64],
        rooms: NDArray[np.int64],
        lengths: Lengths,
        grids: Grids,
        out: Ids | None = None,
    ) -> Ids:
        sizes = self._sizes(lengths, grids)
        ids = ids_buffer(out, int(sizes.sum()), self.alphabet)
        self.unpack(places, rooms, sizes, ids)
        return ids

    def open_block(self, data: Bytes, lengths: Lengths, grids: Grids) -> _OpenBlock:
        data = np.ascontiguousarray(data)
        return _OpenBlock(self, data, *_places(data, lengths, grids), self._sizes(lengths, grids))

    def unpack(self, places: NDArray[np.uint64], rooms: NDArray[np.int64], sizes: NDArray[np.int64], ids: Ids) -> None:
        """Fill ``ids`` from the streams at these addresses. Raises FormatError on damage."""
        if self.bits == 0 or len(ids) == 0:
            ids.fill(0)
            return
        from tokenshard.codecs import pack_kernels

        clean = pack_kernels.unpack(places, rooms, sizes, (0,) * self.bits, ids)
        if self.alphabet != 1 << self.bits and ids.max() >= self.alphabet:
            raise FormatError(f"packed id {ids.max()} is outside the alphabet of {self.alphabet}; the shard is damaged")
        if not clean:
            raise FormatError("packed samples end in padding bits that are not zero; the shard is damaged")

    def model_bytes(self) -> None:
        return None

    def _sizes(self, lengths: Lengths, grids: Grids) -> NDArray[np.int64]:
        """Ids of each sample. Raises FormatError where they do not fit its bytes."""
        sizes = sample_sizes(grids)
        wrong = np.flatnonzero(lengths != self._lengths(sizes))
        if len(wrong):
            raise FormatError(f"packed sample {wrong[0]} has {lengths[wrong[0]]} bytes, its grid needs another length")
        return sizes

    def _lengths(self, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
        return (sizes * self.bits + 7) // 8


@dataclass(frozen=True)
class _OpenBlock:
    codec: PackCodec
    data: Bytes
    """what ``places`` point into"""
    places: NDArray[np.uint64]
    rooms: NDArray[np.int64]
    sizes: NDArray[np.int64]

    def sample(self, row: int, earlier: Ids | None = None) -> Ids:
        mine = slice(row, row + 1)
        ids = np.empty(self.sizes[row], id_dtype(self.codec.alphabet))
        self.codec.unpack(self.places[mine], self.rooms[mine], self.sizes[mine], ids)
        return ids


def _places(data: Bytes, lengths: Lengths, grids: Grids) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """The address of each stream, and the bytes from there to the end of the data (contiguous)."""
    first_bytes = check_lengths(data, lengths, grids)
    return np.uint64(data.ctypes.data) + first_bytes.astype(np.uint64), len(data) - first_bytes
