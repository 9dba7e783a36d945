"""Memory for blocks that is used again: fresh pages from the system cost more than filling them."""

from __future__ import annotations

import weakref
from collections import defaultdict
from threading import Lock

import numpy as np
from numpy.typing import NDArray

GRAIN = 1 << 16
"""Sizes are rounded up to this, so that blocks of about the same size share memory."""


class Buffers:
    """Hands out memory, and takes it back once no array looks at it any more. Thread-safe."""

    def __init__(self, kept: int) -> None:
        """``kept``: bytes that are kept for later."""
        self._kept = kept
        self._free: defaultdict[int, list[NDArray[np.uint8]]] = defaultdict(list)
        self.idle = 0
        """bytes that wait to be used again"""
        self._lock = Lock()

    def take(self, size: int) -> NDArray[np.uint8]:
        """``size`` bytes, not cleared."""
        room = max(1, -(-size // GRAIN)) * GRAIN
        with self._lock:
            fitting = (kept for kept in (room, room + GRAIN, room + 2 * GRAIN) if self._free.get(kept))
            found = next(fitting, None)
            buffer = self._free[found].pop() if found is not None else None
            self.idle -= found or 0
        if buffer is None:
            buffer = np.empty(room, np.uint8)
        view = np.frombuffer(buffer.data, np.uint8)
        weakref.finalize(view, self._back, buffer).atexit = False
        return view[:size]

    def _back(self, buffer: NDArray[np.uint8]) -> None:
        with self._lock:
            if self.idle + len(buffer) <= self._kept:
                self._free[len(buffer)].append(buffer)
                self.idle += len(buffer)
