"""NumPy's .npy arrays read in pieces: from a file of their own, or from a member of an .npz archive.

Only numbers and text; an array of objects would have to be unpickled and is refused. Sizes in the header are checked
against the size of the file before anything is read by them.
"""

from __future__ import annotations

import contextlib
import io
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from lzma import LZMAError
from tokenize import TokenError
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from tokenshard.errors import FormatError
from tokenshard.sources.images.tables import buffered
from tokenshard.store import Store

ARRAY_ERRORS = (
    *(ValueError, OSError, EOFError, KeyError, OverflowError, NotImplementedError, RuntimeError),
    *(zlib.error, zipfile.BadZipFile, struct.error, LZMAError),
)
"""What a damaged file makes NumPy and zipfile raise."""
_MAX_HEADER = 10_000
_REMEDY = "restore the file from a copy"


@dataclass(frozen=True)
class ArrayFile:
    """An array in a file, not yet read."""

    store: Store
    name: str
    member: str | None
    """of an .npz archive"""
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int
    """of the first value (in the member)"""

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape[1:])

    def rows(self, start: int, count: int) -> NDArray[Any]:
        """Rows [start, start + count). Raises FormatError where the file is damaged."""
        try:
            with _opened(self.store, self.name, self.member) as file:
                file.seek(self.offset + start * self.row_bytes)
                data = file.read(count * self.row_bytes)
            values = np.frombuffer(data, self.dtype).reshape(count, *self.shape[1:])
            if self.dtype.kind == "U" and values.size and self.dtype.itemsize:
                points = np.frombuffer(data, np.dtype(np.uint32).newbyteorder(self.dtype.byteorder))
                if points.max() > 0x10FFFF or ((points >= 0xD800) & (points < 0xE000)).any():
                    raise ValueError("text that is not Unicode")
            return values
        except ARRAY_ERRORS as error:
            raise FormatError(
                f"{describe(self.store, self.name, self.member)}: damaged ({error}); {_REMEDY}"
            ) from error

    def values(self, block: int) -> Iterator[NDArray[Any]]:
        """All rows, ``block`` at a time."""
        for start in range(0, len(self), block):
            yield self.rows(start, min(block, len(self) - start))


def open_array(store: Store, name: str, member: str | None = None) -> ArrayFile:
    """The array in a .npy file, or in a member of an .npz archive. Raises FormatError where it cannot be used."""
    where = describe(store, name, member)
    try:
        with _opened(store, name, member) as file:
            size = file.seek(0, io.SEEK_END)
            file.seek(0)
            shape, fortran, dtype = read_header(file)
            offset = file.tell()
    except FileNotFoundError:
        raise
    except ARRAY_ERRORS as error:
        raise FormatError(f"{where}: no readable NumPy array ({error}); {_REMEDY}") from error
    if dtype.hasobject or dtype.kind not in "biufU":
        raise FormatError(f"{where}: an array of {dtype}; save numbers or text with numpy.save(…, allow_pickle=False)")
    if fortran and len(shape) > 1:
        raise FormatError(f"{where}: in Fortran order; save it as numpy.ascontiguousarray(array)")
    if not shape or any(side < 0 for side in shape):
        raise FormatError(f"{where}: of shape {list(shape)}; the first axis must be that of the samples")
    if offset + dtype.itemsize * math.prod(shape) != size:
        raise FormatError(f"{where}: {size} bytes do not fit an array of {dtype} and shape {list(shape)}; {_REMEDY}")
    return ArrayFile(store, name, member, dtype, shape, offset)


def read_header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """(shape, whether in Fortran order, dtype) of a .npy file; ends at the first value. Raises ValueError."""
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version[0] == 1 else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file, max_header_size=_MAX_HEADER)
    except (SyntaxError, TokenError, TypeError, KeyError, RecursionError, MemoryError) as error:
        raise ValueError(f"damaged header ({error})") from error
    return tuple(shape), bool(fortran), dtype


def members(store: Store, name: str) -> list[str]:
    """Names of the arrays in an .npz archive."""
    try:
        with store.open(name) as file, zipfile.ZipFile(file) as archive:
            return [entry.removesuffix(".npy") for entry in archive.namelist() if entry.endswith(".npy")]
    except ARRAY_ERRORS as error:
        raise FormatError(f"{store.url(name)}: no readable .npz archive ({error}); {_REMEDY}") from error


def describe(store: Store, name: str, member: str | None) -> str:
    return store.url(name) if member is None else f"{store.url(name)}, array {member!r}"


@contextlib.contextmanager
def _opened(store: Store, name: str, member: str | None) -> Iterator[BinaryIO]:
    with buffered(store, name) as file:
        if member is None:
            yield cast(BinaryIO, file)
            return
        with zipfile.ZipFile(file) as archive, archive.open(f"{member}.npy") as inside:
            yield cast(BinaryIO, inside)
