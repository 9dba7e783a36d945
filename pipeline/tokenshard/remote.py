"""How long an answer of remote storage is waited for: deadlines, and a second request where the first one is late."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from threading import Lock
from typing import Any, TypeVar

T = TypeVar("T")

KNOWN = 128
"""Latest answers whose times are remembered."""
LEAST_KNOWN = 16
"""Answers before which nothing is hedged."""
PERCENTILE = 95
FLOOR = 0.05
"""Seconds before which no second request is sent."""
BUDGET = 0.05
"""Second requests, as a share of all reads."""
TRIES = 3
"""Attempts without any answer that a deadline has room for."""


class Patience:
    """The time left for an operation, over all of its attempts."""

    def __init__(self, seconds: float, more: float | None = 0) -> None:
        """``more`` seconds for each attempt, as it brings much; None: an attempt takes as long as it takes."""
        self._share, self._more = seconds / TRIES, more
        self._end = time.monotonic() + seconds + (more or 0)

    def left(self) -> float:
        """Seconds in which another attempt may begin; never below 0."""
        return max(0.0, self._end - time.monotonic())

    def attempt(self) -> float | None:
        """Seconds that one attempt may take; None: as many as it takes."""
        return None if self._more is None else max(1e-3, min(self._share + self._more, self.left()))


def request(
    filesystem: Any, name: str, subject: str, patience: Patience | None, hedge: Hedge | None = None, **arguments: Any
) -> Any:
    """What the method ``name`` of an fsspec file system says of ``subject``. Raises TimeoutError if it is late.

    File systems without asynchronous methods, which remote ones seldom are, are waited for as long as they take.
    """
    if not getattr(filesystem, "async_impl", False):
        return getattr(filesystem, name)(subject, **arguments)
    from fsspec.asyn import sync

    method = partial(getattr(filesystem, f"_{name}"), subject, **arguments)
    if hedge is not None:
        method = partial(hedge.fetch, method)
    return sync(filesystem.loop, method, timeout=patience.attempt() if patience is not None else None)


class Hedge:
    """Decides when a second request is sent, from the times of the answers before. Thread-safe.

    Source: Dean and Barroso, "The tail at scale" (CACM 2013).
    """

    def __init__(self) -> None:
        self.reads = self.sent = self.won = 0
        """reads; second requests; those that answered first"""
        self._seconds: deque[float] = deque(maxlen=KNOWN)
        self._lock = Lock()

    async def fetch(self, request: Callable[[], Awaitable[T]]) -> T:
        """The answer to a request, which may be sent twice. Raises what the last of them raises."""
        with self._lock:
            self.reads += 1
            delay = self._delay()
        started = time.monotonic()
        first = asyncio.ensure_future(request())
        tasks = {first}
        try:
            if delay is not None:
                await asyncio.wait(tasks, timeout=delay)
                if not first.done() and self._may_send():
                    tasks.add(asyncio.ensure_future(request()))
            while True:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                task = min(done, key=lambda each: each.exception() is not None)  # a success, where there is one
                tasks -= done
                if task.exception() is None or not tasks:
                    break
        finally:
            for other in tasks:
                other.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        answer = task.result()
        with self._lock:
            self._seconds.append(time.monotonic() - started)
            self.won += task is not first
        return answer

    def _delay(self) -> float | None:
        """Seconds to wait for the first request alone; None: as long as it takes."""
        if len(self._seconds) < LEAST_KNOWN:
            return None
        return max(FLOOR, sorted(self._seconds)[len(self._seconds) * PERCENTILE // 100])

    def _may_send(self) -> bool:
        with self._lock:
            allowed = self.sent < max(1, int(BUDGET * self.reads))
            self.sent += allowed
            return allowed
