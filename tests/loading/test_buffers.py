from __future__ import annotations

import numpy as np

from tokenshard.loading.buffers import GRAIN, Buffers


def address(array: np.ndarray) -> int:
    return int(array.ctypes.data)


def test_memory_comes_back_once_no_array_looks_at_it() -> None:
    buffers = Buffers(1 << 20)
    first = buffers.take(100_000)
    place = address(first)
    part = memoryview(first)[10:20]
    del first
    assert address(buffers.take(100_000)) != place
    array = np.frombuffer(part, np.uint16)
    del part
    assert address(buffers.take(100_000)) != place
    del array
    assert place in {address(taken) for taken in [buffers.take(90_000) for _ in range(3)]}


def test_no_more_is_kept_than_allowed() -> None:
    buffers = Buffers(2 * GRAIN)
    taken = [buffers.take(10) for _ in range(4)]
    assert buffers.idle == 0
    del taken
    assert buffers.idle == 2 * GRAIN


def test_sizes_are_those_asked_for() -> None:
    buffers = Buffers(1 << 20)
    for size in (0, 1, GRAIN, GRAIN + 1, 1_000_003):
        assert buffers.take(size).shape == (size,)
