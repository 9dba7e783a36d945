"""Real photographs, and a tokenizer fitted on some of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import skimage.data
from numpy.typing import NDArray
from PIL import Image

from tokenshard.tokenizers.patch import PatchTokenizer


@pytest.fixture(scope="session")
def photos() -> list[NDArray[np.uint8]]:
    """Photographs of different sizes: coffee, chelsea (a cat) and rocket."""
    return [skimage.data.coffee(), skimage.data.chelsea(), skimage.data.rocket()]


@pytest.fixture(scope="session")
def crops(photos: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """64 crops [64, 32, 32, 3] spread over the photographs."""
    tiles = [
        photo[: 32 * 8, : 32 * 12].reshape(8, 32, 12, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3) for photo in photos
    ]
    return np.ascontiguousarray(np.concatenate(tiles)[::4][:64])


@pytest.fixture
def photo_folder(photos: list[NDArray[np.uint8]], tmp_path: Path) -> Path:
    """A folder of three PNGs of 64 x 64 pixels."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, photo in enumerate(photos):
        Image.fromarray(photo[100:164, 100:164]).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="session")
def tokenizer(photos: list[NDArray[np.uint8]]) -> PatchTokenizer:
    return PatchTokenizer.fit(photos, 0, k=256)


@pytest.fixture
def seeded() -> None:
    """Random weights are the same in every run."""
    import torch

    torch.manual_seed(1)
