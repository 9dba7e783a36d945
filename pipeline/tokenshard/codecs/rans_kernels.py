"""Compiled loops of the `context` codec: rANS over the arrays of a :class:`~tokenshard.codecs.model.KernelArrays`.

One 32-bit state a stream; four streams advance in lockstep, because the dependent steps of a single one leave most of
a core idle. Everything is unsigned 64-bit: numba then drops its test for negative indices, and the product of a state
and a frequency cannot overflow. The functions trust the model arrays (checked when a model is built) but never the
streams: every read of a word is clamped to the buffer, and a slot is always below the last end of its table.

Streams and tables are specified in `schemas/shard-format.md`; the coder is the range variant of Duda's asymmetric
numeral systems (arXiv:1311.2540).
"""

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
_inline: _Compiled = njit(forceinline=True, error_model="numpy")
_kernel: _Compiled = njit(cache=True, nogil=True, error_model="numpy")

LANES = 4
"""Streams that advance in lockstep."""

_0, _1, _2 = (np.uint64(i) for i in range(3))
_LANES = np.uint64(LANES)
_ROW = np.uint64(5)  # log2 of the entries of a table
_PRECISION = np.uint64(12)  # log2 of the sum of a table's frequencies
_SLOT = np.uint64((1 << 12) - 1)
_WORD = np.uint64(16)
_LOW = np.uint64(1 << 16)  # the smallest state, and the one an encoder starts from
_EMIT = np.uint64(20)  # a state of frequency << 20 or more gives away a word before it takes a symbol


@_intrinsic
def _count_at_most(typingctx: Any, ends: Any, first: Any, slot: Any) -> Any:
    """How many of the 32 uint16 values from ``ends[first]`` on are <= slot: the symbol, by one vector compare."""
    signature = types.uint64(ends, types.uint64, types.uint64)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, args[0])
        i16, i32 = ir.IntType(16), ir.IntType(32)
        table = ir.VectorType(i16, 32)
        undefined = ir.Constant(table, ir.Undefined)
        row = builder.load(_place(builder, array.data, args[1]), align=2, typ=table)
        slots = builder.insert_element(undefined, builder.trunc(args[2], i16), ir.Constant(i32, 0))
        slots = builder.shuffle_vector(slots, undefined, ir.Constant(ir.VectorType(i32, 32), [0] * 32))
        mask = builder.bitcast(builder.icmp_unsigned("<=", row, slots), i32)
        return builder.zext(builder.ctpop(mask), ir.IntType(64))

    return signature, codegen


@_inline
def _pop(x: Any, at: Any, row: Any, words: Any, ends: Any) -> Any:
    """Take a symbol from state ``x``; returns (state, place of the next word, symbol)."""
    first = (row + _1) << _ROW
    slot = x & _SLOT
    place = first + _count_at_most(ends, first, slot)
    start = np.uint64(ends[place - _1]) & _SLOT  # the entry before a row is 4096: start 0
    x = (np.uint64(ends[place]) - start) * (x >> _PRECISION) + slot - start
    # Without a branch: whether a word is due is nearly a coin toss. A place past the end shows when the stream ends.
    word = np.uint64(words[min(at, np.uint64(words.shape[0]) - _1)])
    due = x < _LOW
    return (x << _WORD | word) if due else x, at + np.uint64(due), place - first


@_inline
def _push(x: Any, at: Any, row: Any, symbol: Any, ends: Any, scratch: Any) -> Any:
    """Put a symbol on state ``x``, words going to ``scratch`` downwards; returns (state, place of the last word)."""
    place = ((row + _1) << _ROW) + symbol
    start = np.uint64(ends[place - _1]) & _SLOT
    frequency = np.uint64(ends[place]) - start
    due = np.uint64(x >= frequency << _EMIT)
    scratch[at - _1] = np.uint16(x)  # kept only when due
    at -= due
    x >>= _WORD * due
    # Exact in float64: the true quotient has 32 integer bits and is a multiple of 1 / frequency >= 2^-12.
    quotient = np.uint64(np.int64(np.float64(np.int64(x)) / np.float64(np.int64(frequency))))
    return (quotient << _PRECISION) + (x - quotient * frequency) + start, at


@_inline
def _table(node: Any, ids: Any, here: Any, phases: Any, strides: Any, model: Any) -> Any:
    """The table of a node at flat position ``here``: classes of both neighbours, then the node's map of pairs."""
    nodes, classes, tables, _, leaves = model
    border = np.uint64(leaves.shape[0])
    a = np.uint64(ids[here - strides[_0]]) if phases[0] >= strides[_0] else border
    b = np.uint64(ids[here - strides[_1]]) if phases[1] >= strides[_1] else border
    maps = np.uint64(nodes[node, _1])
    pair = np.uint64(classes[maps + a]) + np.uint64(classes[maps + border + _1 + b])
    return np.uint64(tables[np.uint64(nodes[node, _2]) + pair])


@_inline
def _decode_span(lanes: Any, begin: Any, end: Any, state: Any, grid: Any, words: Any, model: Any, out: Any) -> None:
    """Decode positions ``begin`` to ``end`` of the first ``lanes`` streams of ``state``, which share ``grid``."""
    x, at, node, base = state
    depth, strides, periods = grid
    nodes, _, tables, ends, leaves = model
    contexts = tables.shape[0] > 0
    phase_a, phase_b = begin % periods[_0], begin % periods[_1]
    for position in range(begin, end):
        for lane in range(lanes):
            node[lane] = _0
        for _ in range(depth):
            for lane in range(lanes):
                row = node[lane]
                first_child = np.uint64(nodes[row, _0])
                if contexts:
                    row = _table(row, out, base[lane] + position, (phase_a, phase_b), strides, model)
                x[lane], at[lane], symbol = _pop(x[lane], at[lane], row, words, ends)
                node[lane] = first_child + symbol
        for lane in range(lanes):
            out[base[lane] + position] = leaves[node[lane] - np.uint64(nodes.shape[0])]
        phase_a = phase_a + _1 if phase_a + _1 < periods[_0] else _0
        phase_b = phase_b + _1 if phase_b + _1 < periods[_1] else _0


@_inline
def _encode_span(
    lanes: Any, begin: Any, end: Any, state: Any, grid: Any, ids: Any, model: Any, tree: Any, scratch: Any
) -> None:
    """Encode positions ``end`` down to ``begin``, deepest step first: the reverse of :func:`_decode_span`."""
    x, at, node, base = state
    depth, strides, periods = grid
    nodes, _, tables, ends, _ = model
    leaf_nodes, parents = tree
    contexts = tables.shape[0] > 0
    phase_a, phase_b = end % periods[_0], end % periods[_1]
    for back in range(begin, end):
        position = begin + end - _1 - back
        phase_a = (phase_a if phase_a > _0 else periods[_0]) - _1
        phase_b = (phase_b if phase_b > _0 else periods[_1]) - _1
        for lane in range(lanes):
            node[lane] = np.uint64(leaf_nodes[np.uint64(ids[base[lane] + position])])
        for _ in range(depth):
            for lane in range(lanes):
                row = parent = np.uint64(parents[node[lane]])
                symbol = node[lane] - np.uint64(nodes[parent, _0])
                if contexts:
                    row = _table(parent, ids, base[lane] + position, (phase_a, phase_b), strides, model)
                x[lane], at[lane] = _push(x[lane], at[lane], row, symbol, ends, scratch)
                node[lane] = parent


@_inline
def _joint_size(first: Any, layout: Any, contexts: Any) -> Any:
    """Positions that the four streams from ``order[first]`` on advance together: none where they cannot."""
    _, sizes, strides, periods, order = layout
    if first + _LANES > np.uint64(order.shape[0]):
        return _0
    lead = order[first]
    size = np.uint64(sizes[lead])
    for lane in range(_1, _LANES):
        sample = order[first + lane]
        size = min(size, np.uint64(sizes[sample]))
        for axis in range(_2):
            if contexts and (
                strides[sample, axis] != strides[lead, axis] or periods[sample, axis] != periods[lead, axis]
            ):
                return _0
    return size


@_kernel
def decode(
    words: Any, first_words: Any, num_words: Any, layout: Any, depth: Any, model: Any, out: Any, damaged: Any
) -> None:
    """Decode the samples listed in ``order`` into ``out``; mark those whose stream does not end as it must."""
    first_ids, sizes, strides, periods, order = layout
    x = np.empty(LANES, np.uint64)
    at = np.empty(LANES, np.uint64)
    node = np.empty(LANES, np.uint64)
    base = np.empty(LANES, np.uint64)
    steps = np.uint64(depth)
    for first in range(_0, np.uint64(order.shape[0]), _LANES):
        lanes = min(_LANES, np.uint64(order.shape[0]) - first)
        for lane in range(lanes):
            sample = order[first + lane]
            word = np.uint64(first_words[sample])
            x[lane] = np.uint64(words[word]) | np.uint64(words[word + _1]) << _WORD
            at[lane] = word + _2
            base[lane] = np.uint64(first_ids[sample])
        joint = _joint_size(first, layout, model[2].shape[0] > 0)
        grid = (steps, strides[order[first]], periods[order[first]])
        _decode_span(_LANES, _0, joint, (x, at, node, base), grid, words, model, out)
        for lane in range(lanes):
            sample = order[first + lane]
            own = slice(lane, lane + _1)
            grid = (steps, strides[sample], periods[sample])
            state = (x[own], at[own], node[own], base[own])
            _decode_span(_1, joint, np.uint64(sizes[sample]), state, grid, words, model, out)
            damaged[sample] = x[lane] != _LOW or at[lane] != np.uint64(first_words[sample] + num_words[sample])


@_kernel
def encode(ids: Any, layout: Any, depth: Any, model: Any, tree: Any, scratch: Any, stops: Any, num_words: Any) -> None:
    """Encode the samples listed in ``order``: the stream of sample ``i`` ends just before ``scratch[stops[i]]``."""
    first_ids, sizes, strides, periods, order = layout
    x = np.empty(LANES, np.uint64)
    at = np.empty(LANES, np.uint64)
    node = np.empty(LANES, np.uint64)
    base = np.empty(LANES, np.uint64)
    steps = np.uint64(depth)
    for first in range(_0, np.uint64(order.shape[0]), _LANES):
        lanes = min(_LANES, np.uint64(order.shape[0]) - first)
        joint = _joint_size(first, layout, model[2].shape[0] > 0)
        for lane in range(lanes):
            sample = order[first + lane]
            x[lane] = _LOW
            at[lane] = np.uint64(stops[sample])
            base[lane] = np.uint64(first_ids[sample])
            own = slice(lane, lane + _1)
            grid = (steps, strides[sample], periods[sample])
            state = (x[own], at[own], node[own], base[own])
            _encode_span(_1, joint, np.uint64(sizes[sample]), state, grid, ids, model, tree, scratch)
        grid = (steps, strides[order[first]], periods[order[first]])
        _encode_span(_LANES, _0, joint, (x, at, node, base), grid, ids, model, tree, scratch)
        for lane in range(lanes):
            sample = order[first + lane]
            head = at[lane] - _2
            scratch[head] = np.uint16(x[lane])
            scratch[head + _1] = np.uint16(x[lane] >> _WORD)
            num_words[sample] = np.uint64(stops[sample]) - head


@_kernel
def gather(scratch: Any, stops: Any, num_words: Any, out: Any) -> None:
    """Copy the streams that end before ``stops`` back to back into ``out``."""
    at = _0
    for sample in range(np.uint64(stops.shape[0])):
        stop = np.uint64(stops[sample])
        for word in range(stop - np.uint64(num_words[sample]), stop):
            out[at] = scratch[word]
            at += _1
