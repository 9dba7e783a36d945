"""One spec and one input give one dataset, whatever runs it, how often, and where it is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tokenshard
from integration.command import convert, tokenshard_command
from tokenshard.shards.verify import verify
from tokenshard.store import Store

pytestmark = pytest.mark.integration
OPTIONS = ["--tokenizer", "patch:4x4,k=64", "--unit-samples", "10", "--max-rejects", "0.1"]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 images of many sizes in two classes, and two broken ones."""
    root = tmp_path_factory.mktemp("mixed")
    draw = np.random.default_rng(3)
    for number in range(64):
        path = root / ("even", "odd")[number % 2] / f"{number:02d}.{('png', 'jpg', 'webp')[number % 3]}"
        path.parent.mkdir(exist_ok=True)
        height, width = draw.integers(20, 120, 2)
        pixels = np.linspace(0, 200, width)[None, :, None] + draw.integers(0, 55, (height, width, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    (root / "odd" / "cut.jpg").write_bytes((root / "odd" / "01.jpg").read_bytes()[:300])
    (root / "even" / "empty.png").touch()
    return root


@pytest.fixture(scope="module")
def reference(mixed: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Summary of the simplest run: one worker, this process."""
    out = tmp_path_factory.mktemp("reference") / "out"
    summary = convert(mixed, out, *OPTIONS, "--engine", "local", "--workers", "0")
    assert (summary["num_samples"], summary["num_rejects"]) == (64, 2)
    assert verify(Store(out), deep=True).ok
    return summary


@pytest.fixture(scope="module")
def by_default(mixed: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Summary of the simplest run with the tokenizer of the package."""
    out = tmp_path_factory.mktemp("by-default") / "out"
    return convert(mixed, out, *OPTIONS[2:], "--tokenizer", "default", "--engine", "local", "--workers", "0")


@pytest.mark.parametrize(
    "engine",
    [
        ["--workers", "0", "--batch-size", "1"],
        ["--workers", "2", "--batch-size", "16"],
        ["--workers", "1", "--batch-size", "64", "--decode-threads", "3"],
    ],
    ids=" ".join,
)
def test_local_workers_and_batch_sizes_change_nothing(
    mixed: Path, tmp_path: Path, reference: dict[str, Any], engine: list[str]
) -> None:
    summary = convert(mixed, tmp_path / "out", *OPTIONS, "--engine", "local", *engine)
    assert summary["fingerprint"] == reference["fingerprint"]


@pytest.mark.parametrize("workers", [pytest.param("1", marks=pytest.mark.nightly), "2"])
def test_ray_changes_nothing(
    mixed: Path, tmp_path: Path, reference: dict[str, Any], ray_address: str, workers: str
) -> None:
    engine = ["--engine", "ray", "--address", ray_address, "--workers", workers]
    summary = convert(mixed, tmp_path / "out", *OPTIONS, *engine)
    assert summary["engine"] == "ray"
    assert summary["fingerprint"] == reference["fingerprint"]


def test_embedded_ray_changes_nothing(mixed: Path, tmp_path: Path, reference: dict[str, Any]) -> None:
    summary = convert(mixed, tmp_path / "out", *OPTIONS, "--engine", "ray", "--workers", "2")
    assert summary["fingerprint"] == reference["fingerprint"]


def test_s3_as_source_and_output_changes_nothing(
    mixed: Path, tmp_path: Path, reference: dict[str, Any], s3_url: str
) -> None:
    source, bucket = Store(mixed), Store(s3_url)
    for entry in source.list():
        bucket.put(f"raw/{entry.name}", source.read(entry.name))
    out = f"{s3_url}/tokens"
    summary = convert(f"{s3_url}/raw", out, *OPTIONS, "--engine", "local", "--workers", "2")
    assert summary["fingerprint"] == reference["fingerprint"]
    assert verify(Store(out), deep=True).ok
    dataset = tokenshard.open(out)
    assert dataset[0]["key"] == "even/00.png"
    assert convert(f"{s3_url}/raw", out, *OPTIONS)["fingerprint"] == reference["fingerprint"]


def test_ray_workers_read_and_write_s3(mixed: Path, reference: dict[str, Any], s3_url: str) -> None:
    summary = convert(mixed, f"{s3_url}/tokens", *OPTIONS, "--engine", "ray", "--workers", "2")
    assert summary["fingerprint"] == reference["fingerprint"]


def test_a_saved_tokenizer_gives_the_dataset_it_was_made_for(
    mixed: Path, tmp_path: Path, reference: dict[str, Any]
) -> None:
    saved = next(Path(reference["output"], "tokenizer").iterdir())
    summary = convert(mixed, tmp_path / "out", *OPTIONS[2:], "--tokenizer", str(saved), "--engine", "local")
    assert summary["fingerprint"] == reference["fingerprint"]


@pytest.mark.parametrize(
    "engine",
    [
        ["--engine", "local", "--workers", "2", "--batch-size", "16"],
        ["--engine", "local", "--workers", "0", "--batch-size", "1", "--decode-threads", "3"],
        ["--engine", "ray", "--workers", "2"],
    ],
    ids=" ".join,
)
def test_the_default_tokenizer_gives_the_same_ids_whatever_runs_it(
    mixed: Path, tmp_path: Path, by_default: dict[str, Any], ray_address: str, engine: list[str]
) -> None:
    engine = [*engine, *(["--address", ray_address] if "ray" in engine else [])]
    summary = convert(mixed, tmp_path / "out", *OPTIONS[2:], "--tokenizer", "default", *engine)
    assert summary["fingerprint"] == by_default["fingerprint"]


def test_a_dataset_of_the_default_tokenizer_holds_it_and_can_be_shown(
    by_default: dict[str, Any], tmp_path: Path
) -> None:
    dataset = tokenshard.open(by_default["output"])
    assert dataset.tokenizer.spec.kind == "conv"
    assert dataset[0]["codes"].shape == dataset.tokenizer.grid(dataset[0]["height"], dataset[0]["width"])
    done = tokenshard_command("show", by_default["output"], "--out", str(tmp_path / "grid.png"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "grid.png").exists()
