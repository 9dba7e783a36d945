"""The commands `export` and `import` as users type them, on a dataset of real photographs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from integration.command import convert, refused, tokenshard_command
from tokenshard.api import open_dataset

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pieces of two photographs, in two classes, as 8 x 8 tokens below 64."""
    data = pytest.importorskip("skimage.data")
    folder = tmp_path_factory.mktemp("photos")
    for name in ("astronaut", "chelsea"):
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(6):
            piece = getattr(data, name)()[32 * number : 32 * number + 32, :32]
            Image.fromarray(piece).save(folder / "photos" / name / f"{number}.part.png")
    convert(folder / "photos", folder / "tokens", "--tokenizer", "patch:4x4,k=64", "--workers", "0")
    return folder / "tokens"


def run(*words: str) -> dict[str, Any]:
    done = tokenshard_command(*words, "--quiet", "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("format", ["webdataset", "seit"])  # all of them: tests/sources/codes/test_round_trip.py
def test_export_and_import_give_the_dataset_back(format: str, tokens: Path, tmp_path: Path) -> None:
    done = run("export", str(tokens), str(tmp_path / "out"), "--format", format)
    assert (done["format"], done["num_samples"], done["splits"]) == (format, 12, {"train": 12})
    assert done["files"] == sum(path.is_file() for path in (tmp_path / "out").rglob("*"))
    run("import", format, str(tmp_path / "out"), str(tmp_path / "back"), "--workers", "0")
    before, after = open_dataset(tokens), open_dataset(tmp_path / "back")
    np.testing.assert_array_equal(np.asarray(after.codes(range(12))), np.asarray(before.codes(range(12))))
    assert after.table(["key", "label"]).equals(before.table(["key", "label"]))
    pictures = [dataset.tokenizer.decode(dataset.codes([5])[:, None]) for dataset in (before, after)]
    np.testing.assert_array_equal(*pictures)


def test_export_says_what_it_wrote_and_what_it_left_out(tokens: Path, tmp_path: Path) -> None:
    done = tokenshard_command("export", str(tokens), str(tmp_path / "out"), "--format", "webdataset")
    assert done.returncode == 0
    assert "samples      12 (train: 12)" in done.stdout
    assert "exporting: 12/12" in done.stderr


def test_mistakes_are_one_line_with_a_remedy(tokens: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    line = refused("export", str(tokens), str(tmp_path / "full"), "--format", "npy", code=2)
    assert "is not empty; choose another destination" in line
    line = refused("export", str(tokens), str(tmp_path / "out"), "--format", "csv", code=2)
    assert "'csv' is not one of 'parquet', 'webdataset'" in line
    assert not (tmp_path / "out").exists()
    line = refused("import", "csv", str(tmp_path / "full"), str(tmp_path / "out"), code=2)
    assert "unknown format 'csv'; known: hf, litdata, mds, megatron, npy" in line
    line = refused("import", "npy", str(tmp_path / "nothing"), str(tmp_path / "out"), code=2)
    assert "no such file or folder; check the path" in line


def test_an_import_goes_on_after_an_interruption_and_appends_new_files(tokens: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "src").mkdir()
    np.save(tmp_path / "src" / "a.npy", rng.integers(0, 64, (20, 8, 8)))
    words = ["import", "npy", str(tmp_path / "src"), str(tmp_path / "out"), "--alphabet", "64", "--workers", "0"]
    first = run(*words)
    assert run(*words)["fingerprint"] == first["fingerprint"]  # complete already
    np.save(tmp_path / "src" / "b.npy", rng.integers(0, 64, (5, 8, 8)))
    assert run(*words, "--append")["num_samples"] == 25
