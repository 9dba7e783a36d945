"""Compiled loops of the `pack` codec: fixed-width little-endian bit fields, read and written eight bytes at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

_place: Callable[..., Any] = cgutils.gep_inbounds
_Compiled = Callable[[Callable[..., Any]], Callable[..., Any]]
_intrinsic: _Compiled = intrinsic
_kernel: _Compiled = njit(cache=True, nogil=True, error_model="numpy")

SLACK = 8
"""Bytes a buffer passed to :func:`pack` must have beyond the last stream."""

_0, _1, _3, _4, _7, _8 = (np.uint64(i) for i in (0, 1, 3, 4, 7, 8))


@_intrinsic
def _load64(typingctx: Any, data: Any, at: Any) -> Any:
    """The eight bytes from ``data[at]`` on as a little-endian integer (any alignment)."""
    signature = types.uint64(data, types.uint64)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, args[0])
        place = _place(builder, array.data, args[1])
        return builder.load(place, align=1, typ=ir.IntType(64))

    return signature, codegen


@_intrinsic
def _store64(typingctx: Any, data: Any, at: Any, value: Any) -> Any:
    """Write an integer to the eight bytes from ``data[at]`` on (any alignment)."""
    signature = types.void(data, types.uint64, types.uint64)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, args[0])
        place = _place(builder, array.data, args[1])
        builder.store(args[2], builder.bitcast(place, ir.IntType(64).as_pointer()), align=1)
        return context.get_dummy_value()

    return signature, codegen


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
            _store64(out, byte, pending)
            held += width
            byte += held >> _3
            pending >>= held & ~_7
            held &= _7
        at += np.uint64(sizes[sample])


@_kernel
def unpack(data: Any, sizes: Any, first_bytes: Any, bits: Any, out: Any) -> None:
    """Inverse of :func:`pack`; reads only inside ``data``."""
    at = _0
    width = np.uint64(bits)
    mask = (_1 << width) - _1
    total = np.uint64(data.shape[0])
    for sample in range(sizes.shape[0]):
        first = np.uint64(first_bytes[sample])
        size = np.uint64(sizes[sample])
        wide = _0  # ids whose eight bytes lie inside the data
        if first + _8 <= total:
            wide = min(size, ((total - _8 - first) * _8 + _7) // width + _1)
        for i in range(wide):
            bit = i * width
            out[at + i] = (_load64(data, first + (bit >> _3)) >> (bit & _7)) & mask
        for i in range(wide, size):
            bit = i * width
            byte = first + (bit >> _3)
            value = _0
            for j in range(min(_4, total - byte)):
                value |= np.uint64(data[byte + j]) << (_8 * j)
            out[at + i] = (value >> (bit & _7)) & mask
        at += size
