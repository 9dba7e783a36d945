"""Clips with the tokenizer of images: frame by frame."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenshard.tokenizers.base import Tokenizer

FRAMES = 16
"""Frames that are encoded or decoded together."""


def encode_frames(tokenizer: Tokenizer, clip: NDArray[np.uint8]) -> NDArray[Any]:
    """uint8 [frames, height, width, 3] -> ids [levels, frames, rows, columns]."""
    parts = [tokenizer.encode(clip[first : first + FRAMES]) for first in range(0, len(clip), FRAMES)]
    return np.ascontiguousarray(np.moveaxis(np.concatenate(parts), 1, 0))


def decode_frames(tokenizer: Tokenizer, codes: NDArray[Any], size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Ids [levels, frames, rows, columns] -> uint8 [frames, height, width, 3], cropped to ``size`` where given."""
    frames = np.moveaxis(codes, 1, 0)
    parts = [tokenizer.decode(frames[first : first + FRAMES], size) for first in range(0, len(frames), FRAMES)]
    return np.concatenate(parts)
