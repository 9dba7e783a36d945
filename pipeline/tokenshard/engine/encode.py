"""Inside a unit: thunks that fetch and decode -> samples with their ids, in order, in bounded memory.

Decoding runs on threads ahead of encoding, so that one hides behind the other; how far ahead is bounded by samples and
by decoded bytes. Samples of equal size are encoded together.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from threading import Condition
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenshard.codecs.base import Ids, id_dtype
from tokenshard.engine.encoding import Encoded, Encoder
from tokenshard.engine.stages import Stages
from tokenshard.errors import InputError, SpecError
from tokenshard.sources.base import Reject, Sample, Thunk
from tokenshard.sources.outcome import rejected
from tokenshard.spec.engine import EngineSpec
from tokenshard.spec.manifest import LevelEntry


def encode_samples(
    thunks: Iterable[Thunk],
    encoder: Encoder,
    limits: EngineSpec,
    rejects: list[Reject],
    stages: Stages | None = None,
) -> Iterator[tuple[Sample, Encoded]]:
    """Samples with their ids, in the order of the thunks; what cannot be read or encoded goes to ``rejects``.

    The order of both, and the rejects themselves, do not depend on the limits. ``stages`` gets the seconds.
    """
    stages = stages or Stages()
    window: list[Sample | Reject] = []
    samples = held = 0
    for item in stages.iterate("read", _in_order(thunks, limits)):
        if isinstance(item, Sample):
            if samples and (samples >= limits.batch_size or held + item.data.nbytes > limits.batch_bytes):
                yield from _encode_window(window, encoder, rejects, stages)
                window, samples, held = [], 0, 0
            samples += 1
            held += item.data.nbytes
        window.append(item)
    yield from _encode_window(window, encoder, rejects, stages)


def _in_order(thunks: Iterable[Thunk], limits: EngineSpec) -> Iterator[Sample | Reject]:
    """Results of the thunks, in order; computed ahead on threads up to a batch of samples and of bytes."""
    if limits.decode_threads == 1 and not limits.gpus:
        for thunk in thunks:
            yield thunk()
        return
    ahead, gate = max(limits.batch_size, 2 * limits.decode_threads), _Gate(limits.batch_bytes)
    running: deque[Future[Sample | Reject]] = deque()
    pool = ThreadPoolExecutor(limits.decode_threads)
    try:
        for number, thunk in enumerate(thunks):
            if len(running) >= ahead:
                yield gate.leave(running.popleft())
            running.append(pool.submit(gate.enter, number, thunk))
        while running:
            yield gate.leave(running.popleft())
    finally:
        gate.open()
        pool.shutdown(cancel_futures=True)


class _Gate:
    """Holds decoding back while finished results of more than ``limit`` bytes wait for the encoder.

    The result that is asked for next may always be computed, else neither side could go on.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting = 0
        """bytes of results that are finished and were not asked for"""
        self._next = 0
        """number of the result that is asked for next"""
        self._opened = False
        self._changed = Condition()

    def enter(self, number: int, thunk: Thunk) -> Sample | Reject:
        """Run thunk ``number`` (on a decode thread), when it is time to."""
        with self._changed:
            self._changed.wait_for(lambda: self._opened or self._waiting <= self._limit or number == self._next)
        result = thunk()
        with self._changed:
            self._waiting += _nbytes(result)
        return result

    def leave(self, future: Future[Sample | Reject]) -> Sample | Reject:
        """The result that is asked for next."""
        result = future.result()
        with self._changed:
            self._waiting -= _nbytes(result)
            self._next += 1
            self._changed.notify_all()
        return result

    def open(self) -> None:
        """Hold nothing back any more: nobody asks for results."""
        with self._changed:
            self._opened = True
            self._changed.notify_all()


def _nbytes(item: Sample | Reject) -> int:
    return item.data.nbytes if isinstance(item, Sample) else 0


def _encode_window(
    window: list[Sample | Reject], encoder: Encoder, rejects: list[Reject], stages: Stages
) -> Iterator[tuple[Sample, Encoded]]:
    by_size: dict[tuple[int, ...], list[Sample]] = {}
    for item in window:
        if isinstance(item, Sample):
            by_size.setdefault(item.data.shape, []).append(item)
    with stages.measure("encode"):
        encoded = {shape: iter(_encode(samples, encoder)) for shape, samples in by_size.items()}
    for item in window:
        result = next(encoded[item.data.shape]) if isinstance(item, Sample) else item
        if isinstance(result, Reject):
            rejects.append(result)
        elif isinstance(item, Sample):
            yield item, result


def _encode(samples: list[Sample], encoder: Encoder) -> list[Encoded | Reject]:
    """Encodes equally sized samples; where encoding them together raises, one of them is bad: each by itself."""
    try:
        return list(encoder.encode(samples))
    except SpecError:
        raise  # says nothing of the samples: the job cannot be done like this
    except Exception as error:
        if len(samples) == 1:
            return [rejected(samples[0].key, samples[0].uri, "encode", error)]
        return [result for sample in samples for result in _encode([sample], encoder)]


class StoredIds:
    """An encoder whose ids are exchanged for those that shards store, where the manifest has a table of them."""

    def __init__(self, encoder: Encoder, levels: Sequence[LevelEntry]) -> None:
        self._encoder = encoder
        self._tables: list[NDArray[np.int64] | None] = []
        """by level [alphabet]: the stored id of each id, -1 for those that are not stored"""
        for level in levels:
            table = None
            if level.remap is not None:
                table = np.full(level.alphabet, -1, np.int64)
                table[list(level.remap)] = np.arange(len(level.remap))
            self._tables.append(table)

    def encode(self, samples: Sequence[Sample]) -> Sequence[Encoded]:
        """Raises InputError where an id is none of those of the dataset."""
        found = self._encoder.encode(samples)
        if not any(table is not None for table in self._tables):
            return found
        return [replace(one, ids=self._stored(one.ids)) for one in found]

    @property
    def tables(self) -> Sequence[bytes]:
        """Those of the encoder, where its ids are stored as they are."""
        return () if any(table is not None for table in self._tables) else self._encoder.tables

    def size(self, sample: Sample, ids: NDArray[Any]) -> tuple[int, ...]:
        return self._encoder.size(sample, ids)

    def _stored(self, codes: NDArray[Any]) -> NDArray[Any]:
        out = codes.copy()
        for level, (ids, table) in enumerate(zip(codes, self._tables, strict=True)):
            if table is None:
                continue
            found = table[ids]
            if found.size and found.min() < 0:
                unknown = int(ids[found < 0].flat[0])
                raise InputError(f"id {unknown} of level {level} is none of those the dataset numbers")
            out[level] = found
        return out


def flat_ids(codes: Sequence[NDArray[Any]], level: int, alphabet: int) -> Ids:
    """The ids of one level of some samples, back to back, as codecs take them."""
    ids: Ids = np.concatenate([sample[level].ravel() for sample in codes]).astype(id_dtype(alphabet), copy=False)
    return ids
