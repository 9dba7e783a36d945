"""The reconstruction picture: what is shown where, for samples of any size."""

from __future__ import annotations

import numpy as np
import pytest
import skimage.data
from PIL import Image

from tokenshard.report.pictures import LARGEST_SIDE, PictureRow, code_map, reconstruction_grid


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"))


def contains(canvas: np.ndarray, part: np.ndarray) -> bool:
    """Whether the part is somewhere on the canvas, pixel for pixel."""
    height, width = part.shape[:2]
    corners = np.argwhere(
        (canvas[: canvas.shape[0] - height + 1, : canvas.shape[1] - width + 1] == part[0, 0]).all(axis=2)
    )
    return any((canvas[y : y + height, x : x + width] == part).all() for y, x in corners)


def test_original_reconstruction_and_codes_stand_side_by_side() -> None:
    photo = skimage.data.chelsea()
    canvas = pixels(reconstruction_grid([(photo, 255 - photo, "a cat", np.arange(300).reshape(15, 20))]))
    left = np.argwhere((canvas[:, :, None] == photo[0, 0]).all(axis=3).any(axis=2))
    assert contains(canvas, photo)
    assert contains(canvas, 255 - photo)
    assert canvas.shape[1] > 3 * photo.shape[1]
    assert len(left)


def test_without_any_original_or_codes_only_reconstructions_are_drawn() -> None:
    photo = skimage.data.chelsea()
    canvas = pixels(reconstruction_grid([(None, photo, "a"), (None, photo[:200], "b")]))
    assert contains(canvas, photo)
    assert canvas.shape[1] < 1.2 * photo.shape[1]


def test_small_images_are_enlarged_by_a_whole_factor_and_large_ones_reduced() -> None:
    digit = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)
    assert contains(pixels(reconstruction_grid([(digit, digit, "digit")])), digit.repeat(24, axis=0).repeat(24, axis=1))
    wide = np.zeros((50, 6000, 3), np.uint8)
    assert reconstruction_grid([(wide, wide, "wide")]).width < 2 * LARGEST_SIDE + 100


def test_captions_are_drawn_and_too_long_ones_stay_on_the_canvas() -> None:
    photo = np.full((300, 300, 3), 255, np.uint8)
    plain, titled = (
        pixels(reconstruction_grid([(photo, photo, text)])) for text in ("", "folder/" * 100 + "x.png\nline")
    )
    assert plain.shape == titled.shape
    assert (plain != titled).any()
    assert (titled[:, -20:] == 255).all()


def test_a_sample_whose_original_is_gone_leaves_its_place_empty() -> None:
    photo = np.zeros((200, 200, 3), np.uint8)
    both = reconstruction_grid([PictureRow(photo, photo, ""), PictureRow(photo, photo, "")])
    one = reconstruction_grid([PictureRow(photo, photo, ""), PictureRow(None, photo, "")])
    assert both.size == one.size
    assert (pixels(both) == 0).all(axis=2).sum() - (pixels(one) == 0).all(axis=2).sum() == 200 * 200


def test_a_grid_needs_a_row() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        reconstruction_grid([])


def test_a_code_map_goes_from_dark_to_light_with_the_ids() -> None:
    colours = code_map(np.arange(1024, dtype=np.uint16).reshape(32, 32)).reshape(-1, 3).astype(float)
    brightness = colours @ (0.299, 0.587, 0.114)
    assert (np.diff(brightness) > -1).all()
    assert brightness[-1] - brightness[0] > 150
    assert code_map(np.full((2, 2), 7, np.uint16)).shape == (2, 2, 3)
