"""What failures leave behind: nothing, or a message that says so."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from integration.command import convert, refused
from tokenshard.engine.pilot import PILOT
from tokenshard.engine.plan import UnitPlace

pytestmark = pytest.mark.integration
WORDS = ["--tokenizer", "patch:8x8,k=16", "--engine", "local", "--workers", "0", "--unit-samples", "3"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six tiles of a photograph."""
    photograph = pytest.importorskip("skimage.data").coffee()
    root = tmp_path_factory.mktemp("leftovers")
    for number in range(6):
        Image.fromarray(photograph[30 * number : 30 * number + 32, 100:148]).save(root / f"{number}.png")
    return root


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_job_that_cannot_be_planned_leaves_no_file(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "no such file or folder" in refused("convert", "images", str(tmp_path / "typo"), str(out), code=2)
    assert files(out) == []
    assert convert(images, out, *WORDS)["num_samples"] == 6
    before = sorted(files(out))
    refused("convert", "images", str(tmp_path / "typo"), str(out), "--append", code=2)
    assert sorted(files(out)) == before


def test_an_export_that_fails_says_that_a_part_of_it_is_there(images: Path, tmp_path: Path) -> None:
    out, dst = tmp_path / "out", tmp_path / "dst"
    convert(images, out, *WORDS)
    damaged = max((out / "data").iterdir())
    data = bytearray(damaged.read_bytes())
    damaged.unlink()
    data[200] ^= 0xFF
    damaged.write_bytes(data)
    shutil.rmtree(dst, ignore_errors=True)
    line = refused("export", str(out), str(dst), "--format", "webdataset", "--shard-bytes", "1")
    assert (files(dst) != []) == (f"{dst} has a part of the export: empty it before you try again" in line)
    assert files(dst) != []


def test_the_pilot_is_named_and_has_no_number() -> None:
    assert str(PILOT).startswith("the pilot")
    assert str(UnitPlace(7, "", 0)) == "unit 7"
