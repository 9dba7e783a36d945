"""Inside a unit: thunks that fetch and decode -> samples with their ids, in order, in bounded memory.

Decoding runs on threads ahead of encoding, so that one hides behind the other; how far ahead is bounded by samples and
by decoded bytes. Samples of equal size are encoded together.
"""

from __future__ import annotations

import hashlib
import traceback
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenshard.sources.base import Reject, Sample, Thunk
from tokenshard.spec.job import EngineSpec
from tokenshard.tokenizers.base import Tokenizer

Encoded = tuple[Sample, NDArray[Any]]
"""A sample and its ids [levels, *grid]."""


def encode_samples(
    thunks: Iterable[Thunk], tokenizer: Tokenizer, limits: EngineSpec, rejects: list[Reject]
) -> Iterator[Encoded]:
    """Samples with their ids, in the order of the thunks; what cannot be read or encoded goes to ``rejects``."""
    window: list[Sample] = []
    held = 0
    for item in _in_order(thunks, limits):
        if isinstance(item, Reject):
            rejects.append(item)
            continue
        if window and (len(window) >= limits.batch_size or held + item.data.nbytes > limits.batch_bytes):
            yield from _encode_window(window, tokenizer, rejects)
            window, held = [], 0
        window.append(item)
        held += item.data.nbytes
    yield from _encode_window(window, tokenizer, rejects)


def _in_order(thunks: Iterable[Thunk], limits: EngineSpec) -> Iterator[Sample | Reject]:
    """Results of the thunks, in order; computed ahead on threads up to a batch of samples and of bytes."""
    if limits.decode_threads == 1 and not limits.gpus:
        for thunk in thunks:
            yield thunk()
        return
    ahead = max(limits.batch_size, 2 * limits.decode_threads)
    with ThreadPoolExecutor(limits.decode_threads) as pool:
        running: deque[Future[Sample | Reject]] = deque()
        for thunk in thunks:
            while len(running) >= ahead or (len(running) > 1 and _decoded_bytes(running) > limits.batch_bytes):
                yield running.popleft().result()
            running.append(pool.submit(thunk))
        while running:
            yield running.popleft().result()


def _decoded_bytes(running: Iterable[Future[Sample | Reject]]) -> int:
    items = (future.result() for future in running if future.done() and future.exception() is None)
    return sum(item.data.nbytes for item in items if isinstance(item, Sample))


def _encode_window(window: list[Sample], tokenizer: Tokenizer, rejects: list[Reject]) -> list[Encoded]:
    by_size: dict[tuple[int, ...], list[int]] = {}
    for position, sample in enumerate(window):
        by_size.setdefault(sample.data.shape, []).append(position)
    ids: dict[int, NDArray[Any]] = {}
    for positions in by_size.values():
        samples = [window[position] for position in positions]
        try:
            ids.update(zip(positions, tokenizer.encode(np.stack([sample.data for sample in samples])), strict=True))
        except Exception as error:
            if len(samples) == 1:
                rejects.append(_rejected(samples[0], error))
                continue
            for position in positions:  # one of them is bad: find out which
                ids.update((position, codes) for _, codes in _encode_window([window[position]], tokenizer, rejects))
    return [(sample, ids[position]) for position, sample in enumerate(window) if position in ids]


def _rejected(sample: Sample, error: Exception) -> Reject:
    frames = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    where = hashlib.sha256("\n".join([type(error).__name__, *frames]).encode()).hexdigest()
    return Reject(sample.key, sample.uri, "encode", type(error).__name__, f"{sample.uri}: {error}", where)
