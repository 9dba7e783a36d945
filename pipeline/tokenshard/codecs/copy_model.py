"""The model of the `copy` codec and its file: how likely an id repeats a neighbour, and a tree for ids that do not."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

import numpy as np
import zstandard
from numpy.typing import NDArray

from tokenshard.codecs.model import TOTAL, ContextModel
from tokenshard.errors import FormatError

MAGIC = b"TSMCOPY\0"
VERSION = 1
_PREFIX = struct.Struct("<8sII")
_DIGEST_BYTES = 32
CONTEXT_BITS = 12
"""Bits of the pattern of equal ids around an id."""

SOURCES = 4
"""An id is that of the frame before, the one on its left, the one above it, or another one."""

_TABLES = (1 << CONTEXT_BITS, SOURCES)
_TABLE_BYTES = 2 * _TABLES[0] * SOURCES


@dataclass(frozen=True, eq=False)
class CopyModel:
    """A complete, checked model. Raises FormatError when its parts do not fit together."""

    frequencies: NDArray[np.uint16]
    """[contexts, 4], 1 to 4096: of an id that is the one of the frame before, left of it, above it, another one"""
    others: ContextModel
    """for ids that repeat none of these"""

    def __post_init__(self) -> None:
        sums = self.frequencies.sum(axis=1, dtype=np.int64)
        if self.frequencies.shape != _TABLES or self.frequencies.min() < 1 or (sums != TOTAL).any():
            raise _damaged("its frequencies do not add up")
        if not set(self.others.neighbours) <= {"previous", "left", "up"}:
            raise _damaged("its tree has neighbours that the copy codec does not know")

    @property
    def ends(self) -> NDArray[np.uint16]:
        """Cumulative frequencies [contexts, 4], flat."""
        return np.cumsum(self.frequencies, axis=1, dtype=np.uint16).reshape(-1)

    def to_bytes(self) -> bytes:
        """The model as a `.tsm` file; equal models give equal bytes."""
        tree = self.others.to_bytes()
        table = zstandard.compress(self.frequencies.astype("<u2").tobytes(), 19)
        body = _PREFIX.pack(MAGIC, VERSION, len(table)) + table + tree
        return body + hashlib.sha256(body).digest()

    @classmethod
    def from_bytes(cls, data: bytes) -> CopyModel:
        """Read a `.tsm` file. Raises FormatError when it is damaged or too new."""
        body, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
        if len(body) < _PREFIX.size or hashlib.sha256(body).digest() != digest:
            raise _damaged("its checksum does not fit")
        magic, version, size = _PREFIX.unpack_from(body)
        if magic != MAGIC:
            raise _damaged("it is no model of the copy codec")
        if version > VERSION:
            raise FormatError(f"codec model: version {version} is newer than this tokenshard reads; upgrade it")
        frame, tree = body[_PREFIX.size : _PREFIX.size + size], body[_PREFIX.size + size :]
        try:
            table = zstandard.ZstdDecompressor().decompress(frame, max_output_size=_TABLE_BYTES)
        except zstandard.ZstdError as error:
            raise _damaged("its table cannot be unpacked") from error
        if len(table) != _TABLE_BYTES:
            raise _damaged("its table has another size")
        return cls(np.frombuffer(table, "<u2").reshape(_TABLES).astype(np.uint16), ContextModel.from_bytes(tree))


def _damaged(problem: str) -> FormatError:
    return FormatError(f"codec model: {problem}; restore the file below models/ or convert again")
