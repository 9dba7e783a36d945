"""Seconds of a unit by stage: where its time went."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal, TypeVar

T = TypeVar("T")

Stage = Literal["read", "encode", "code", "commit"]
"""Fetch and decode inputs (with decode threads: the wait for them), make ids, entropy-code them, put files."""


class Stages:
    """Adds up seconds of a clock; used by the thread that runs the unit."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, stage: Stage) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - started)

    def iterate(self, stage: Stage, items: Iterable[T]) -> Iterator[T]:
        """The items, with the time that each took to come."""
        source = iter(items)
        while True:
            started = time.perf_counter()
            try:
                item = next(source)
            except StopIteration:
                return
            finally:
                self.add(stage, time.perf_counter() - started)
            yield item

    def add(self, stage: Stage, seconds: float) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
