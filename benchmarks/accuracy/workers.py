"""Runs of the benchmark here, or several at a time in processes of their own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch

from accuracy.arms import Arms

Call = tuple[str, tuple[Any, ...]]
"""A method of the arms and what it is given."""

_arms: Arms | None = None


def _begin(make: Callable[[], Arms]) -> None:
    global _arms
    torch.set_num_threads(1)
    _arms = make()


def _perform(call: Call) -> Any:
    assert _arms is not None
    return getattr(_arms, call[0])(*call[1])


class Workers:
    """Performs calls of arms, ``processes`` of them at a time; they meet in the files of the arms."""

    def __init__(self, make: Callable[[], Arms], processes: int) -> None:
        self.arms = make()
        self._pool: ProcessPoolExecutor | None = None
        if processes > 1:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(processes, context, _begin, (make,))

    def results(self, calls: Iterable[Call]) -> Iterator[Any]:
        """What calls return, in their order; they begin in it, too."""
        if self._pool is None:
            return (getattr(self.arms, name)(*given) for name, given in calls)
        return self._pool.map(_perform, calls)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()
