"""A read-only file of which only one byte range is at hand: lets Arrow decode pages fetched by one range read."""

from __future__ import annotations

import io


class Window(io.RawIOBase):
    """A file of ``size`` bytes whose bytes from ``offset`` on are ``part``; reading anything else raises OSError."""

    def __init__(self, size: int, offset: int, part: memoryview) -> None:
        self._size, self._offset, self._part, self._position = size, offset, part, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = start + offset
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        start = self._position
        end = self._size if size is None or size < 0 else start + size
        if not self._offset <= start <= end <= self._offset + len(self._part):
            raise OSError(f"bytes {start} to {end} point outside the column chunks")
        self._position = end
        return bytes(self._part[start - self._offset : end - self._offset])

    def readall(self) -> bytes:
        return self.read()
