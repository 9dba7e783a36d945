"""What compiled loops do with addresses, and numba has no words for. Nothing is checked: callers know the bounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_Compiled = Callable[[Callable[..., Any]], Callable[..., Any]]
_intrinsic: _Compiled = intrinsic
_place: Callable[..., Any] = cgutils.gep_inbounds
_declared: Callable[..., Any] = cgutils.get_or_insert_function
_copy: Callable[..., Any] = cgutils.raw_memcpy


def _loader(bits: int) -> Callable[..., Any]:
    @_intrinsic
    def load(typingctx: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            place = builder.inttoptr(args[0], ir.IntType(bits).as_pointer())
            return builder.zext(builder.load(place, align=1), ir.IntType(64))

        return types.uint64(types.uint64), codegen

    return load


load8, load32, load64 = (_loader(bits) for bits in (8, 32, 64))
"""The little-endian integer of so many bits at an address (any alignment), as uint64."""


def _emit_prefetch(builder: Any, place: Any) -> None:
    byte, i32 = ir.IntType(8).as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [byte, i32, i32, i32])
    function = _declared(builder.module, kind, "llvm.prefetch.p0i8")
    hints = (ir.Constant(i32, value) for value in (0, 3, 1))  # to be read, kept in all caches, data
    builder.call(function, [place, *hints])


@_intrinsic
def prefetch(typingctx: Any, address: Any) -> Any:
    """Have the cache line at an address fetched."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _emit_prefetch(builder, builder.inttoptr(args[0], ir.IntType(8).as_pointer()))
        return context.get_dummy_value()

    return types.void(types.uint64), codegen


@_intrinsic
def prefetch_entry(typingctx: Any, array: Any, index: Any) -> Any:
    """Have the cache line of ``array[index]`` fetched; it may lie outside the array."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        _emit_prefetch(builder, builder.bitcast(builder.gep(data, [args[1]]), ir.IntType(8).as_pointer()))
        return context.get_dummy_value()

    return types.void(array, types.uint64), codegen


@_intrinsic
def store64(typingctx: Any, data: Any, at: Any, value: Any) -> Any:
    """Write an integer to the eight bytes from ``data[at]`` on (any alignment)."""
    signature = types.void(data, types.uint64, types.uint64)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, args[0])
        place = _place(builder, array.data, args[1])
        builder.store(args[2], builder.bitcast(place, ir.IntType(64).as_pointer()), align=1)
        return context.get_dummy_value()

    return signature, codegen


@_intrinsic
def copy_bytes(typingctx: Any, address: Any, out: Any, at: Any, length: Any) -> Any:
    """Copy ``length`` bytes from an address to ``out[at]`` and on."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.args[1])(context, builder, args[1])
        source = builder.inttoptr(args[0], ir.IntType(8).as_pointer())
        _copy(builder, _place(builder, array.data, args[2]), source, args[3], 1)
        return context.get_dummy_value()

    return types.void(types.uint64, out, types.int64, types.int64), codegen
