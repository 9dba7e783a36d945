"""A cache for threads: what is asked for by several at once is made once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from threading import Lock
from typing import Concatenate, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class OnceCache(Generic[K, T]):
    """Keeps the ``size`` values last used of ``make(key, *hints)``. What raises is not kept."""

    def __init__(self, make: Callable[Concatenate[K, ...], T], size: int) -> None:
        self._make, self._size = make, size
        self._made: OrderedDict[K, Future[T]] = OrderedDict()
        self._lock = Lock()

    def __call__(self, key: K, *hints: object) -> T:
        """The value of a key. ``hints`` say how to make it best, and change nothing of it."""
        with self._lock:
            future = self._made.get(key)
            mine = future is None
            if future is None:
                future = self._made[key] = Future()
                if len(self._made) > self._size:
                    self._made.popitem(last=False)
            else:
                self._made.move_to_end(key)
        if mine:
            try:
                future.set_result(self._make(key, *hints))
            except BaseException as error:
                with self._lock:
                    self._made.pop(key, None)
                future.set_exception(error)
        return future.result()
