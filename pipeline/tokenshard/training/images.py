"""The images or clips of a training job, decoded into memory: those to learn from, and those held out."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import ValidationError

from tokenshard.errors import SpecError
from tokenshard.readable import readable_bytes
from tokenshard.sources.base import Sample, Source
from tokenshard.sources.images.decoded import decoded, planned, spread
from tokenshard.sources.images.open import open_image_source
from tokenshard.spec.images import ImageSourceSpec
from tokenshard.spec.train import TrainingClipsSpec, TrainingImagesSpec
from tokenshard.spec.videos import VideoSourceSpec
from tokenshard.training.clips import ClipPool, Pool
from tokenshard.training.crops import PixelPool

Item = TypeVar("Item")
_FEW = 32
"""Inputs of which all are read."""
_EVERY = 16
"""Of more, each so many one is decoded to learn their size, but not more than `_FEW`."""
_FILLED = 0.95
"""Share of the memory that is filled where not all fit."""

_ALLOW_MORE = "allow more with --memory-gb, or `memory` in the source of a job"


def read_samples(
    places: Sequence[ImageSourceSpec],
    storage: Mapping[str, Any],
    say: Callable[[str], None],
    most: int | None = None,
    memory: float = 64e9,
) -> list[Sample]:
    """The images (or clips) of all places, or ``most`` of each, in order; where they do not fit, fewer, spread evenly.

    ``memory``: bytes of decoded pixels. Says how many could not be read or did not fit. Raises :class:`SpecError`
    where none could be read.
    """
    what, threads = places[0].what, os.cpu_count() or 4
    sources = [_opened(place, storage) for place in places]
    plans = [planned(source, most) for source in sources]
    chosen = _that_fit(sources, plans, memory, threads)
    samples: list[Sample] = []
    rejected = held = 0
    left_out = sum(map(len, plans)) - sum(map(len, chosen))
    for source, plan in zip(sources, chosen, strict=True):
        for item in decoded(source, plan, threads):
            if not isinstance(item, Sample):
                rejected += 1
            elif held + item.data.nbytes > memory:
                left_out += 1
            else:
                samples.append(item)
                held += item.data.nbytes
    if rejected:
        say(f"{rejected:,} {what} could not be read and are left out")
    if not samples:
        why = f"fits into {readable_bytes(memory)}; {_ALLOW_MORE}" if left_out else "could be read"
        raise SpecError(f"{', '.join(place.path for place in places)}: none of the {what} {why}")
    if left_out:
        say(beyond_memory(left_out, what, held))
    return samples


def beyond_memory(left_out: int, what: str, held: int) -> str:
    """What is said where not all images, clips or tiles fit into the memory allowed."""
    return f"{left_out:,} {what} are left out: the others take {readable_bytes(held)}; {_ALLOW_MORE}"


def _that_fit(sources: Sequence[Source], plans: Sequence[pa.Table], memory: float, threads: int) -> Sequence[pa.Table]:
    """The plans, or the same share of each, where samples of some of its inputs say that all would take too much."""
    if sum(map(len, plans)) <= _FEW:
        return plans
    expected = 0.0
    for source, plan in zip(sources, plans, strict=True):
        few = spread(plan, min(_FEW, -(-len(plan) // _EVERY)))
        probed = [item.data.nbytes for item in decoded(source, few, threads) if isinstance(item, Sample)]
        expected += len(plan) * sum(probed) / max(len(probed), 1)
    share = _FILLED * memory / max(expected, 1)
    return plans if expected <= memory else [spread(plan, max(1, int(share * len(plan)))) for plan in plans]


def _opened(place: ImageSourceSpec, storage: Mapping[str, Any]) -> Source:
    if not isinstance(place, VideoSourceSpec):
        return open_image_source(place, storage)
    from tokenshard.sources.video.source import open_video_source  # needs PyAV

    return open_video_source(place, storage)


def training_images(
    spec: TrainingImagesSpec, storage: Mapping[str, Any], say: Callable[[str], None]
) -> tuple[PixelPool, PixelPool]:
    """Images to train on, and images spread evenly over all that are held out."""
    images = [sample.data for sample in read_samples(spec.places, storage, say, spec.images, spec.memory)]
    if len(images) < 2:
        raise SpecError(f"{spec.path}: one image is too few; the one held out must be another")
    learned, held_out = apart(images, spec.held_out)
    return PixelPool.of(learned), PixelPool.of(held_out)


def training_clips(
    spec: TrainingImagesSpec, span: int | None, storage: Mapping[str, Any], say: Callable[[str], None]
) -> tuple[Pool, Pool]:
    """Clips of ``span`` frames to train on, and those of other videos that are held out; or (None) their frames.

    Where there is only one video, its clips are told apart.
    """
    places = [_videos(place, spec.clips or TrainingClipsSpec()) for place in spec.places]
    samples = read_samples(places, storage, say, spec.images, spec.memory)
    by_video: dict[str, list[NDArray[np.uint8]]] = {}
    for sample in samples:
        by_video.setdefault(sample.key.rpartition("#")[0], []).append(sample.data)
    videos = list(by_video.values()) if len(by_video) > 1 else [[sample.data] for sample in samples]
    if len(videos) < 2:
        raise SpecError(f"{spec.path}: one clip is too few; the one held out must be another")
    pools = [list(chain.from_iterable(part)) for part in apart(videos, spec.held_out)]
    if span is None:
        learned, held_out = (PixelPool.of(chain.from_iterable(part)) for part in pools)
        return learned, held_out
    return ClipPool.of(pools[0], span), ClipPool.of(pools[1], span)


def _videos(place: ImageSourceSpec, clips: TrainingClipsSpec) -> VideoSourceSpec:
    """A place with videos. Raises :class:`SpecError` where it is said how else than videos can be it is stored."""
    fields = place.model_dump(exclude_defaults=True)
    try:
        return VideoSourceSpec.model_validate({**fields, **clips.model_dump(), "labels": "none"})
    except ValidationError as error:
        first = error.errors()[0]
        raise SpecError(f"source.{'.'.join(map(str, first['loc']))} of videos: {first['msg']}") from error


def apart(items: list[Item], most: int) -> tuple[list[Item], list[Item]]:
    """Those to learn from, and at most ``most`` spread evenly over all, but no more than a quarter."""
    count = min(most, max(1, len(items) // 4))
    chosen = {place * len(items) // count for place in range(count)}
    return (
        [item for place, item in enumerate(items) if place not in chosen],
        [item for place, item in enumerate(items) if place in chosen],
    )
