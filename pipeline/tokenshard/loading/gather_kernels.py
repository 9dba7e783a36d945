"""Compiled gathers over the rows of many blocks at once: one call a chunk instead of one a block.

Blocks keep their arrays where they were read to; the loops get the arrays' addresses and bounds, and check both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tokenshard.codecs.intrinsics import copy_bytes, load32, prefetch
from tokenshard.codecs.pack_kernels import AHEAD, LINE
from tokenshard.compiled import kernel as compiled

_Compiled = Callable[[Callable[..., Any]], Callable[..., Any]]
_kernel: _Compiled = compiled(error_model="numpy")

_4 = np.uint64(4)
DAMAGED = -1
"""What :func:`spans` returns where a row lies outside its block."""


@_kernel
def spans(blocks: Any, block: Any, row: Any, places: Any, rooms: Any, lengths: Any) -> int:
    """Where row ``row[i]`` of block ``block[i]`` lies: its address, the bytes from there to the end of the block's
    data, and its own bytes; returns the sum of these.

    ``blocks`` uint64 [blocks, 4]: rows of the block, address of its int32 [rows + 1] offsets, address of its data and
    bytes of them.
    """
    total = 0
    for i in range(block.shape[0]):
        at = row[i]
        if block[i] < 0 or block[i] >= blocks.shape[0] or at < 0 or at >= np.int64(blocks[block[i], 0]):
            return DAMAGED
        offset = blocks[block[i], 1] + np.uint64(4 * at)
        start, stop, size = load32(offset), load32(offset + _4), blocks[block[i], 3]
        if stop < start or stop > size:
            return DAMAGED
        places[i] = blocks[block[i], 2] + start
        rooms[i] = np.int64(size - start)
        lengths[i] = np.int64(stop - start)
        total += lengths[i]
    return total


@_kernel
def gather(places: Any, lengths: Any, out: Any) -> None:
    """The bytes of the rows that :func:`spans` found, back to back."""
    at = 0
    for i in range(places.shape[0]):
        if i + AHEAD < places.shape[0]:
            for byte in range(0, lengths[i + AHEAD], LINE):
                prefetch(places[i + AHEAD] + np.uint64(byte))
        copy_bytes(places[i], out, at, np.int64(lengths[i]))
        at += lengths[i]


@_kernel
def take(blocks: Any, width: int, block: Any, row: Any, out: Any) -> bool:
    """Elements of ``width`` bytes of fixed-width columns; False where a row lies outside its block.

    ``blocks`` uint64 [blocks, 2]: rows of the block, address of its column. ``out`` uint8.
    """
    for i in range(block.shape[0]):
        at = row[i]
        if block[i] < 0 or block[i] >= blocks.shape[0] or at < 0 or at >= np.int64(blocks[block[i], 0]):
            return False
        copy_bytes(blocks[block[i], 1] + np.uint64(at * width), out, np.int64(i * width), np.int64(width))
    return True


@_kernel
def crop(ids: Any, grids: Any, corners: Any, out: Any) -> None:
    """``out[i]`` [n, *size]: the part of sample i from its corner on; samples of ``grids`` [n, 3] back to back."""
    start: Any = 0
    for i in range(out.shape[0]):
        height, width = np.int64(grids[i, 1]), np.int64(grids[i, 2])
        for t in range(out.shape[1]):
            for h in range(out.shape[2]):
                at = start + ((corners[i, 0] + t) * height + corners[i, 1] + h) * width + corners[i, 2]
                for w in range(out.shape[3]):
                    out[i, t, h, w] = ids[at + w]
        start += np.int64(grids[i, 0]) * height * width
