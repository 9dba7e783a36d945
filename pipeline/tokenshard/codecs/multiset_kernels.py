"""Compiled loops of the `multiset` codec: rANS over the counts at the nodes of a tree, from the root down.

The coder is the one of `rans_kernels`: a 32-bit state from 2^16 on, 16-bit words, frequencies that sum to 4096.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

from tokenshard.compiled import kernel as compiled

_Compiled = Callable[[Callable[..., Any]], Callable[..., Any]]
_kernel: _Compiled = compiled(error_model="numpy")
_inline: _Compiled = njit(forceinline=True, error_model="numpy")

BUCKETS = 32
"""A node of so many ids or more has its count coded as one of as many buckets, and the place in it."""

ROW = (BUCKETS - 2) * (BUCKETS + 1) // 2 + BUCKETS
"""Entries of a law: those of each number of ids from 1 to 31, one a count."""

_DEPTH = 64
_LOW, _12, _16, _20 = np.uint64(1 << 16), np.uint64(12), np.uint64(16), np.uint64(20)
_SLOT = np.uint64((1 << 12) - 1)


@_inline
def _first(ids: Any) -> Any:
    """Where in a law the entries of a node of so many ids begin."""
    return (ids - 1) * (ids + 2) // 2


@_inline
def _below(ids: Any, first: Any, last: Any, bound: Any) -> Any:
    """The first place in the sorted ``ids[first:last]`` of an id that is not below the bound."""
    while first < last:
        middle = (first + last) >> 1
        if ids[middle] < bound:
            first = middle + 1
        else:
            last = middle
    return first


@_inline
def _bucket(count: Any, ids: Any) -> Any:
    """Of a count of 0 to ``ids``: (its bucket, the first count in it, counts in it)."""
    bucket = count * BUCKETS // (ids + 1)
    start = -(-bucket * (ids + 1) // BUCKETS)
    return bucket, start, -(-(bucket + 1) * (ids + 1) // BUCKETS) - start


@_kernel
def observe(ids: Any, sizes: Any, alphabet: Any, bits: Any, costs: Any) -> None:
    """Add to ``costs`` [alphabet, laws] what the counts at each node cost in bits by each law of ``bits`` [laws, ROW].

    A node is known by the first id of its right part.
    """
    stack = np.empty((_DEPTH, 4), np.int64)
    begin = 0
    for sample in range(sizes.shape[0]):
        stack[0, 0], stack[0, 1], stack[0, 2], stack[0, 3] = 0, alphabet, begin, begin + sizes[sample]
        begin += sizes[sample]
        depth = 1
        while depth > 0:
            depth -= 1
            low, high, first, last = stack[depth, 0], stack[depth, 1], stack[depth, 2], stack[depth, 3]
            if first == last or high - low < 2:
                continue
            middle = (low + high) >> 1
            cut = _below(ids, first, last, middle)
            size, count = last - first, cut - first
            if size >= BUCKETS:
                size, count = BUCKETS - 1, _bucket(count, size)[0]
            place = _first(size) + count
            for law in range(bits.shape[0]):
                costs[middle, law] += bits[law, place]
            stack[depth, 0], stack[depth, 1], stack[depth, 2], stack[depth, 3] = middle, high, cut, last
            stack[depth + 1, 0], stack[depth + 1, 1], stack[depth + 1, 2] = low, middle, first
            stack[depth + 1, 3] = cut
            depth += 2


@_inline
def _note(steps: Any, used: Any, start: Any, frequency: Any) -> Any:
    steps[used, 0], steps[used, 1] = start, frequency
    return used + 1


@_kernel
def encode(ids: Any, sizes: Any, alphabet: Any, laws: Any, ends: Any, steps: Any, words: Any, num_words: Any) -> Any:
    """Streams of all samples to ``words``; returns the words used.

    ``laws`` [alphabet]: the law of each node; ``ends`` [laws, ROW]: where the interval of each count ends. ``steps``
    is scratch, int64 [3 * nodes that the largest sample can visit, 2].
    """
    stack = np.empty((_DEPTH, 4), np.int64)
    begin, written = 0, 0
    for sample in range(sizes.shape[0]):
        num_words[sample] = 0
        stack[0, 0], stack[0, 1], stack[0, 2], stack[0, 3] = 0, alphabet, begin, begin + sizes[sample]
        begin += sizes[sample]
        if sizes[sample] == 0:
            continue
        used, depth = 0, 1
        while depth > 0:
            depth -= 1
            low, high, first, last = stack[depth, 0], stack[depth, 1], stack[depth, 2], stack[depth, 3]
            if first == last or high - low < 2:
                continue
            middle = (low + high) >> 1
            cut = _below(ids, first, last, middle)
            size, count, rest, width = last - first, cut - first, 0, 1
            if size >= BUCKETS:
                bucket, start, width = _bucket(count, size)
                size, count, rest = BUCKETS - 1, bucket, count - start
            place = _first(size) + count
            before = np.int64(ends[laws[middle], place - 1]) if count > 0 else 0
            used = _note(steps, used, before, np.int64(ends[laws[middle], place]) - before)
            if width > 4096:
                used = _note(steps, used, rest & 4095, 1)
                rest, width = rest >> 12, ((width - 1) >> 12) + 1
            if width > 1:
                before = (rest << 12) // width
                used = _note(steps, used, before, ((rest + 1) << 12) // width - before)
            stack[depth, 0], stack[depth, 1], stack[depth, 2], stack[depth, 3] = middle, high, cut, last
            stack[depth + 1, 0], stack[depth + 1, 1], stack[depth + 1, 2] = low, middle, first
            stack[depth + 1, 3] = cut
            depth += 2
        x, tail = _LOW, written
        for step in range(used - 1, -1, -1):
            frequency = np.uint64(steps[step, 1])
            if x >= frequency << _20:
                words[tail] = np.uint16(x & np.uint64(0xFFFF))
                tail += 1
                x >>= _16
            x = (x // frequency << _12) + x % frequency + np.uint64(steps[step, 0])
        words[tail] = np.uint16(x >> _16)
        words[tail + 1] = np.uint16(x & np.uint64(0xFFFF))
        tail += 2
        words[written:tail] = words[written:tail][::-1].copy()
        num_words[sample] = tail - written
        written = tail
    return written


@_inline
def _take(state: Any, start: Any, frequency: Any, words: Any, stop: Any) -> None:
    """Take an interval of the slots off ``state`` (rANS state, place of the next word)."""
    x = frequency * (state[0] >> _12) + (state[0] & _SLOT) - start
    if x < _LOW and state[1] < stop:
        x = x << _16 | np.uint64(words[state[1]])
        state[1] += np.uint64(1)
    state[0] = x


@_inline
def _take_uniform(state: Any, width: Any, words: Any, stop: Any) -> Any:
    """A number below ``width``, which is at most 4096."""
    slot = np.int64(state[0] & _SLOT)
    number = (slot * width + width - 1) >> 12
    while (number << 12) // width > slot:
        number -= 1
    while ((number + 1) << 12) // width <= slot:
        number += 1
    start = (number << 12) // width
    _take(state, np.uint64(start), np.uint64(((number + 1) << 12) // width - start), words, stop)
    return number


@_inline
def _take_count(state: Any, size: Any, law: Any, ends: Any, words: Any, stop: Any) -> Any:
    """The count of the left part of a node of ``size`` ids: always 0 to ``size``."""
    wide = size >= BUCKETS
    shown = BUCKETS - 1 if wide else size
    first = _first(shown)
    slot = np.int64(state[0] & _SLOT)
    low, high = 0, shown
    while low < high:
        middle = (low + high) >> 1
        if ends[law, first + middle] <= slot:
            low = middle + 1
        else:
            high = middle
    before = np.int64(ends[law, first + low - 1]) if low > 0 else 0
    _take(state, np.uint64(before), np.uint64(np.int64(ends[law, first + low]) - before), words, stop)
    if not wide:
        return low
    start = -(-low * (size + 1) // BUCKETS)
    width = -(-(low + 1) * (size + 1) // BUCKETS) - start
    rest: Any = 0
    shift = 0
    whole = width
    if width > 4096:
        rest = np.int64(state[0] & _SLOT)
        _take(state, np.uint64(rest), np.uint64(1), words, stop)
        width, shift = ((width - 1) >> 12) + 1, 12
    if width > 1:
        rest |= _take_uniform(state, width, words, stop) << shift
    return start + min(rest, whole - 1)


@_kernel
def decode(words: Any, firsts: Any, sizes: Any, alphabet: Any, laws: Any, ends: Any, out: Any, damaged: Any) -> None:
    """Sorted ids of all samples, back to back; marks those whose stream does not end as it must.

    ``firsts`` [samples + 1]: words of each sample. No word beyond these is read, whatever they are.
    """
    stack = np.empty((_DEPTH, 3), np.int64)
    state = np.empty(2, np.uint64)
    at = 0
    for sample in range(sizes.shape[0]):
        stop = np.uint64(firsts[sample + 1])
        if sizes[sample] == 0 or firsts[sample + 1] - firsts[sample] < 2:
            damaged[sample] = sizes[sample] != 0 or firsts[sample + 1] != firsts[sample]
            out[at : at + sizes[sample]] = 0
            at += sizes[sample]
            continue
        state[1] = np.uint64(firsts[sample])
        state[0] = np.uint64(words[state[1]]) | np.uint64(words[state[1] + np.uint64(1)]) << _16
        state[1] += np.uint64(2)
        stack[0, 0], stack[0, 1], stack[0, 2] = 0, alphabet, sizes[sample]
        depth = 1
        while depth > 0:
            depth -= 1
            low, high, size = stack[depth, 0], stack[depth, 1], stack[depth, 2]
            if high - low < 2:
                out[at : at + size] = low
                at += size
                continue
            middle = (low + high) >> 1
            count = _take_count(state, size, laws[middle], ends, words, stop)
            if count < size:
                stack[depth, 0], stack[depth, 1], stack[depth, 2] = middle, high, size - count
                depth += 1
            if count > 0:
                stack[depth, 0], stack[depth, 1], stack[depth, 2] = low, middle, count
                depth += 1
        damaged[sample] = state[0] != _LOW or state[1] != stop
