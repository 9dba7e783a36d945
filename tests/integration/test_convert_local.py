"""Conversions from the command line's point of view: what is written, what a second run does, what errors say."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tokenshard
from integration import command
from integration.command import command_line, refused, tokenshard_command
from tokenshard.shards.rejects import read_rejects
from tokenshard.shards.verify import verify
from tokenshard.store import Store

QUICK = ["--tokenizer", "patch:4x4,k=32", "--engine", "local", "--workers", "0"]


def convert(src: Path, out: Path | str, *words: str) -> dict[str, Any]:
    return command.convert(src, out, *QUICK, *words)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """40 labelled images in two classes."""
    root = tmp_path / "images"
    draw = np.random.default_rng(0)
    for number in range(40):
        path = root / ("cat" if number % 2 else "dog") / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = draw.integers(0, 40, (16, 24, 3))
        Image.fromarray((noise + 5 * number).astype(np.uint8)).save(path)
    return root


def test_a_folder_becomes_a_dataset_that_decodes(images: Path, tmp_path: Path) -> None:
    summary = convert(images, tmp_path / "out", "--unit-samples", "16")
    assert {"num_samples", "num_rejects", "seconds", "fingerprint"} <= summary.keys()
    assert (summary["num_samples"], summary["num_rejects"], summary["num_units"]) == (40, 0, 3)
    dataset = tokenshard.open(tmp_path / "out")
    assert len(dataset) == 40
    assert dataset.codes([0]).shape == (1, 4, 6)
    assert dataset.table(["key"]).column("key").to_pylist()[0] == "cat/01.png"
    assert dataset[0]["label"] == 0
    sample = dataset[0]
    decoded = dataset.tokenizer.decode(sample["codes"][None, None], (16, 24))[0]
    original = np.asarray(Image.open(images / "cat" / "01.png"))
    assert np.abs(decoded.astype(int) - original).mean() < 20
    assert verify(Store(tmp_path / "out"), deep=True).ok


def test_the_same_command_again_changes_nothing(images: Path, tmp_path: Path) -> None:
    first = convert(images, tmp_path / "out")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()}
    again = convert(images, tmp_path / "out")
    assert again["fingerprint"] == first["fingerprint"]
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_append_adds_what_is_new(images: Path, tmp_path: Path) -> None:
    convert(images, tmp_path / "out")
    Image.new("RGB", (24, 16), (9, 9, 9)).save(images / "cat" / "new.png")
    summary = convert(images, tmp_path / "out", "--append")
    assert summary["num_samples"] == 41
    dataset = tokenshard.open(tmp_path / "out")
    assert dataset.manifest.version == 2
    assert dataset[40]["key"] == "cat/new.png"
    assert len(tokenshard.open(tmp_path / "out", version=1)) == 40
    assert convert(images, tmp_path / "out", "--append")["num_samples"] == 41
    assert verify(Store(tmp_path / "out"), deep=True).ok


@pytest.mark.parametrize("where", ["disk", "s3"])
def test_readers_see_one_version_or_the_other_while_more_is_appended(
    images: Path, tmp_path: Path, s3_url: str, where: str
) -> None:
    out = str(tmp_path / "out") if where == "disk" else s3_url
    convert(images, out, "--unit-samples", "8")
    opened = tokenshard.open(out)
    before = read_whole(opened)
    for path in list(images.rglob("*.png")):
        Image.open(path).transpose(Image.Transpose.ROTATE_180).save(path.with_stem(f"{path.stem}-turned"))
    words = ["convert", "images", str(images), out, *QUICK, "--append", "--quiet"]
    seen = []
    with subprocess.Popen(command_line(*words), stderr=subprocess.PIPE) as writer:
        while writer.poll() is None:
            seen.append(read_whole(tokenshard.open(out)))
        assert writer.returncode == 0, writer.communicate()[1]
    after = read_whole(tokenshard.open(out))
    assert (before[:2], after[:2]) == ((1, 40), (2, 80))
    assert before in seen
    assert all(one in (before, after) for one in seen)
    assert read_whole(opened) == before


def read_whole(dataset: tokenshard.Dataset) -> tuple[int, int, str]:
    """Version, number of samples and a hash of all keys and codes."""
    content = hashlib.sha256(str(dataset.table(["key"]).column("key").to_pylist()).encode())
    for sample in dataset:
        content.update(sample["codes"].tobytes())
    return dataset.manifest.version, len(dataset), content.hexdigest()


def test_bad_files_are_rejects_and_a_retry_takes_the_repaired_ones(images: Path, tmp_path: Path) -> None:
    good = (images / "cat" / "01.png").read_bytes()
    (images / "cat" / "cut.png").write_bytes(good[: len(good) // 2])
    (images / "cat" / "empty.png").write_bytes(b"")
    (images / "dog" / "page.jpg").write_bytes(b"<html>not found</html>")
    out = tmp_path / "out"
    message = refused("convert", "images", str(images), str(out), *QUICK, code=3)
    assert "3 of 43 inputs were rejected" in message
    assert not (out / "manifest").exists()
    assert convert(images, out, "--max-rejects", "0.1")["num_rejects"] == 3
    store = Store(out)
    rejects = read_rejects(store, tokenshard.open(out).manifest).to_pylist()
    assert {row["key"] for row in rejects} == {"cat/cut.png", "cat/empty.png", "dog/page.jpg"}
    assert all(row["uri"] and row["stage"] == "decode" and row["error"] and row["message"] for row in rejects)
    shards = {path: path.stat().st_mtime_ns for path in (out / "data").iterdir()}
    for name in ("cat/cut.png", "cat/empty.png"):
        (images / name).write_bytes(good)
    done = tokenshard_command("retry", str(out), "--json", "--quiet")
    assert done.returncode == 0, done.stderr
    assert (json.loads(done.stdout)["num_samples"], json.loads(done.stdout)["num_rejects"]) == (42, 1)
    assert {path: path.stat().st_mtime_ns for path in shards} == shards
    assert verify(store, deep=True).ok


def test_another_job_in_the_same_output_is_refused_by_field(images: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    convert(images, out)
    command = ["convert", "images", str(images), out, "--engine", "local", "--workers", "0", "--quiet"]
    assert "tokenizer: 'patch:4x4,k=32' there" in refused(*command, "--tokenizer", "patch:8x8,k=32", code=2)
    same = [*command, "--tokenizer", "patch:4x4,k=32"]
    assert "codec: 'auto' there, 'pack' here" in refused(*same, "--codec", "pack", code=2)
    assert "unit.samples: 4096 there, 10 here" in refused(*same, "--unit-samples", "10", code=2)
    assert "seed: 0 there, 1 here" in refused(*same, "--seed", "1", code=2)
    assert "source.size" in refused(*same, "--size", "8", code=2)
    assert "--no-resume" in refused(*same, "--no-resume", code=2)
    summary = convert(images, out, "--overwrite", "--codec", "pack")
    assert summary["num_samples"] == 40
    assert tokenshard.open(out).manifest.code.columns[0].codec == "pack"


def test_an_output_with_files_of_others_is_left_alone(images: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("precious")
    command = ["convert", "images", str(images), str(tmp_path / "out"), *QUICK]
    assert "is not empty" in refused(*command, code=2)
    assert "thesis.tex" in refused(*command, "--overwrite", code=2)
    assert (tmp_path / "out" / "thesis.tex").read_text() == "precious"


def test_a_dry_run_counts_and_writes_nothing(images: Path, tmp_path: Path) -> None:
    summary = convert(images, tmp_path / "out", "--dry-run", "--unit-samples", "16")
    assert (summary["num_inputs"], summary["num_units"]) == (40, 3)
    assert not (tmp_path / "out").exists()


def test_usage_errors_are_one_line(images: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    assert "missing" in refused("convert", "images", str(tmp_path / "missing"), out, *QUICK, code=2)
    assert "unknown tokenizer" in refused("convert", "images", str(images), out, "--tokenizer", "vqgan9", code=2)
    (tmp_path / "empty").mkdir()
    assert "no " in refused("convert", "images", str(tmp_path / "empty"), out, *QUICK, code=2)
    assert not (tmp_path / "out" / "manifest").exists()
    assert "no token dataset" in refused("info", str(tmp_path / "nowhere"), code=2)
    (tmp_path / "file").write_text("")
    assert "file" in refused("convert", "images", str(images), str(tmp_path / "file" / "out"), *QUICK)
    assert convert(images, out)["num_samples"] == 40


def test_a_wrong_option_can_be_corrected_in_place(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused("convert", "images", str(images / "cta"), str(out), *QUICK, code=2)
    assert convert(images, out)["num_samples"] == 40


def test_info_stats_show_and_verify_read_the_dataset(images: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    summary = convert(images, out)
    found = json.loads(tokenshard_command("info", out, "--json").stdout)
    assert found["fingerprint"] == summary["fingerprint"]
    assert (found["num_samples"], found["num_tokens"], found["num_rejects"]) == (40, 40 * 24, 0)
    assert found["bytes"] == sum(path.stat().st_size for path in (tmp_path / "out" / "data").iterdir())
    figures = json.loads(tokenshard_command("stats", out, "--json").stdout)
    assert {"bits_per_token", "order0_entropy", "codec", "bytes_per_sample"} <= figures.keys()
    assert json.loads(tokenshard_command("verify", out, "--deep", "--json").stdout)["ok"] is True
    picture = tmp_path / "grid.png"
    done = tokenshard_command("show", out, "cat/01.png", "dog/02.png", "--out", str(picture))
    assert done.returncode == 0, done.stderr
    assert "dB" in done.stdout
    assert Image.open(picture).size[0] > 400
    assert "no sample with key 'cat/77.png'" in refused("show", out, "cat/77.png", "--out", str(picture), code=2)


def test_clean_removes_leftovers_only(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(images, out)
    (out / "data" / "orphan.parquet").write_bytes(b"x")
    (out / ".tmp").mkdir(exist_ok=True)
    (out / ".tmp" / "abandoned").write_bytes(b"x")
    done = tokenshard_command("clean", str(out), "--yes", "--journal")
    assert done.returncode == 0, done.stderr
    assert not (out / "data" / "orphan.parquet").exists()
    assert not (out / ".tmp").exists()
    assert not (out / "_job").exists() or not any(path.is_file() for path in (out / "_job").rglob("*"))
    assert verify(Store(out), deep=True).ok


def test_rejected_samples_do_not_stop_a_verify(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(images, out)
    shard = next((out / "data").iterdir())
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 1
    shard.write_bytes(data)
    done = tokenshard_command("verify", str(out))
    assert done.returncode == 1
    assert shard.name in done.stdout
