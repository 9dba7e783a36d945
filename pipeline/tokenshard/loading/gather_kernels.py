"""Compiled gathers over the rows of many blocks at once: one call a chunk instead of one a block.

Blocks keep their arrays where they were read to; the loops get the arrays' addresses and bounds, and check both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

_Compiled = Callable[[Callable[..., Any]], Callable[..., Any]]
_intrinsic: _Compiled = intrinsic
_kernel: _Compiled = njit(cache=True, nogil=True, error_model="numpy")
_place: Callable[..., Any] = cgutils.gep_inbounds
_copy: Callable[..., Any] = cgutils.raw_memcpy

DAMAGED = -1
"""What :func:`spans` returns where a row lies outside its block."""


@_intrinsic
def _load32(typingctx: Any, address: Any, index: Any) -> Any:
    """The int32 with this index in an array at an address."""
    signature = types.int32(types.uint64, types.int64)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = builder.inttoptr(args[0], ir.IntType(32).as_pointer())
        return builder.load(builder.gep(array, [args[1]]))

    return signature, codegen


@_intrinsic
def _copy_bytes(typingctx: Any, address: Any, out: Any, at: Any, length: Any) -> Any:
    """Copy ``length`` bytes from an address to ``out[at]`` and on."""
    signature = types.void(types.uint64, out, types.int64, types.int64)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.args[1])(context, builder, args[1])
        source = builder.inttoptr(args[0], ir.IntType(8).as_pointer())
        _copy(builder, _place(builder, array.data, args[2]), source, args[3], 1)
        return context.get_dummy_value()

    return signature, codegen


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
        start = _load32(blocks[block[i], 1], at)
        stop = _load32(blocks[block[i], 1], at + 1)
        size = np.int64(blocks[block[i], 3])
        if start < 0 or stop < start or stop > size:
            return DAMAGED
        places[i] = blocks[block[i], 2] + np.uint64(start)
        rooms[i] = size - start
        lengths[i] = stop - start
        total += lengths[i]
    return total


@_kernel
def gather(places: Any, lengths: Any, out: Any) -> None:
    """The bytes of the rows that :func:`spans` found, back to back."""
    at = 0
    for i in range(places.shape[0]):
        _copy_bytes(places[i], out, at, np.int64(lengths[i]))
        at += lengths[i]


@_kernel
def take(data: Any, rows: Any, width: int, block: Any, row: Any, out: Any) -> bool:
    """Elements of ``width`` bytes of fixed-width columns; False where a row lies outside its block.

    ``data`` and ``rows`` uint64 [blocks]: address of each block's column, and its rows. ``out`` uint8.
    """
    for i in range(block.shape[0]):
        at = row[i]
        if block[i] < 0 or block[i] >= data.shape[0] or at < 0 or at >= np.int64(rows[block[i]]):
            return False
        _copy_bytes(data[block[i]] + np.uint64(at * width), out, np.int64(i * width), np.int64(width))
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
