"""Decoded images of a path: what training and evaluation of tokenizers read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tokenshard.sources.base import Reject, Sample
from tokenshard.sources.decoded import decoded_samples
from tokenshard.sources.images.open import open_image_source
from tokenshard.spec.images import ImageSourceSpec


def decoded_images(
    spec: ImageSourceSpec,
    storage_options: Mapping[str, Any] | None = None,
    *,
    most: int | None = None,
    threads: int = 4,
) -> Iterator[Sample | Reject]:
    """The images of a source as :func:`~tokenshard.sources.decoded.decoded_samples` gives them."""
    return decoded_samples(open_image_source(spec, storage_options), most=most, threads=threads)
