"""A gzip file with a given header: what was unpacked packs to the same bytes again, if zlib had packed it.

Source: RFC 1952 (header), RFC 1951 (deflate).
"""

from __future__ import annotations

import struct
import zlib
from typing import BinaryIO

PLAIN = bytes.fromhex("1f8b08000000000002ff")
"""No name, no time, level 9."""
_HEADER_CRC, _EXTRA, _NAME, _COMMENT = 2, 4, 8, 16
_LEVELS = {2: 9, 4: 1}
"""By the byte that says how hard the packer tried; 6 for others."""
MAX_HEADER = 4096


def header_of(data: bytes) -> bytes:
    """The header at the front of a gzip file. Raises ValueError where there is none."""
    if len(data) < 10 or data[:3] != PLAIN[:3] or data[3] & ~0x1F:
        raise ValueError("no gzip header")
    flags, end = data[3], 10
    if flags & _EXTRA:
        end += 2 + int.from_bytes(data[end : end + 2], "little")
    for flag in (_NAME, _COMMENT):
        if flags & flag:
            end = data.index(b"\0", end) + 1
    end += 2 * bool(flags & _HEADER_CRC)
    if end > min(len(data), MAX_HEADER):
        raise ValueError("the gzip header is cut off or too long")
    return data[:end]


class GzipStream:
    """Packs what is written to ``file``; the file itself stays open."""

    def __init__(self, file: BinaryIO, header: bytes = PLAIN) -> None:
        self._file, self._crc, self._size = file, 0, 0
        self._packer = zlib.compressobj(_LEVELS.get(header[8], 6), zlib.DEFLATED, -zlib.MAX_WBITS)
        file.write(header)

    def write(self, data: bytes) -> None:
        self._crc, self._size = zlib.crc32(data, self._crc), self._size + len(data)
        self._file.write(self._packer.compress(data))

    def close(self) -> None:
        self._file.write(self._packer.flush())
        self._file.write(struct.pack("<II", self._crc, self._size & 0xFFFFFFFF))
