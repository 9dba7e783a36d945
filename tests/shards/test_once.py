from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tokenshard.shards.once import OnceCache


def test_what_several_threads_ask_for_at_once_is_made_once() -> None:
    made: list[int] = []
    together = threading.Barrier(8)

    def make(number: int) -> int:
        made.append(number)
        threading.Event().wait(0.02)
        return number * number

    cache = OnceCache(make, 4)

    def ask(number: int) -> int:
        together.wait()
        return cache(number)

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(ask, [1, 2] * 4)) == [1, 4] * 4
    assert sorted(made) == [1, 2]


def test_the_values_used_last_are_kept() -> None:
    made: list[int] = []
    cache = OnceCache(lambda number: made.append(number) or number, 2)
    for number in (1, 2, 1, 3, 1, 2):
        assert cache(number) == number
    assert made == [1, 2, 3, 2]


def test_a_failure_is_not_kept() -> None:
    answers = iter([OSError("away"), 7])

    def make(number: int) -> int:
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    cache = OnceCache(make, 2)
    with pytest.raises(OSError, match="away"):
        cache(0)
    assert cache(0) == 7
