"""Decoded samples of a path without a job around them: what training and evaluation of tokenizers read."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa

from tokenshard.sources.base import Reject, Sample, Source
from tokenshard.sources.images.open import open_image_source
from tokenshard.spec.images import ImageSourceSpec


def decoded_images(
    spec: ImageSourceSpec,
    storage_options: Mapping[str, Any] | None = None,
    *,
    most: int | None = None,
    threads: int = 4,
) -> Iterator[Sample | Reject]:
    """As :func:`decoded_samples`, of the images of a spec."""
    return decoded_samples(open_image_source(spec, storage_options), most=most, threads=threads)


def decoded_samples(source: Source, *, most: int | None = None, threads: int = 4) -> Iterator[Sample | Reject]:
    """The samples of a source in the order of its plan, or ``most`` of them spread evenly; decoded ahead on threads.

    Raises SpecError when there is nothing to read.
    """
    yield from decoded(source, planned(source, most), threads)


def planned(source: Source, most: int | None = None) -> pa.Table:
    """The plan of a source, or ``most`` of its rows. Raises SpecError when there is nothing to read."""
    plan = pa.Table.from_batches(list(source.plan()))
    return plan if most is None else spread(plan, most)


def spread(plan: pa.Table, most: int) -> pa.Table:
    """At most so many rows, evenly spread from the first to the last."""
    if most >= len(plan):
        return plan
    return plan.take(np.linspace(0, len(plan) - 1, most).round().astype(np.int64))


def decoded(source: Source, plan: pa.Table, threads: int) -> Iterator[Sample | Reject]:
    """The samples of planned rows, in order, decoded ahead on threads."""
    running: deque[Future[Sample | Reject]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for thunk in source.read(plan):
            if len(running) >= 4 * threads:
                yield running.popleft().result()
            running.append(pool.submit(thunk))
        while running:
            yield running.popleft().result()
