"""The fixed descriptor of patches: alike where pages look alike, whatever their size; blank where they are blank."""

from __future__ import annotations

import numpy as np
import pytest

from tokenshard.errors import InputError, SpecError
from tokenshard.retrieval.encoders.patch_dct import DIMENSIONS, GRID, PatchDct
from tokenshard.retrieval.exact import Multivectors, maxsim
from tokenshard.sources.base import Sample


def drawn(image: np.ndarray) -> Sample:
    return Sample("a", "a", image.astype(np.uint8), 0)


def page(seed: int, height: int = 640, width: int = 512) -> np.ndarray:
    """Lines of words as dark bars on white, and a coloured picture."""
    draw = np.random.default_rng(seed)
    image = np.full((height, width, 3), 255.0)
    for top in range(40, height // 2, 20):
        for left in range(40, width - 60, 64):
            image[top : top + 8, left : left + int(draw.integers(8, 60))] = 0
    image[height // 2 + 20 : height - 60, 60 : width - 80] = draw.integers(0, 256, 3)
    return image


def test_each_patch_has_a_descriptor_of_length_one() -> None:
    (found,) = PatchDct().encode_pages([drawn(page(0))])
    assert found.vectors.shape == (GRID * GRID, DIMENSIONS)
    np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), 1, atol=1e-5)
    assert found.positions[GRID + 2].tolist() == [1, 2]
    assert np.isfinite(found.vectors).all()


def test_blank_patches_are_alike_and_least_salient() -> None:
    (found,) = PatchDct().encode_pages([drawn(np.full((640, 512, 3), 255))])
    assert (found.vectors @ found.vectors[0]).min() > 0.999
    (found,) = PatchDct().encode_pages([drawn(page(1))])
    assert found.saliency is not None
    grid = found.saliency.reshape(GRID, GRID)
    assert grid[:14].mean() > grid[-2:].mean()


def test_a_page_is_found_by_a_smaller_brighter_image_of_it() -> None:
    encoder = PatchDct()
    pages = Multivectors.of([one.vectors for one in encoder.encode_pages([drawn(page(seed)) for seed in range(8)])])
    for seed in range(8):
        copy = page(seed)[::2, ::2] * 0.9 + 20
        query = Multivectors.of([encoder.encode_query(copy.clip(0, 255).astype(np.uint8))])
        assert maxsim(query, pages)[0].argmax() == seed


def test_a_vertical_and_a_horizontal_edge_differ() -> None:
    vertical, horizontal = np.full((512, 512, 3), 255), np.full((512, 512, 3), 255)
    vertical[:, 256:], horizontal[256:] = 0, 0
    one, other = PatchDct().encode_pages([drawn(vertical), drawn(horizontal)])
    middle = 16 * GRID + 16
    assert one.vectors[middle] @ other.vectors[middle] < 0.9


def test_text_cannot_search_and_undrawn_pages_cannot_be_encoded() -> None:
    with pytest.raises(SpecError, match="found by an image"):
        PatchDct().encode_query("wing")
    with pytest.raises(InputError, match="not drawn"):
        PatchDct().encode_pages([Sample("a", "a", np.zeros((0, 0, 3), np.uint8), 0)])
