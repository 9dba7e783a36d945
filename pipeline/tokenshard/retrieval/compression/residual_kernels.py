"""Compiled loops of `ofec`: rANS over quantized residuals, one stream a page, decoded to the entries that are not zero.

The coder is that of the `context` codec: a 32-bit state from 2^16 on, 16-bit words, frequencies that sum to 4096. A
vector is its components in order, each with the table that the class of its centroid gives. Symbol 0 is zero, then 1,
-1, 2, -2, …; the last is an escape, followed by the zigzag value in 12 bits of equal frequency.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tokenshard.retrieval.compression.kernels import kernel

SYMBOLS = 16
ESCAPE = SYMBOLS - 1
LARGEST = 2047
"""Steps a component may be away from its centroid; it is clipped there."""
_LOW, _12, _16, _20 = np.uint64(1 << 16), np.uint64(12), np.uint64(16), np.uint64(20)
_SLOT = np.uint64((1 << 12) - 1)
_1 = np.uint64(1)


@kernel
def quantize(components: Any, step: Any, bias: Any, out: Any) -> None:
    """``out = sign * floor(|component| / step + bias)``, int16, clipped."""
    for row in range(components.shape[0]):
        for j in range(components.shape[1]):
            size = min(np.floor(abs(components[row, j]) / step + bias), np.float32(LARGEST))
            out[row, j] = np.int16(size) if components[row, j] >= 0 else -np.int16(size)


@kernel
def encode(
    values: Any, classes: Any, offsets: Any, tables: Any, starts: Any, frequencies: Any, scratch: Any, words: Any,
    lengths: Any,
) -> Any:  # fmt: skip
    """Streams of all pages to ``words`` (uint16), words of each to ``lengths``; returns the words used.

    ``scratch``: room for the largest page, 2 words a component and 3 more.
    """
    used = 0
    for page in range(offsets.shape[0] - 1):
        lengths[page] = 0
        if offsets[page] == offsets[page + 1]:
            continue
        x, at = _LOW, scratch.shape[0]
        for row in range(offsets[page + 1] - 1, offsets[page] - 1, -1):
            own = tables[classes[row]]
            for j in range(values.shape[1] - 1, -1, -1):
                value = np.int64(values[row, j])
                zigzag = 2 * value - 1 if value > 0 else -2 * value
                table = own[j]
                symbol = min(zigzag, ESCAPE)
                if frequencies[table, symbol] == 0:
                    symbol = ESCAPE
                if symbol == ESCAPE:
                    if x >= _1 << _20:
                        at -= 1
                        scratch[at] = np.uint16(x & np.uint64(0xFFFF))
                        x >>= _16
                    x = (x << _12) + np.uint64(zigzag)
                frequency, start = np.uint64(frequencies[table, symbol]), np.uint64(starts[table, symbol])
                if x >= frequency << _20:
                    at -= 1
                    scratch[at] = np.uint16(x & np.uint64(0xFFFF))
                    x >>= _16
                x = (x // frequency << _12) + x % frequency + start
        at -= 2
        scratch[at] = np.uint16(x & np.uint64(0xFFFF))
        scratch[at + 1] = np.uint16(x >> _16)
        lengths[page] = scratch.shape[0] - at
        words[used : used + lengths[page]] = scratch[at:]
        used += lengths[page]
    return used


@kernel
def decode(
    words: Any, firsts: Any, classes: Any, offsets: Any, tables: Any, starts: Any, frequencies: Any, counts: Any,
    dims: Any, values: Any, damaged: Any,
) -> Any:  # fmt: skip
    """Entries that are not zero of all vectors, back to back; returns their number, which may exceed the room given.

    ``firsts`` [P + 1]: words of each page. ``counts`` [N]: entries of each vector. Reads no word beyond the page's.
    """
    used, room = 0, dims.shape[0]
    for page in range(offsets.shape[0] - 1):
        at, stop = firsts[page], firsts[page + 1]
        damaged[page] = False
        if offsets[page] == offsets[page + 1]:
            damaged[page] = at != stop
            continue
        if stop - at < 2:
            damaged[page] = True
            counts[offsets[page] : offsets[page + 1]] = 0
            continue
        x = np.uint64(words[at]) | np.uint64(words[at + 1]) << _16
        at += 2
        for row in range(offsets[page], offsets[page + 1]):
            own = tables[classes[row]]
            before = used
            for j in range(tables.shape[1]):
                table = own[j]
                slot = x & _SLOT
                symbol = 0
                while symbol < ESCAPE and slot >= np.uint64(starts[table, symbol + 1]):
                    symbol += 1
                x = np.uint64(frequencies[table, symbol]) * (x >> _12) + slot - np.uint64(starts[table, symbol])
                if x < _LOW and at < stop:
                    x = x << _16 | np.uint64(words[at])
                    at += 1
                if symbol == 0:
                    continue
                zigzag: Any = symbol
                if symbol == ESCAPE:
                    zigzag = np.int64(x & _SLOT)
                    x >>= _12
                    if x < _LOW and at < stop:
                        x = x << _16 | np.uint64(words[at])
                        at += 1
                if used < room:
                    dims[used] = j
                    values[used] = (zigzag + 1) >> 1 if zigzag & 1 else -(zigzag >> 1)
                used += 1
            counts[row] = used - before
        damaged[page] = x != _LOW or at != stop
    return used
