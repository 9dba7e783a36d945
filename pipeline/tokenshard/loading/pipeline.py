"""Work ahead of the consumer: blocks are fetched and chunks decoded on threads, and come out in order.

A *chunk* is a few batches that are gathered and decoded together. Two pools, so that decoding never waits behind
reading; both are bounded: blocks by bytes in memory, decoded chunks by number. With no threads everything happens in
the caller, when it is asked for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

B = TypeVar("B")
T = TypeVar("T")
R = TypeVar("R")
AHEAD = 64
"""Chunks that are planned, their blocks being fetched, before they are decoded."""


@dataclass(frozen=True)
class Chunk:
    """Rows of one or more batches, and what has to be in memory for them."""

    block: NDArray[np.int64]
    row: NDArray[np.int64]
    """block number in the dataset and row inside the block, of each row of the chunk"""
    begins: Sequence[int]
    """blocks to be in memory from this chunk on, once for each reason (window) to keep them"""
    ends: Sequence[int]
    """blocks that one reason less keeps in memory after this chunk"""
    label: Any = None
    """carried along for the decoder"""


class Pipeline(Generic[B, T]):
    """Runs chunks through ``fetch`` (block number -> block) and ``decode`` (chunk, blocks by number -> result)."""

    def __init__(
        self,
        fetch: Callable[[int], B],
        decode: Callable[[Chunk, dict[int, B]], T],
        threads: int,
        fetch_threads: int,
        held: int,
    ) -> None:
        self._fetch, self._decode = fetch, decode
        self._threads, self._fetch_threads = threads, fetch_threads
        self._held = held
        """blocks in memory above which nothing is planned ahead"""

    def run(self, chunks: Iterator[Chunk]) -> Iterator[T]:
        """Results of the chunks, in order. Closing the iterator stops all work and frees everything."""
        if self._threads == 0:
            yield from self._run(chunks, None, None)
            return
        pools = ThreadPoolExecutor(self._threads, "decode"), ThreadPoolExecutor(self._fetch_threads, "fetch")
        try:
            yield from self._run(chunks, *pools)
        finally:
            for pool in pools:
                pool.shutdown(cancel_futures=True)

    def _run(self, chunks: Iterator[Chunk], decoders: Executor | None, fetchers: Executor | None) -> Iterator[T]:
        blocks: dict[int, Future[B]] = {}
        reasons: dict[int, int] = {}
        planned: deque[Chunk] = deque()
        running: deque[tuple[Chunk, Future[T]]] = deque()
        exhausted, begun = False, False
        while True:
            while not exhausted and self._may_plan(
                len(planned), len(running), len(blocks), decoders is not None and begun
            ):
                chunk = next(chunks, None)
                if chunk is None:
                    exhausted = True
                    break
                for number in chunk.begins:
                    reasons[number] = reasons.get(number, 0) + 1
                    if number not in blocks:
                        blocks[number] = _submit(fetchers, self._fetch, number)
                planned.append(chunk)
            while planned and len(running) <= 2 * self._threads:
                chunk = planned.popleft()
                needed = {number: blocks[number] for number in _distinct(chunk.block)}
                running.append((chunk, _submit(decoders, self._decoded, chunk, needed)))
            if not running:
                return
            if not begun:
                wait(blocks.values())  # the blocks of the first chunk come first: nothing else shares the network
                begun = True
                continue
            chunk, future = running.popleft()
            result = future.result()
            for number in chunk.ends:
                reasons[number] -= 1
                if reasons[number] == 0:
                    del reasons[number], blocks[number]
            yield result

    def _may_plan(self, planned: int, running: int, held: int, ahead: bool) -> bool:
        if planned + running == 0:
            return True
        return ahead and planned < AHEAD and held < self._held

    def _decoded(self, chunk: Chunk, needed: dict[int, Future[B]]) -> T:
        return self._decode(chunk, {number: future.result() for number, future in needed.items()})


def _distinct(numbers: NDArray[np.int64]) -> list[int]:
    """Ascending. (Some times faster than ``np.unique``, and this runs once a chunk.)"""
    ordered = np.sort(numbers)
    found: list[int] = ordered[np.flatnonzero(np.diff(ordered, prepend=-1))].tolist()
    return found


def _submit(pool: Executor | None, call: Callable[..., R], *arguments: Any) -> Future[R]:
    if pool is not None:
        return pool.submit(call, *arguments)
    future: Future[R] = Future()
    try:
        future.set_result(call(*arguments))
    except BaseException as error:
        future.set_exception(error)
    return future
