"""Byte ranges of samples that lie close to each other, fetched together and only when one of them is asked for."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tokenshard.errors import InputError
from tokenshard.store import Store

BLOCK_BYTES = 4 << 20
GAP_BYTES = 64 << 10
"""Ranges further apart than this are fetched by themselves."""


@dataclass
class Block:
    """A range of a file that is fetched once; may be asked from several threads."""

    store: Store
    name: str
    start: int
    end: int
    _data: bytes | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def bytes(self, start: int, size: int) -> bytes:
        """The bytes of a range inside. Raises InputError where the file ends before."""
        with self._lock:
            if self._data is None:
                self._data = self.store.read(self.name, self.start, self.end - self.start)
        data = self._data[start - self.start : start - self.start + size]
        if len(data) != size:
            raise InputError(f"the file ends {size - len(data)} bytes too early")
        return data


def blocks(store: Store, name: str, ranges: Sequence[tuple[int, int]]) -> Iterator[Block]:
    """The block of each of these (start, size) ranges of a file; neighbours share one."""
    first = 0
    while first < len(ranges):
        start, size = ranges[first]
        end, last = start + size, first + 1
        while last < len(ranges):
            next_start, next_size = ranges[last]
            if not end <= next_start <= end + GAP_BYTES or next_start + next_size - start > BLOCK_BYTES:
                break
            end, last = next_start + next_size, last + 1
        block = Block(store, name, start, end)
        yield from (block for _ in range(first, last))
        first = last
