"""Undoes small damage exactly: one or two changed bytes side by side in a page, found by the CRC the page has anyway.

CRC-32 is linear: the difference between the stated and the found one depends on the wrong bits and their place alone,
not on the data. Running the register backwards over the page tells for every place which change there would explain the
difference; nearly all places need an impossible one. What is left is tried against the checksums of the manifest, so a
shard counts as restored only when it is the committed file again, bit for bit.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from tokenshard.compiled import kernel
from tokenshard.errors import FormatError
from tokenshard.shards.chunks import Span, page_at
from tokenshard.shards.reader import ShardReader
from tokenshard.spec.manifest import ChunkEntry

MOST_TRIES = 64
"""Combinations of changes to different pages that are tried against the checksum of the whole file."""
_POLYNOMIAL = 0xEDB88320
"""Of CRC-32 (ISO 3309), lowest bit first."""


class Change(NamedTuple):
    """XOR of one or two bytes of a file."""

    place: int
    pattern: bytes


class Restored(NamedTuple):
    """A shard file after :func:`restore`."""

    data: bytes
    changes: tuple[Change, ...]
    complete: bool
    """whether it is the committed file again; else only ranges with a checksum of their own were made right"""


def restore(reader: ShardReader, data: bytes) -> Restored:
    """Undo what can be undone in the shard file ``data``, whose sound footer ``reader`` has read."""
    options = _options(reader, data)
    if all(options) and math.prod(map(len, options)) <= MOST_TRIES:
        for chosen in itertools.product(*options):
            candidate = applied(data, chosen)
            if hashlib.sha256(candidate).hexdigest() == reader.entry.sha256:
                return Restored(candidate, chosen, True)
    ranges = [chunk for group in reader.entry.row_groups for chunk in (group.sizes, *group.codes)]
    sure = tuple(page[0] for page in options if len(page) == 1 and any(_inside(page[0], chunk) for chunk in ranges))
    return Restored(applied(data, sure), sure, False)


def _options(reader: ShardReader, data: bytes) -> list[list[Change]]:
    """For each damaged page the changes that would make its CRC right, and the checksum of the range they lie in.

    Pages behind a damaged page header are passed over.
    """
    found = []
    for chunks, listed in zip(reader.chunks, reader.entry.row_groups, strict=True):
        for span in chunks.values():
            for start, end, stated in _pages(data, span):
                if difference := zlib.crc32(data[start:end]) ^ stated:
                    possible = (Change(start + place, bits) for place, bits in _explanations(end - start, difference))
                    ranges = (listed.sizes, *listed.codes)
                    found.append([change for change in possible if _is_right(change, data, ranges)])
    return found


def applied(data: bytes, chosen: Sequence[Change]) -> bytes:
    """The bytes with some changes made."""
    out = bytearray(data)
    for place, pattern in chosen:
        for offset, bits in enumerate(pattern):
            out[place + offset] ^= bits
    return bytes(out)


def _pages(data: bytes, span: Span) -> Iterator[tuple[int, int, int]]:
    """(start, end, stated CRC) of the pages of a column chunk, as far as their headers can be read."""
    place, stop = span
    while place < stop:
        try:
            start, end, crc = page_at(data[place:stop])
        except FormatError:
            return
        if crc is not None:
            yield place + start, place + end, crc
        place += end


def _explanations(length: int, difference: int) -> list[tuple[int, bytes]]:
    """(place, pattern) of every one or two bytes of a page of that length that change its CRC by ``difference``."""
    places, patterns = _run_back(length, np.uint32(difference), *_tables())
    pairs = zip(places.tolist(), patterns.tolist(), strict=True)
    return [(place, int(bits).to_bytes(2 if bits >> 8 else 1, "little")) for place, bits in pairs]


def _is_right(change: Change, data: bytes, ranges: Sequence[ChunkEntry]) -> bool:
    """Whether the checksummed range that the change lies in is right with it; also where it lies in none."""
    for chunk in ranges:
        if _inside(change, chunk):
            part = data[chunk.offset : chunk.offset + chunk.length]
            changed = applied(part, [Change(change.place - chunk.offset, change.pattern)])
            return xxhash.xxh64(changed).hexdigest() == chunk.xxh64
    return True


def _inside(change: Change, chunk: ChunkEntry) -> bool:
    return chunk.offset <= change.place <= chunk.offset + chunk.length - len(change.pattern)


def _tables() -> tuple[NDArray[np.uint32], NDArray[np.uint8]]:
    """The CRC of each byte, and which byte has the CRC with each highest byte."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(_POLYNOMIAL), table >> 1).astype(np.uint32)
    back = np.empty(256, np.uint8)
    back[table >> 24] = np.arange(256)
    return table, back


@kernel()
def _run_back(
    length: int, difference: np.uint32, table: NDArray[np.uint32], back: NDArray[np.uint8]
) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
    """Places from which two bytes explain the difference, and these bytes (low byte first, never zero)."""
    places, patterns = [], []
    register = difference
    # After j steps back the register is the four bytes at length - j that a change would have to be, lowest first.
    for j in range(1, length + 1):
        index = back[register >> np.uint32(24)]
        register = np.uint32(np.uint32((register ^ table[index]) << np.uint32(8)) | np.uint32(index))
        fits = register < 256 or (register < 65536 and j >= 2)
        if fits and register & np.uint32(255):
            places.append(length - j)
            patterns.append(register)
    return np.array(places, np.int64), np.array(patterns, np.uint32)
