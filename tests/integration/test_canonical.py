"""`convert images --tokenizer canonical`: a dataset of JPEG files as ids, and the files again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
from click.testing import CliRunner
from PIL import Image

import tokenshard
from integration.command import refused
from tokenshard.cli.main import cli
from tokenshard.engine.convert import Mode
from tokenshard.errors import JobError
from tokenshard.shards.verify import verify
from tokenshard.store import Store
from tokenshard.tokenizers import canonical

pytestmark = pytest.mark.integration
LOCAL: dict[str, Any] = {"engine": {"kind": "local", "workers": 0}}


def command(*words: str) -> str:
    result = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four images of different sizes."""
    (tmp_path / "photos" / "cats").mkdir(parents=True)
    for number, name in enumerate(("astronaut", "coffee", "rocket")):
        Image.fromarray(getattr(skimage.data, name)()[: 100 + 9 * number, :140]).save(
            tmp_path / "photos" / f"{name}.png"
        )
    Image.fromarray(skimage.data.chelsea()[:96]).save(tmp_path / "photos" / "cats" / "chelsea.JPG", quality=98)
    return tmp_path / "photos"


def test_files_come_back_bit_for_bit(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--tokenizer", "canonical:q=40,vocabulary=272", "--workers", "0", "--quiet"]
    command("convert", "images", str(photos), str(tmp_path / "tokens"), *words)
    assert verify(Store(tmp_path / "tokens"), deep=True).ok
    ds = tokenshard.open(tmp_path / "tokens")
    assert ds.manifest.code.grid == (None,)
    assert ds.manifest.kind == "image"
    assert len({len(ds[number]["codes"]) for number in range(4)}) == 4
    shown = command("show", str(tmp_path / "tokens"), "--files", str(tmp_path / "files"))
    assert f"cats/chelsea.JPG  {(tmp_path / 'files/cats/chelsea.JPG').stat().st_size:,} bytes" in shown
    for path in sorted(photos.rglob("*.*")):
        name = str(path.relative_to(photos))
        file = tmp_path / "files" / (name if path.suffix == ".JPG" else f"{name}.jpg")
        with Image.open(path) as image:
            image.convert("RGB").save(tmp_path / "expected.jpg", quality=40)
        assert file.read_bytes() == (tmp_path / "expected.jpg").read_bytes()
    assert "rocket.png" in command("show", str(tmp_path / "tokens"), "--out", str(tmp_path / "grid.png"))
    # the other ways to run, and more images later, give the same ids
    options: dict[str, Any] = {"engine": {"kind": "local", "workers": 2, "decode_threads": 2}}
    again = tokenshard.convert_images(photos, tmp_path / "again", "canonical:q=40,vocabulary=272", **options)
    assert again.fingerprint == ds.fingerprint
    folder = f"{tmp_path}/tokens/tokenizer/{ds.manifest.tokenizer.fingerprint}"
    shutil.copy(photos / "coffee.png", photos / "more.png")
    tokenshard.convert_images(photos, tmp_path / "tokens", folder, Mode(append=True), **LOCAL)
    ds = tokenshard.open(tmp_path / "tokens")
    assert np.array_equal(ds[ds.index("more.png")]["codes"], ds[ds.index("coffee.png")]["codes"])
    # but not with another encoder
    monkeypatch.setattr(canonical, "encoder_version", lambda: "Pillow 99")
    shutil.copy(photos / "coffee.png", photos / "late.png")
    with pytest.raises(JobError, match="here is Pillow 99, which may write other bytes"):
        tokenshard.convert_images(photos, tmp_path / "tokens", folder, Mode(append=True), **LOCAL)


def test_ids_of_other_tokenizers_are_no_files(photos: Path, tmp_path: Path) -> None:
    tokenshard.convert_images(photos, tmp_path / "tokens", "patch:8x8,k=16", **LOCAL)
    line = refused("show", str(tmp_path / "tokens"), "--files", str(tmp_path / "files"), code=2)
    assert "a 'patch' tokenizer, which are no files" in line
