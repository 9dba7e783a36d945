"""The images of a training job, decoded into memory: those to learn from, and those held out for validation."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tokenshard.errors import SpecError
from tokenshard.sources.base import Sample
from tokenshard.sources.images.decoded import decoded_images
from tokenshard.spec.images import ImageSourceSpec
from tokenshard.spec.train import TrainingImagesSpec
from tokenshard.training.crops import PixelPool


def read_samples(
    places: Sequence[ImageSourceSpec],
    storage: Mapping[str, Any],
    say: Callable[[str], None],
    most: int | None = None,
    memory: float = 64e9,
) -> list[Sample]:
    """The images of all places, or ``most`` of each, in order, up to so many bytes when decoded.

    Says how many could not be read. Raises :class:`SpecError` where none could.
    """
    samples: list[Sample] = []
    rejected = left_out = held = 0
    for place in places:
        for item in decoded_images(place, storage, most=most, threads=os.cpu_count() or 4):
            if not isinstance(item, Sample):
                rejected += 1
            elif held + item.data.nbytes > memory:
                left_out += 1
            else:
                samples.append(item)
                held += item.data.nbytes
    if rejected:
        say(f"{rejected:,} images could not be read and are left out")
    if left_out:
        say(f"{left_out:,} images are left out: the others take {held / 1e9:.1f} GB, more memory must be allowed")
    if not samples:
        raise SpecError(f"{', '.join(place.path for place in places)}: no image could be read")
    return samples


def training_images(
    spec: TrainingImagesSpec, storage: Mapping[str, Any], say: Callable[[str], None]
) -> tuple[PixelPool, PixelPool]:
    """Images to train on, and images spread evenly over all that are held out."""
    images = [sample.data for sample in read_samples(spec.places, storage, say, spec.images, spec.memory)]
    if len(images) < 2:
        raise SpecError(f"{spec.path}: one image is too few; the one held out must be another")
    count = min(spec.held_out, max(1, len(images) // 4))
    chosen = {place * len(images) // count for place in range(count)}
    held_out = PixelPool.of(image for place, image in enumerate(images) if place in chosen)
    return PixelPool.of(image for place, image in enumerate(images) if place not in chosen), held_out
