"""Compiled loops of the `pack` codec: fixed-width little-endian bit fields, written eight bytes and read eight ids at a
time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from tokenshard.codecs.intrinsics import load8, load64, prefetch, store64
from tokenshard.compiled import kernel as compiled

_place: Callable[..., Any] = cgutils.gep_inbounds
_Compiled = Callable[[Callable[..., Any]], Callable[..., Any]]
_intrinsic: _Compiled = intrinsic
_kernel: _Compiled = compiled(error_model="numpy")

SLACK = 8
"""Bytes a buffer passed to :func:`pack` must have beyond the last stream."""

AHEAD = 16
"""Samples between the one that is unpacked and the one that is fetched into the cache."""

LINE = 64
"""Bytes of a line of the cache."""

_AHEAD, _LINE = np.uint64(AHEAD), np.uint64(LINE)
_0, _1, _3, _4, _7, _8, _16, _32 = (np.uint64(i) for i in (0, 1, 3, 4, 7, 8, 16, 32))


@_kernel
def pack(ids: Any, sizes: Any, first_bytes: Any, bits: Any, out: Any) -> None:
    """Write ``sizes[i]`` ids of ``bits`` bits from byte ``first_bytes[i]`` of ``out`` on (samples in order)."""
    at = _0
    width = np.uint64(bits)
    for sample in range(sizes.shape[0]):
        byte = np.uint64(first_bytes[sample])
        pending = _0
        held = _0
        for i in range(at, at + np.uint64(sizes[sample])):
            pending |= np.uint64(ids[i]) << held
            store64(out, byte, pending)
            held += width
            byte += held >> _3
            pending >>= held & ~_7
            held &= _7
        at += np.uint64(sizes[sample])


@_intrinsic
def _unpack_eight(typingctx: Any, address: Any, out: Any, to: Any, width: Any) -> Any:
    """Eight ids from the bytes from an address on to ``out[to]`` and the seven after it.

    ``width`` is a tuple of as many entries as an id has bits: eight ids begin and end at whole bytes, so that for each
    width all places and shifts are constants, and a handful of vector instructions do the work.
    """
    signature = types.void(types.uint64, out, types.uint64, width)
    bits = len(width)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        target = context.make_array(signature.args[1])(context, builder, args[1])
        byte, i32 = ir.IntType(8), ir.IntType(32)
        read = ir.VectorType(byte, _bytes_read(bits))
        loaded = builder.load(builder.inttoptr(args[0], read.as_pointer()), align=1)
        firsts = [bits * i // 8 for i in range(8)]
        picked = [min(first + i, read.count - 1) for first in firsts for i in range(4)]
        picks = ir.Constant(ir.VectorType(i32, 32), picked)
        words = ir.VectorType(i32, 8)
        fields = builder.bitcast(builder.shuffle_vector(loaded, ir.Constant(read, ir.Undefined), picks), words)
        fields = builder.lshr(fields, ir.Constant(words, [bits * i % 8 for i in range(8)]))
        fields = builder.and_(fields, ir.Constant(words, [(1 << bits) - 1] * 8))
        ids = ir.VectorType(ir.IntType(signature.args[1].dtype.bitwidth), 8)
        if ids != words:
            fields = builder.trunc(fields, ids)
        builder.store(fields, builder.bitcast(_place(builder, target.data, args[2]), ids.as_pointer()), align=2)
        return context.get_dummy_value()

    return signature, codegen


def _bytes_read(bits: int) -> int:
    """Bytes that unpacking eight ids reads."""
    return 16 if bits <= 16 else 32


@_kernel
def unpack(places: Any, rooms: Any, sizes: Any, width: Any, out: Any) -> bool:
    """Inverse of :func:`pack` for ids of ``len(width)`` bits; False where a padding bit is not zero.

    ``places`` uint64 [samples]: address of each stream; ``rooms`` int64 [samples]: bytes that may be read there, at
    least those of the stream.
    """
    stray: Any = _0  # padding bits of all samples
    at: Any = _0
    bits = np.uint64(len(width))
    mask = (_1 << bits) - _1
    reach = _16 if bits <= _16 else _32
    samples = np.uint64(sizes.shape[0])
    for sample in range(samples):
        coming = sample + _AHEAD
        if coming < samples:  # streams of a shuffled batch lie anywhere, which the processor cannot foresee
            for line in range(_0, np.uint64(sizes[coming]) * bits >> _3, _LINE):
                prefetch(places[coming] + line)
        first, room = places[sample], np.uint64(rooms[sample])
        size = np.uint64(sizes[sample])
        eights = _0  # groups of eight whose reads lie inside the room
        if reach <= room:
            eights = min(size >> _3, (room - reach) // bits + _1)
        for eight in range(eights):
            _unpack_eight(first + eight * bits, out, at + _8 * eight, width)
        for i in range(_8 * eights, size):
            byte = i * bits >> _3
            value = _0
            if byte + _8 <= room:
                value = load64(first + byte)
            else:
                for j in range(min(_4, room - byte)):
                    value |= load8(first + byte + j) << (_8 * j)
            out[at + i] = (value >> (i * bits & _7)) & mask
        used = size * bits & _7
        if used > _0:
            stray |= load8(first + (size * bits >> _3)) >> used
        at += size
    return bool(stray == _0)
