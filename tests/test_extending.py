"""docs/extending.md: the package that it shows is installed as written, and converts in processes of its own."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("hatchling", reason="extra dev")
from integration.command import tokenshard_command

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
FILE = re.compile(r"^`([\w.]+)`:\n\n```\w+\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables with which Python sees the package of the page, installed by pip in a folder."""
    project, installed = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("installed")
    for name, text in FILE.findall(PAGE.read_text(encoding="utf-8")):
        (project / name).write_text(text, encoding="utf-8")
    words = ["install", "--quiet", "--no-build-isolation", "--no-deps", "--no-index", "--target", str(installed)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", *words, str(project)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return {"PYTHONPATH": os.pathsep.join([str(installed), *filter(None, [os.environ.get("PYTHONPATH")])])}


def ran(environment: dict[str, str], *words: str) -> dict[str, Any]:
    done = tokenshard_command(*words, "--json", **environment)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray[Any, Any]]:
    skimage_data = pytest.importorskip("skimage.data")
    return [getattr(skimage_data, name)()[:96, :96] for name in ("astronaut", "chelsea", "coffee")]


def test_a_source_of_a_package_is_a_form_like_any_other(
    environment: dict[str, str], photos: list[np.ndarray[Any, Any]], tmp_path: Path
) -> None:
    from PIL import Image

    (tmp_path / "camera").mkdir()
    with (tmp_path / "camera" / "door.mjpeg").open("wb") as file:
        for photo in photos:
            data = io.BytesIO()
            Image.fromarray(photo).save(data, "JPEG")
            file.write(data.getvalue())
    words = ["--form", "mjpeg", "--tokenizer", "patch:8x8,k=16", "--workers", "1", "--quiet"]
    made = ran(environment, "convert", "images", str(tmp_path / "camera"), str(tmp_path / "out"), *words)
    assert (made["num_samples"], made["num_rejects"]) == (3, 0)


def test_a_tokenizer_of_a_package_is_fitted_stored_and_decodes(
    environment: dict[str, str], photos: list[np.ndarray[Any, Any]], tmp_path: Path
) -> None:
    from PIL import Image

    (tmp_path / "photos").mkdir()
    for number, photo in enumerate(photos):
        Image.fromarray(photo).save(tmp_path / "photos" / f"{number}.png")
    out = str(tmp_path / "out")
    words = ["--tokenizer", "grey:8,k=32", "--workers", "1", "--quiet"]
    assert ran(environment, "convert", "images", str(tmp_path / "photos"), out, *words)["num_samples"] == 3
    drawn = tokenshard_command("show", out, "--out", str(tmp_path / "grid.png"), **environment)
    assert drawn.returncode == 0, drawn.stderr
    assert Image.open(tmp_path / "grid.png").size[0] >= 96
    missing = tokenshard_command("show", out, "--out", str(tmp_path / "grid.png"))
    assert missing.returncode == 1
    assert "unknown tokenizer kind 'grey'" in missing.stderr


def test_an_extension_that_cannot_be_imported_is_named(environment: dict[str, str], tmp_path: Path) -> None:
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[tokenshard.tokenizers]\nodd = nowhere:KIND\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = tokenshard_command(
        "convert", "images", str(tmp_path), str(tmp_path / "out"), "--tokenizer", "odd", PYTHONPATH=path
    )
    assert done.returncode == 2
    assert "'odd' of the installed package broken cannot be loaded: No module named 'nowhere'" in done.stderr
