"""Real broken, hostile and unusual image files: each is a sample or a reject, as Pillow alone would have it."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = [pytest.mark.data, pytest.mark.filterwarnings("ignore::UserWarning:PIL")]


@pytest.fixture(scope="session")
def expected(data_dir: Path) -> dict[str, str]:
    """File name -> what Pillow does with it: `loads`, or an error."""
    with open(data_dir / "bad/EXPECTED.csv", newline="") as file:
        rows = list(csv.reader(file))[1:]
    return {row[0].removeprefix("images/"): row[-1] for row in rows}


OTHER_ERRORS = {
    "zero_byte.jpg": "InputError",  # an empty file is named as such before Pillow sees it
    "pillow_crash-2020-10-test.tif": "OSError",  # the list was made with warnings as errors, which stop it earlier
}


def test_every_bad_image_is_a_sample_or_a_reject_as_expected(
    data_dir: Path, expected: dict[str, str], read_source: Callable[..., Any]
) -> None:
    result = read_source(data_dir / "bad/images")
    assert set(result.samples) | set(result.rejects) == set(expected)
    assert set(result.samples) == {name for name, outcome in expected.items() if outcome == "loads"}
    for name, reject in result.rejects.items():
        assert reject.stage == "decode"
        assert reject.message.startswith(f"{name}: ")
        assert "/" not in reject.message
        assert " at 0x" not in reject.message
        assert reject.traceback_sha256 is not None
        assert reject.error == OTHER_ERRORS.get(name) or f" raises {reject.error}: " in f" {expected[name]} "


def test_all_eight_exif_orientations_show_the_same_upright_picture(
    data_dir: Path, read_source: Callable[..., Any]
) -> None:
    samples = read_source(data_dir / "bad/images/exif_orientation_?.jpg").samples
    assert len(samples) == 8
    upright = samples["exif_orientation_1.jpg"].data.astype(float)
    for sample in samples.values():
        assert sample.data.shape == upright.shape
        error = np.mean((sample.data - upright) ** 2)
        assert 10 * np.log10(255**2 / max(error, 1e-9)) > 35


@pytest.mark.parametrize("fit", ["resize", "center-crop", "pad"])
def test_every_readable_image_gets_the_size_asked_for(
    fit: str, data_dir: Path, expected: dict[str, str], read_source: Callable[..., Any]
) -> None:
    result = read_source(data_dir / "bad/images/valid*", size=(40, 56), fit=fit)
    assert set(result.samples) == {name for name in expected if name.startswith("valid")}
    assert all(sample.data.shape == (40, 56, 3) for sample in result.samples.values())


def test_the_same_picture_in_many_formats_looks_the_same(data_dir: Path, read_source: Callable[..., Any]) -> None:
    """The valid_* 224x224 files are one photograph in different colour modes."""
    samples = read_source(data_dir / "bad/images/valid_*").samples
    reference = samples["valid_rgb16.png"].data.astype(float)
    luma = reference @ [0.299, 0.587, 0.114]
    for name, floor in {"valid_cmyk.jpg": 30, "valid_progressive.jpg": 30, "valid_palette.png": 25}.items():
        error = np.mean((samples[name].data - reference) ** 2)
        assert 10 * np.log10(255**2 / error) > floor, name
    for name in ("valid_gray.jpg", "valid_gray16.png"):
        error = np.mean((samples[name].data[..., 0] - luma) ** 2)
        assert 10 * np.log10(255**2 / error) > 30, name
