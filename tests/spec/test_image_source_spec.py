"""Image source specs refuse what makes no sense, and know what decides the output."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from tokenshard.spec.images import ImageSourceSpec


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"fit": "resize"}, "resize needs a size"),
        ({"size": 64}, "set fit to resize, center-crop or pad"),
        ({"size": [64, 0], "fit": "pad"}, "greater than or equal to 1"),
        ({"form": "zip"}, "'webdataset'"),
        ({"max_pixel": 3}, "Extra inputs"),
    ],
)
def test_a_wrong_field_is_refused_with_what_is_allowed(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ImageSourceSpec(path="x", **fields)


def test_one_number_is_the_side_of_a_square() -> None:
    assert ImageSourceSpec(path="x", size=64, fit="resize").height_width == (64, 64)
    assert ImageSourceSpec(path="x", size=(48, 64), fit="resize").height_width == (48, 64)
    assert ImageSourceSpec(path="x").height_width is None


def test_only_the_places_of_the_images_do_not_decide_the_output() -> None:
    here, there = ImageSourceSpec(path="/a", image_root="/b"), ImageSourceSpec(path="s3://c/d")
    assert here.output_fields() == there.output_fields()
    assert here.output_fields() != ImageSourceSpec(path="/a", background=(0, 0, 0)).output_fields()
    assert set(ImageSourceSpec.model_fields) - set(here.output_fields()) == {"path", "image_root"}
