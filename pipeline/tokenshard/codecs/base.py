"""The codec contract: ids of many samples ⇄ one run of bytes. Stands between tokenizers and shards, knows neither.

A *block* is any number of samples of one code column, back to back: ``ids`` is flat, and sample ``i`` covers
``prod(grids[i])`` of them in C order. Each sample gets a stream of its own (``lengths[i]`` bytes) unless the codec
groups short samples, so that one sample decodes alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from tokenshard.errors import FormatError

Ids = NDArray[np.uint16 | np.int32]
Bytes = NDArray[np.uint8]
Lengths = NDArray[np.int32]
Grids = NDArray[np.int32]
"""[samples, rank]: grid dims of each sample, rank 1 to 3."""


class Codec(Protocol):
    """Encodes and decodes blocks of ids in ``[0, alphabet)``.

    Instances are immutable, picklable and safe to use from several threads.
    """

    @property
    def name(self) -> str:
        """Under which the manifest lists it."""
        ...

    @property
    def alphabet(self) -> int:
        """Ids are below this; at most 2^20."""
        ...

    @property
    def layout(self) -> Literal["binary", "list"]:
        """Parquet column for the streams: `binary` holds them as they are; `list` holds the ids themselves, and
        ``encode`` only gives their little-endian bytes."""
        ...

    @property
    def group(self) -> int:
        """Rows that share one stream: it belongs to the first row of a group, the others have length 0. A block to
        decode starts with a whole group; only the last group of a block may be shorter."""
        ...

    @property
    def needs_earlier(self) -> bool:
        """Whether the ids of the level before, of the same samples, must be given to encode and to decode."""
        ...

    def encode(self, ids: Ids, grids: Grids, earlier: Ids | None = None) -> tuple[Bytes, Lengths]:
        """Streams of all samples back to back (uint8 [total]) and the bytes of each (int32 [samples]).

        ``ids``: flat; ``grids``: int32 [samples, rank]; ``earlier``: as flat, the ids of the level before.
        Raises :class:`~tokenshard.errors.InputError` when an id is outside the alphabet.
        """
        ...

    def decode(
        self, data: Bytes, lengths: Lengths, grids: Grids, out: Ids | None = None, earlier: Ids | None = None
    ) -> Ids:
        """The ids of all samples back to back (dtype: :func:`id_dtype`), written to ``out`` where given.

        Raises :class:`~tokenshard.errors.FormatError` on damaged streams; never reads or writes outside the buffers.
        """
        ...

    def model_bytes(self) -> bytes | None:
        """The model file (`.tsm`, `schemas/shard-format-streams.md`) needed to decode, or None without one."""
        ...


class DecodesInPlace(ABC):
    """What a codec adds that decodes streams wherever they lie, so that those of several blocks need no copy."""

    @abstractmethod
    def decode_in_place(
        self,
        places: NDArray[np.uint64],
        rooms: NDArray[np.int64],
        lengths: Lengths,
        grids: Grids,
        out: Ids | None = None,
    ) -> Ids:
        """Like :meth:`Codec.decode`, of streams that begin at the addresses ``places`` [samples].

        ``rooms`` [samples]: bytes that may be read there, at least ``lengths``; the caller answers for them.
        """


class ReadsAhead(ABC):
    """What a codec adds that may read beyond the streams of a block: a caller who leaves room there saves a copy."""

    @property
    @abstractmethod
    def ahead(self) -> int:
        """How many bytes beyond them."""

    @abstractmethod
    def decode_ahead(
        self, data: Bytes, lengths: Lengths, grids: Grids, out: Ids | None = None, earlier: Ids | None = None
    ) -> Ids:
        """Like :meth:`Codec.decode`, of contiguous streams that ``ahead`` bytes follow in ``data``, whatever they
        hold."""


class OpenBlock(Protocol):
    """A block that was checked and laid out once, so that single samples decode at once."""

    def sample(self, row: int, earlier: Ids | None = None) -> Ids:
        """The ids of one sample. Raises FormatError on a damaged stream."""
        ...


class RandomAccess(ABC):
    """What a codec adds whose samples have streams of their own."""

    @abstractmethod
    def open_block(self, data: Bytes, lengths: Lengths, grids: Grids) -> OpenBlock:
        """What is passed to :meth:`Codec.decode`, for decoding single samples. Raises FormatError on lengths that do
        not fit."""


def id_dtype(alphabet: int) -> type[np.uint16] | type[np.int32]:
    """Dtype of ids on the API: uint16 when the alphabet has at most 65,536 entries, else int32."""
    return np.uint16 if alphabet <= 1 << 16 else np.int32


def sample_sizes(grids: Grids) -> NDArray[np.int64]:
    """Ids of each sample (int64 [samples]). Raises FormatError for grids of a negative side or 2^31 ids or more."""
    sizes = np.ones(len(grids))
    for axis in range(grids.shape[1]):  # float64 cannot wrap around, and is exact up to the limit
        sizes *= grids[:, axis]
    if len(grids) and (grids.min() < 0 or sizes.max() >= 1 << 31):
        raise FormatError(
            "a sample's grid has a negative side or 2^31 ids or more; the lengths of the shard are damaged"
        )
    return sizes.astype(np.int64)
