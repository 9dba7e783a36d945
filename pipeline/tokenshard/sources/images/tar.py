"""Tar archives as a stream of members, in bounded memory, with every kind of damage reported.

The standard reader takes a damaged header in the middle of an archive for its end; here it is an error.
"""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from lzma import LZMAError
from typing import BinaryIO, Self, cast

from tokenshard.sources.images.tables import buffered
from tokenshard.store import Store

TAR_ERRORS = (tarfile.TarError, EOFError, zlib.error, LZMAError, OSError)
"""What a damaged archive raises while it is read."""
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0")
_EXTENDED = (b"x", b"g", b"X", b"L", b"K")
_LONGEST_HEADER = 1 << 20


@dataclass(frozen=True)
class Member:
    """A regular file in an archive."""

    name: str
    index: int
    """position among all members"""
    offset: int
    """of its first byte (in the uncompressed archive)"""
    size: int
    sparse: bool
    _archive: tarfile.TarFile
    _info: tarfile.TarInfo

    def read(self) -> bytes:
        """Its bytes; only before the next member is asked for."""
        with cast(BinaryIO, self._archive.extractfile(self._info)) as file:
            data = file.read()
        if len(data) != self.size:
            raise tarfile.ReadError("unexpected end of data")
        return data


class _Header(tarfile.TarInfo):
    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        if header.type in _EXTENDED and header.size > _LONGEST_HEADER:
            raise tarfile.ReadError(f"header of {header.size} bytes")
        return header

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile_)
        except (tarfile.EOFHeaderError, tarfile.EmptyHeaderError):  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error


def is_compressed(store: Store, name: str) -> bool:
    """Whether an archive is compressed, by its first bytes, whatever its name says."""
    return store.read(name, 0, 6).startswith(_COMPRESSED)


def members(store: Store, name: str, compressed: bool) -> Iterator[Member]:
    """Regular files of an archive in their order. Raises one of :data:`TAR_ERRORS` where the archive is damaged."""
    with (
        buffered(store, name) as file,
        tarfile.open(fileobj=file, mode="r|*" if compressed else "r:", tarinfo=_Header) as archive,
    ):
        index = 0
        while (info := archive.next()) is not None:
            if info.isreg():
                yield Member(info.name, index, info.offset_data, info.size, info.issparse(), archive, info)
            archive.members.clear()  # type: ignore[attr-defined]
            index += 1
