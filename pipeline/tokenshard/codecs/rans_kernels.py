"""Compiled loops of the `context` codec: rANS over the arrays of `kernel_arrays`.

One 32-bit state a stream; up to eight streams advance in lockstep, whatever their grids, because the dependent steps
of a single one, and its waits for tables, leave most of a core idle. Everything is unsigned 64-bit: numba then drops
its test for negative indices, and the product of a state and a frequency cannot overflow. The functions trust the model
arrays (checked when a model is built) but never the streams: places of words are held inside the buffer, and a slot is
always below the last end of its table.

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

from tokenshard.codecs.intrinsics import prefetch_entry
from tokenshard.compiled import kernel as compiled

_place: Callable[..., Any] = cgutils.gep_inbounds
_Compiled = Callable[[Callable[..., Any]], Callable[..., Any]]
_intrinsic: _Compiled = intrinsic
# Without reference counts: they would be kept for every array of a tuple at every call, in the innermost loop.
_OPTIONS: dict[str, Any] = {"error_model": "numpy", "_nrt": False}
inline: _Compiled = njit(forceinline=True, **_OPTIONS)
kernel: _Compiled = compiled(**_OPTIONS)

LANES = 8
"""Streams that advance in lockstep, at most."""

BLOCK = 64
"""Positions between two tests of the places of the next words."""

STATE = 16
"""Entries a lane has: rANS state, place of the next word, first id, both neighbours' rows, node, its table; then its
sample, size, both neighbours' strides and periods, and how far the position is in each period."""

_X, _AT, _BASE, _FIRST, _SECOND, _NODE, _TABLE, _SAMPLE, _SIZE = (np.uint64(i) for i in range(9))
_STRIDE_A, _STRIDE_B, _PERIOD_A, _PERIOD_B, _PHASE_A, _PHASE_B = (np.uint64(i) for i in range(9, 15))
_0, _1, _2, _3, _4, _16, _32 = (np.uint64(i) for i in (0, 1, 2, 3, 4, 16, 32))
_BLOCK = np.uint64(BLOCK)
_LANES, _STATE = np.uint64(LANES), np.uint64(STATE)
_PRECISION = np.uint64(12)  # log2 of the sum of a table's frequencies
_SLOT = np.uint64((1 << 12) - 1)
_WORD = np.uint64(16)
_LOW = np.uint64(1 << 16)  # the smallest state, and the one an encoder starts from
_EMIT = np.uint64(20)  # a state of frequency << 20 or more gives away a word before it takes a symbol


def _symbol_counter(size: int) -> Callable[..., Any]:
    """An intrinsic: how many of the ``size`` entries (at most 4096) from ``ends[first]`` on are above a slot.

    One compare of whole vectors. The masks of two vectors are merged byte by byte, as their order does not matter.
    """

    @_intrinsic
    def count_above(typingctx: Any, ends: Any, first: Any, slot: Any) -> Any:
        signature = types.uint64(ends, types.uint64, types.uint64)

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            array = context.make_array(signature.args[0])(context, builder, args[0])
            i16, i32, i64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
            words, as_bytes = ir.VectorType(i16, 16), ir.VectorType(ir.IntType(8), 32)
            undefined = ir.Constant(words, ir.Undefined)
            slots = builder.insert_element(undefined, builder.trunc(args[2], i16), ir.Constant(i32, 0))
            slots = builder.shuffle_vector(slots, undefined, ir.Constant(ir.VectorType(i32, 16), [0] * 16))
            masks = []
            for begin in range(0, size, 16):
                place = builder.add(args[1], ir.Constant(i64, begin))
                row = builder.load(_place(builder, array.data, place), align=2, typ=words)
                above = builder.sext(builder.icmp_signed(">", row, slots), words)
                masks.append(builder.bitcast(above, as_bytes))
            if size == 32:
                merged = [i + 32 * (i & 1) for i in range(32)]
                masks = [builder.shuffle_vector(*masks, ir.Constant(ir.VectorType(i32, 32), merged))]
            bits = builder.icmp_signed("<", masks[0], ir.Constant(as_bytes, None))
            count = builder.zext(builder.ctpop(builder.bitcast(bits, i32)), i64)
            return count if size == 32 else builder.lshr(count, ir.Constant(i64, 1))

        return signature, codegen

    return count_above


_above_of_16 = _symbol_counter(16)
_above_of_32 = _symbol_counter(32)


@inline
def table_row(node: Any, pair: Any, step: Any, model: Any, contexts: Any) -> Any:
    """First entry in ``ends`` of the table that a node uses; ``pair``: rows of its neighbours in ``classes``."""
    nodes, _, classes, _, refined, pairs, _, _ = model
    shift, clusters = step
    row = np.uint64(nodes[_4 * node + _2])
    if contexts:
        column = np.uint64(nodes[_4 * node + _1])
        a, b = np.uint64(classes[pair[0] + column]), np.uint64(classes[pair[1] + column])
        if clusters > _0:
            own = np.uint64(nodes[_4 * node + _3])
            a, b = np.uint64(refined[own + a]), np.uint64(refined[own + clusters + b])
        row = np.uint64(pairs[row + (a << shift | b)])
    return row << _4


@inline
def pop(x: Any, first: Any, wide: Any, ends: Any) -> Any:
    """Take a symbol from a state: (state that may be due a word, symbol)."""
    slot = x & _SLOT
    place = first + (_32 - _above_of_32(ends, first, slot) if wide else _16 - _above_of_16(ends, first, slot))
    start = np.uint64(ends[place - _1]) & _SLOT  # the entry before a table is 4096: start 0
    return (np.uint64(ends[place]) - start) * (x >> _PRECISION) + slot - start, place - first


@inline
def push(x: Any, at: Any, place: Any, ends: Any, scratch: Any) -> Any:
    """Put a symbol on a state, words going to ``scratch`` downwards: (state, place of the last word)."""
    start = np.uint64(ends[place - _1]) & _SLOT
    frequency = np.uint64(ends[place]) - start
    due = np.uint64(x >= frequency << _EMIT)
    scratch[at - _1] = np.uint16(x)  # kept only when due
    x >>= _WORD * due
    # Exact in float64: the true quotient has 32 integer bits and is a multiple of 1 / frequency >= 2^-12.
    quotient = np.uint64(np.int64(np.float64(np.int64(x)) / np.float64(np.int64(frequency))))
    return (quotient << _PRECISION) + (x - quotient * frequency) + start, at - due


@inline
def _find_neighbours(state: Any, lane: Any, position: Any, phases: Any, ids: Any, beside: Any, model: Any) -> None:
    """Enter the rows in ``classes`` of both neighbours of a lane's id at ``position``."""
    (row, second), border = model[3], np.uint64(model[7].shape[0])
    stride_a, stride_b = state[lane + _STRIDE_A], state[lane + _STRIDE_B]
    known_a, known_b = phases[0] >= stride_a, phases[1] >= stride_b
    # Where there is none, an id that is there is read and not used.
    here = state[lane + _BASE] + position
    a, b = np.uint64(ids[here - (stride_a if known_a else _0)]), np.uint64(beside[here - (stride_b if known_b else _0)])
    a, b = (a if known_a else border) * row, (b if known_b else border) * row + second
    state[lane + _FIRST], state[lane + _SECOND] = a, b
    prefetch_entry(model[2], a)
    prefetch_entry(model[2], b)
    prefetch_entry(model[2], a + row - _1)
    prefetch_entry(model[2], b + row - _1)


@inline
def _enter_phases(lanes: Any, position: Any, state: Any) -> None:
    """How far ``position`` is in the periods of each lane."""
    for lane in range(lanes):
        own = _STATE * lane
        state[own + _PHASE_A] = position % state[own + _PERIOD_A]
        state[own + _PHASE_B] = position % state[own + _PERIOD_B]


@inline
def _decode_span(
    lanes: Any, begin: Any, end: Any, state: Any, words: Any, model: Any, out: Any, beside: Any, contexts: Any
) -> None:
    """Decode positions ``begin`` to ``end`` of the first ``lanes`` streams of ``state``."""
    nodes, steps, _, _, _, _, _, leaves = model
    leaf = np.uint64(nodes.shape[0]) >> _2
    last = np.uint64(words.shape[0]) - _BLOCK * np.uint64(steps.shape[0])
    _enter_phases(lanes, begin, state)
    for block in range(begin, end, _BLOCK):
        for lane in range(lanes):
            # Damaged streams may lead here: to the end of the words, and in a block beyond. Valid ones do not.
            state[_STATE * lane + _AT] = min(state[_STATE * lane + _AT], last)
        for position in range(block, min(block + _BLOCK, end)):
            for lane in range(lanes):
                own = _STATE * lane
                state[own + _NODE] = _0
                if contexts:
                    a, b = state[own + _PHASE_A], state[own + _PHASE_B]
                    _find_neighbours(state, own, position, (a, b), out, beside, model)
                    state[own + _PHASE_A] = a + _1 if a + _1 < state[own + _PERIOD_A] else _0
                    state[own + _PHASE_B] = b + _1 if b + _1 < state[own + _PERIOD_B] else _0
            for number in range(np.uint64(steps.shape[0])):
                wide, step = steps[number, _0] > _0, (steps[number, _1], steps[number, _2])
                # In two rounds: the tables of all lanes are on their way before the first is needed.
                for lane in range(lanes):
                    own = _STATE * lane
                    pair = state[own + _FIRST], state[own + _SECOND]
                    state[own + _TABLE] = table_row(state[own + _NODE], pair, step, model, contexts)
                    prefetch_entry(model[6], state[own + _TABLE])
                for lane in range(lanes):
                    _descend(state, _STATE * lane, wide, words, model)
            for lane in range(lanes):
                out[state[_STATE * lane + _BASE] + position] = leaves[state[_STATE * lane + _NODE] - leaf]


@inline
def _descend(state: Any, lane: Any, wide: Any, words: Any, model: Any) -> None:
    """Take a symbol by the table of a lane's node, then a word if one is due, and go down to that child."""
    node, at = state[lane + _NODE], state[lane + _AT]
    x, symbol = pop(state[lane + _X], state[lane + _TABLE], wide, model[6])
    word = np.uint64(words[at])
    due = x < _LOW  # nearly a coin toss, so without a branch
    state[lane + _X] = (x << _WORD | word) if due else x
    state[lane + _AT] = at + np.uint64(due)
    state[lane + _NODE] = np.uint64(model[0][_4 * node]) + symbol


@inline
def _encode_span(
    lanes: Any, begin: Any, end: Any, state: Any, ids: Any, beside: Any, model: Any, tree: Any, scratch: Any,
    contexts: Any,
) -> None:  # fmt: skip
    """Encode positions ``end`` down to ``begin``, deepest step first: the reverse of :func:`_decode_span`."""
    nodes, steps, _, _, _, _, ends, _ = model
    depth, (leaf_nodes, parents) = np.uint64(steps.shape[0]), tree
    _enter_phases(lanes, end, state)
    for back in range(begin, end):
        position = begin + end - _1 - back
        for lane in range(lanes):
            own = _STATE * lane
            if contexts:
                a, b = state[own + _PHASE_A], state[own + _PHASE_B]
                a, b = (a if a > _0 else state[own + _PERIOD_A]) - _1, (b if b > _0 else state[own + _PERIOD_B]) - _1
                state[own + _PHASE_A], state[own + _PHASE_B] = a, b
                _find_neighbours(state, own, position, (a, b), ids, beside, model)
            state[own + _NODE] = np.uint64(leaf_nodes[np.uint64(ids[state[own + _BASE] + position])])
        for up in range(depth):
            step = steps[depth - _1 - up, _1], steps[depth - _1 - up, _2]
            for lane in range(lanes):
                own = _STATE * lane
                node = state[own + _NODE]
                parent = np.uint64(parents[node])
                place = table_row(parent, (state[own + _FIRST], state[own + _SECOND]), step, model, contexts)
                place += node - np.uint64(nodes[_4 * parent])
                state[own + _NODE] = parent
                x, at = push(state[own + _X], state[own + _AT], place, ends, scratch)
                state[own + _X], state[own + _AT] = x, at


@inline
def _enter(first: Any, layout: Any, state: Any) -> Any:
    """Give each of the next samples a lane, larger ones first; returns the number of lanes."""
    first_ids, sizes, strides, periods, order = layout
    lanes = min(_LANES, np.uint64(order.shape[0]) - first)
    for lane in range(lanes):
        own, sample = _STATE * lane, order[first + lanes - _1 - lane]
        state[own + _SAMPLE], state[own + _SIZE] = np.uint64(sample), np.uint64(sizes[sample])
        state[own + _BASE] = np.uint64(first_ids[sample])
        state[own + _STRIDE_A], state[own + _STRIDE_B] = strides[sample, _0], strides[sample, _1]
        state[own + _PERIOD_A], state[own + _PERIOD_B] = periods[sample, _0], periods[sample, _1]
    return lanes


@inline
def _decode_all(
    words: Any, first_words: Any, num_words: Any, layout: Any, model: Any, out: Any, beside: Any, damaged: Any,
    state: Any, contexts: Any,
) -> None:  # fmt: skip
    for first in range(_0, np.uint64(layout[4].shape[0]), _LANES):
        lanes = _enter(first, layout, state)
        for lane in range(lanes):
            own = _STATE * lane
            word = np.uint64(first_words[state[own + _SAMPLE]])
            state[own + _X] = np.uint64(words[word]) | np.uint64(words[word + _1]) << _WORD
            state[own + _AT] = word + _2
        done = _0
        for ended in range(lanes):  # all together up to the end of the shortest, then fewer and fewer
            size = state[_STATE * (lanes - _1 - ended) + _SIZE]
            _decode_span(lanes - ended, done, size, state, words, model, out, beside, contexts)
            done = size
        for lane in range(lanes):
            own = _STATE * lane
            sample = state[own + _SAMPLE]
            stop = np.uint64(first_words[sample] + num_words[sample])
            damaged[sample] = state[own + _X] != _LOW or state[own + _AT] != stop


@kernel
def decode(
    words: Any,
    first_words: Any,
    num_words: Any,
    layout: Any,
    model: Any,
    out: Any,
    beside: Any,
    damaged: Any,
    state: Any,
) -> None:
    """Decode the samples listed in ``order`` into ``out``; mark those whose stream does not end as it must.

    ``words``: the streams, then BLOCK words a step of the tree and one more, so that places are tested once a block.
    ``beside`` holds the second neighbours: ``out`` itself, or the ids of the level before. ``state`` is scratch,
    uint64 [LANES * STATE].
    """
    # The constant makes two copies of the loops, so that order-0 models do not test for contexts at every symbol.
    if model[5].shape[0] > 0:
        _decode_all(words, first_words, num_words, layout, model, out, beside, damaged, state, True)
    else:
        _decode_all(words, first_words, num_words, layout, model, out, beside, damaged, state, False)


@inline
def _encode_all(
    ids: Any, beside: Any, layout: Any, model: Any, tree: Any, scratch: Any, stops: Any, num_words: Any, state: Any,
    contexts: Any,
) -> None:  # fmt: skip
    for first in range(_0, np.uint64(layout[4].shape[0]), _LANES):
        lanes = _enter(first, layout, state)
        for lane in range(lanes):
            own = _STATE * lane
            state[own + _X] = _LOW
            state[own + _AT] = np.uint64(stops[state[own + _SAMPLE]])
        for lane in range(lanes):  # the end of the longest alone, then more and more with it
            shorter = state[_STATE * (lane + _1) + _SIZE] if lane + _1 < lanes else _0
            size = state[_STATE * lane + _SIZE]
            _encode_span(lane + _1, shorter, size, state, ids, beside, model, tree, scratch, contexts)
        for lane in range(lanes):
            own = _STATE * lane
            sample, head = state[own + _SAMPLE], state[own + _AT] - _2
            scratch[head] = np.uint16(state[own + _X])
            scratch[head + _1] = np.uint16(state[own + _X] >> _WORD)
            num_words[sample] = np.uint64(stops[sample]) - head


@kernel
def encode(
    ids: Any, beside: Any, layout: Any, model: Any, tree: Any, scratch: Any, stops: Any, num_words: Any, state: Any
) -> None:
    """Encode the samples listed in ``order``: the stream of sample ``i`` ends just before ``scratch[stops[i]]``.

    ``beside`` holds the second neighbours: ``ids`` itself, or the ids of the level before. ``tree``: the node of each
    id's leaf, and the parent of each node. ``state`` is scratch, uint64 [LANES * STATE].
    """
    if model[5].shape[0] > 0:
        _encode_all(ids, beside, layout, model, tree, scratch, stops, num_words, state, True)
    else:
        _encode_all(ids, beside, layout, model, tree, scratch, stops, num_words, state, False)


@kernel
def gather(scratch: Any, stops: Any, num_words: Any, out: Any) -> None:
    """Copy the streams that end before ``stops`` back to back into ``out``."""
    at = _0
    for sample in range(np.uint64(stops.shape[0])):
        stop = np.uint64(stops[sample])
        for word in range(stop - np.uint64(num_words[sample]), stop):
            out[at] = scratch[word]
            at += _1
