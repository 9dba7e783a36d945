"""Decoded samples of a source without a job around them: what training and evaluation read of raw inputs."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pyarrow as pa

from tokenshard.sources.base import Reject, Sample, Source


def decoded_samples(source: Source, *, most: int | None = None, threads: int = 4) -> Iterator[Sample | Reject]:
    """The samples of a source in the order of its plan, or ``most`` of them spread evenly; decoded ahead on threads.

    Raises SpecError when there is nothing to read.
    """
    plan = pa.Table.from_batches(list(source.plan()))
    if most is not None and most < len(plan):
        plan = plan.take(np.linspace(0, len(plan) - 1, most).round().astype(np.int64))
    running: deque[Future[Sample | Reject]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for thunk in source.read(plan):
            if len(running) >= 4 * threads:
                yield running.popleft().result()
            running.append(pool.submit(thunk))
        while running:
            yield running.popleft().result()
