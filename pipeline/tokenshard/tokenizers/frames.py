"""Clips with any tokenizer: one of images goes frame by frame, one of clips gets all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenshard.errors import FormatError
from tokenshard.tokenizers.base import Tokenizer

FRAMES = 16
"""Frames that are encoded or decoded together."""
NUM_FRAMES = "num_frames"
"""Column with the frames of a clip, in datasets whose tokens cover several of them."""


def encode_frames(tokenizer: Tokenizer, clip: NDArray[np.uint8]) -> NDArray[Any]:
    """uint8 [frames, height, width, 3] -> ids [levels, frames or groups of them, rows, columns]."""
    if tokenizer.spec.modality == "video":
        return np.ascontiguousarray(tokenizer.encode(clip[None])[0])
    parts = [tokenizer.encode(clip[first : first + FRAMES]) for first in range(0, len(clip), FRAMES)]
    return np.ascontiguousarray(np.moveaxis(np.concatenate(parts), 1, 0))


def decode_frames(
    tokenizer: Tokenizer, codes: NDArray[Any], size: tuple[int, int, int] | None = None
) -> NDArray[np.uint8]:
    """Ids [levels, frames or groups, rows, columns] -> uint8 [frames, height, width, 3], cropped to ``size``.

    Raises :class:`FormatError` where the ids are of fewer frames than ``size`` has.
    """
    picture = None if size is None else size[1:]
    if tokenizer.spec.modality == "video":
        clip: NDArray[np.uint8] = tokenizer.decode(codes[None], picture)[0]
    else:
        frames = np.moveaxis(codes, 1, 0)
        parts = [tokenizer.decode(frames[first : first + FRAMES], picture) for first in range(0, len(frames), FRAMES)]
        clip = np.concatenate(parts)
    if size is not None and len(clip) < size[0]:
        raise FormatError(f"ids of {len(clip)} frames are not those of a clip of {size[0]}")
    return clip if size is None else clip[: size[0]]


def clip_size(sample: Mapping[str, Any]) -> tuple[int, int, int]:
    """Frames, height and width of a clip of a dataset."""
    return sample.get(NUM_FRAMES) or sample["frames"], sample["height"], sample["width"]
