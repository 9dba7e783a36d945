"""Compiled loops that decode order-0 models of two steps, 64 samples at a time in vectors of 16.

The same arithmetic as in `rans_kernels`, sample by sample, on tables by slot (`slot_tables`). All look-ups are gathers,
for which LLVM finds what the processor has: where it has no instruction, loads. Four vectors take turns because each
waits for its gathers most of the time.

Models are trusted, streams are not: places of words are held inside the buffer once a block, and any slot of any node
has an id.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from tokenshard.codecs.intrinsics import prefetch_entry, store64
from tokenshard.codecs.rans_kernels import BLOCK, inline, kernel
from tokenshard.codecs.slot_tables import FREQUENCY_BITS, NARROW_BITS, SLOT_BITS

_place: Callable[..., Any] = cgutils.gep_inbounds
_declared: Callable[..., Any] = cgutils.get_or_insert_function
_local: Callable[..., Any] = cgutils.alloca_once_value
_counted: Callable[..., Any] = cgutils.for_range
_Compiled = Callable[[Callable[..., Any]], Callable[..., Any]]
_intrinsic: _Compiled = intrinsic

WIDTH = 16
VECTORS = 4
LANES = WIDTH * VECTORS
"""Samples that are decoded together."""

FEWEST = 16
"""Samples from which on it pays: vectors take the same time however many of their lanes are in use."""

RUN = 4
"""Ids of a sample that are written at once."""

MOST_WORDS = (1 << 31) - 1
"""Words a buffer may have: places are signed 32-bit integers."""

_I16, _I32, _I64 = (ir.IntType(bits) for bits in (16, 32, 64))
_VECTOR = ir.VectorType(_I32, WIDTH)
_0, _1, _2, _3, _12, _13, _16, _25 = (np.uint64(i) for i in (0, 1, 2, 3, 12, 13, 16, 25))
_LANES, _RUN, _RUNS = np.uint64(LANES), np.uint64(RUN), np.uint64(BLOCK // RUN)
_FREQUENCY, _SLOT = np.uint64((1 << FREQUENCY_BITS) - 1), np.uint64(4095)
_LOW = np.uint64(1 << 16)
_BLOCK_WORDS = np.uint64(2 * BLOCK)
_FEW = np.uint64(3)  # samples that are sooner decoded one after the other
_AHEAD, _LINE = np.uint64(48), np.uint64(32)  # words from those that are decoded to those fetched; words of a line
_Builder: TypeAlias = Any
_Value: TypeAlias = Any


def pays(samples: int, words: int) -> bool:
    """Whether so many samples in so many words are sooner decoded here than by `rans_kernels`."""
    return samples >= FEWEST and words <= MOST_WORDS


def scratch() -> tuple[tuple[NDArray[np.uint32 | np.uint64], ...], NDArray[np.uint64]]:
    """What :func:`decode` takes last."""
    narrow, wide = np.zeros((2, LANES), np.uint32), np.zeros((3, LANES), np.uint64)
    return (*narrow, *wide), np.empty(BLOCK // RUN * LANES, np.uint64)


def _all(value: int) -> _Value:
    return ir.Constant(_VECTOR, [value] * WIDTH)


class _Emitter:
    """Instructions on vectors of WIDTH 32-bit integers."""

    def __init__(self, builder: _Builder) -> None:
        self._builder = builder
        address = _I32.as_pointer()
        self._always = ir.Constant(ir.VectorType(ir.IntType(1), WIDTH), [True] * WIDTH)
        parts = [ir.VectorType(address, WIDTH), _I32, self._always.type, _VECTOR]
        name = f"llvm.masked.gather.v{WIDTH}i32.v{WIDTH}{address.intrinsic_name}"
        self._gather = _declared(builder.module, ir.FunctionType(_VECTOR, parts), name)

    def gather(self, data: _Value, entry: _Value, places: _Value) -> _Value:
        """The 32 bits at ``places`` of an array whose entries have the type ``entry``."""
        base = self._builder.bitcast(data, _I32.as_pointer())
        addresses = self._builder.gep(base, [places], inbounds=True, source_etype=entry)
        addresses.type = ir.VectorType(base.type, WIDTH)  # llvmlite takes it for a single one
        return self._builder.call(self._gather, [addresses, ir.Constant(_I32, entry.width // 8), self._always, _all(0)])

    def slots(self, states: _Value) -> _Value:
        return self._builder.and_(states, _all(4095))

    def moved(self, states: _Value, moves: _Value, bits: int = FREQUENCY_BITS, rest_bits: int = SLOT_BITS) -> _Value:
        """States after a symbol, which may be due a word."""
        builder = self._builder
        frequencies = builder.and_(moves, _all((1 << bits) - 1))
        rest = builder.and_(builder.lshr(moves, _all(bits)), _all((1 << rest_bits) - 1))
        return builder.add(builder.mul(frequencies, builder.lshr(states, _all(12))), rest)

    def refilled(self, states: _Value, at: _Value, words: _Value) -> tuple[_Value, _Value, _Value]:
        """States after the low word of ``words`` where it is due; places of the next words, and these."""
        builder = self._builder
        due = builder.icmp_unsigned("<", states, _all(1 << 16))
        filled = builder.or_(builder.shl(states, _all(16)), builder.and_(words, _all(0xFFFF)))
        following = builder.add(at, _all(1)), builder.lshr(words, _all(16))
        return (
            builder.select(due, filled, states),
            builder.select(due, following[0], at),
            builder.select(due, following[1], words),
        )

    def store_runs(self, ids: list[_Value], runs: _Value, first: _Value) -> None:
        """Write RUN ids of each lane as one 64-bit integer, from entry ``first`` on."""
        builder = self._builder
        low, high = (builder.or_(ids[n], builder.shl(ids[n + 1], _all(16))) for n in (0, 2))
        for half in (0, WIDTH // 2):
            mixed = [half + lane // 2 + WIDTH * (lane % 2) for lane in range(WIDTH)]
            pairs = builder.shuffle_vector(low, high, ir.Constant(_VECTOR, mixed))
            place = _place(builder, runs, builder.add(first, ir.Constant(_I64, half)))
            builder.store(pairs, builder.bitcast(place, _VECTOR.as_pointer()), align=8)


def _vector_places(context: Any, builder: _Builder, kind: Any, array: _Value) -> list[_Value]:
    """Where each of the VECTORS is kept in an array of LANES entries."""
    data = context.make_array(kind)(context, builder, array).data
    places = (_place(builder, data, ir.Constant(_I64, WIDTH * n)) for n in range(VECTORS))
    return [builder.bitcast(place, _VECTOR.as_pointer()) for place in places]


@_intrinsic
def _decode_runs(
    typingctx: Any, words: Any, roots: Any, ids: Any, moves: Any, states: Any, places: Any, runs: Any, count: Any
) -> Any:
    """Decode ``count`` runs of RUN ids of all lanes into ``runs``, uint64 [count, LANES]: 16 bits an id."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        words, roots, ids, moves, _, _, runs = (
            context.make_array(kind)(context, builder, array).data
            for kind, array in zip(signature.args[:7], args[:7], strict=True)
        )
        kept = [place for n in (4, 5) for place in _vector_places(context, builder, signature.args[n], args[n])]
        held = [_local(builder, builder.load(place, align=4)) for place in kept]
        emit, every = _Emitter(builder), range(VECTORS)
        together = signature.args[2].dtype == types.uint32
        with _counted(builder, args[7]) as loop:
            loaded = [builder.load(place) for place in held]
            state, at = loaded[:VECTORS], loaded[VECTORS:]
            found: list[list[_Value]] = [[] for _ in every]
            for _ in range(RUN):  # look-ups of all vectors together, so that each waits while the others are at work
                due = [emit.gather(words, _I16, at[n]) for n in every]
                move = [emit.gather(roots, _I32, emit.slots(state[n])) for n in every]
                for n in every:
                    state[n] = emit.moved(state[n], move[n])
                    state[n], at[n], due[n] = emit.refilled(state[n], at[n], due[n])
                places = [
                    builder.or_(builder.shl(builder.lshr(move[n], _all(25)), _all(12)), emit.slots(state[n]))
                    for n in every
                ]
                if together:
                    move = [emit.gather(ids, _I32, places[n]) for n in every]
                    for n in every:
                        found[n].append(builder.lshr(move[n], _all(2 * NARROW_BITS)))
                        state[n] = emit.moved(state[n], move[n], NARROW_BITS, NARROW_BITS)
                else:
                    with_next = [emit.gather(ids, _I16, places[n]) for n in every]
                    for n in every:
                        found[n].append(builder.and_(with_next[n], _all(0xFFFF)))
                    move = [emit.gather(moves, _I32, found[n][-1]) for n in every]
                    for n in every:
                        slot = builder.shl(state[n], _all(FREQUENCY_BITS))
                        state[n] = emit.moved(state[n], builder.add(move[n], slot))
                for n in every:
                    state[n], at[n], _ = emit.refilled(state[n], at[n], due[n])
            for n in every:
                first = builder.add(builder.mul(loop.index, ir.Constant(_I64, LANES)), ir.Constant(_I64, WIDTH * n))
                emit.store_runs(found[n], runs, first)
            for place, value in zip(held, state + at, strict=True):
                builder.store(value, place)
        for place, kept_place in zip(held, kept, strict=True):
            builder.store(builder.load(place), kept_place, align=4)
        return context.get_dummy_value()

    return types.void(words, roots, ids, moves, states, places, runs, types.int64), codegen


@inline
def _step(x: Any, at: Any, move: Any, words: Any) -> Any:
    """One state after a symbol and the word that is due: (state, place of the next word)."""
    x = (move & _FREQUENCY) * (x >> _12) + (move >> _13 & _SLOT)
    word, due = np.uint64(words[at]), x < _LOW
    return (x << _16 | word) if due else x, at + np.uint64(due)


@inline
def _finish(lane: Any, lanes: Any, stream: Any, tables: Any, out: Any, damaged: Any) -> None:
    """Decode the rest of a lane's sample, an id after the other, and see whether its stream ends as it must."""
    states, places, sample, to, left = lanes
    words, first_words, num_words = stream
    roots, ids, shift, moves = tables
    own, last = sample[lane], np.uint64(words.shape[0]) - _1
    x, at = np.uint64(states[lane]), np.uint64(places[lane])
    for i in range(to[lane], to[lane] + left[lane]):
        root = np.uint64(roots[x & _SLOT])
        x, at = _step(x, min(at, last), root, words)
        found = np.uint64(ids[(root >> _25 << _12) | (x & _SLOT)]) >> shift
        out[i] = np.uint16(found)
        x, at = _step(x, min(at, last), np.uint64(moves[found]) + ((x & _SLOT) << _13), words)
    damaged[own] = x != _LOW or at != np.uint64(first_words[own] + num_words[own])


@inline
def _enter(lane: Any, own: Any, lanes: Any, stream: Any, layout: Any) -> None:
    """Give a lane a sample."""
    states, places, sample, to, left = lanes
    words, first_words, _ = stream
    word = np.uint64(first_words[own])
    states[lane] = np.uint32(np.uint64(words[word]) | np.uint64(words[word + _1]) << _16)
    places[lane] = np.uint32(word + _2)
    sample[lane], to[lane], left[lane] = own, np.uint64(layout[0][own]), np.uint64(layout[1][own])


@inline
def _leave(lane: Any, last: Any, lanes: Any) -> None:
    """Move what the last lane in use holds to a lane that is free."""
    states, places, sample, to, left = lanes
    states[lane], places[lane] = states[last], places[last]
    sample[lane], to[lane], left[lane] = sample[last], to[last], left[last]


@kernel
def decode(
    words: Any, first_words: Any, num_words: Any, layout: Any, tables: Any, out: Any, damaged: Any, lanes: Any,
    runs: Any,
) -> None:  # fmt: skip
    """Decode samples into ``out`` (uint16); mark those whose stream does not end as it must.

    ``words``: as in `rans_kernels`, at most MOST_WORDS. ``layout``: first id and size of each sample, and the order in
    which they are taken up. ``lanes`` is scratch, zeros: uint32 [LANES] twice, then
    uint64 [LANES] three times; so is ``runs``, uint64 [BLOCK / RUN * LANES].
    """
    states, places, _, to, left = lanes
    stream, (_, _, order) = (words, first_words, num_words), layout
    samples = np.uint64(order.shape[0])
    entered: Any = _0
    used: Any = _0
    last = np.uint64(words.shape[0]) - _BLOCK_WORDS
    while True:
        while used < _LANES and entered < samples:
            _enter(used, np.uint64(order[entered]), lanes, stream, layout)
            entered, used = entered + _1, used + _1
        if used == _0:
            return
        count, in_use = _RUNS if used > _FEW else _0, used
        for lane in range(in_use):
            count = min(count, left[lane] // _RUN)
        if count > _0:
            for lane in range(_LANES):
                # Damaged streams may lead here: to the end of the words, and in a block beyond. Valid ones do not.
                at = min(np.uint64(places[lane]), last)
                places[lane] = np.uint32(at)
                prefetch_entry(words, at + _AHEAD)
                prefetch_entry(words, at + _AHEAD + _LINE)
            _decode_runs(words, tables[0], tables[1], tables[3], states, places, runs, np.int64(count))
            for lane in range(in_use):
                for run in range(count):
                    store64(out, to[lane] + _RUN * run, runs[run * _LANES + lane])
                to[lane] += _RUN * count
                left[lane] -= _RUN * count
        for back in range(in_use):
            lane = in_use - _1 - back
            if left[lane] < _RUN or in_use <= _FEW:
                _finish(lane, lanes, stream, tables, out, damaged)
                used -= _1
                _leave(lane, used, lanes)
