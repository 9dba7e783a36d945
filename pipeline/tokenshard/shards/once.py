"""A cache for threads: what is asked for by several at once is made once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from threading import Lock
from typing import Generic, TypeVar

T = TypeVar("T")


class OnceCache(Generic[T]):
    """Keeps the ``size`` values last used of ``make(number)``. What raises is not kept."""

    def __init__(self, make: Callable[[int], T], size: int) -> None:
        self._make, self._size = make, size
        self._made: OrderedDict[int, Future[T]] = OrderedDict()
        self._lock = Lock()

    def __call__(self, number: int) -> T:
        with self._lock:
            future = self._made.get(number)
            mine = future is None
            if future is None:
                future = self._made[number] = Future()
                if len(self._made) > self._size:
                    self._made.popitem(last=False)
            else:
                self._made.move_to_end(number)
        if mine:
            try:
                future.set_result(self._make(number))
            except BaseException as error:
                with self._lock:
                    self._made.pop(number, None)
                future.set_exception(error)
        return future.result()
