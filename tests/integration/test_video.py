"""`convert video`: one spec and one input give one dataset, whatever runs it and whatever dies; clips come back."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import tokenshard
from integration.command import command_line, tokenshard_command
from sources.video.conftest import av, numbered, write_video
from tokenshard.cli.main import cli
from tokenshard.shards.verify import verify
from tokenshard.store import Store

pytestmark = pytest.mark.integration
OPTIONS = ["--tokenizer", "patch:4x4,k=64", "--clip-seconds", "1", "--unit-samples", "3", "--max-rejects", "0.2"]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six videos of two classes, one of them cut off, and one that is none."""
    root = tmp_path_factory.mktemp("videos")
    for number in range(6):
        folder = root / ("even", "odd")[number % 2]
        folder.mkdir(exist_ok=True)
        frames = [numbered((3 * frame + number) % 32, 40, 48 + 4 * number) for frame in range(20 + number)]
        write_video(
            folder / f"{number}.mkv", frames, [0.1 * frame + 0.01 * (frame % 3) for frame in range(len(frames))]
        )
    whole = (root / "odd" / "5.mkv").read_bytes()
    (root / "odd" / "5.mkv").write_bytes(whole[: 2 * len(whole) // 3])
    (root / "even" / "none.mp4").write_text("no video")
    return root


def convert(src: Path, out: Path, *words: str) -> dict[str, Any]:
    done = tokenshard_command("convert", "video", str(src), str(out), "--quiet", "--json", *OPTIONS, *words)
    assert done.returncode == 0, done.stderr
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


@pytest.fixture(scope="module")
def tokens(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("video-tokens") / "out"
    summary = convert(videos, out, "--engine", "local", "--workers", "0")
    assert (summary["num_samples"], summary["num_rejects"]) == (16, 1)
    assert verify(Store(out), deep=True).ok
    return out


def fingerprint(out: Path) -> str:
    return tokenshard.open(out).manifest.fingerprint


@pytest.mark.parametrize(
    "engine",
    [["--workers", "2", "--batch-size", "1"], ["--workers", "0", "--batch-size", "5", "--decode-threads", "3"]],
    ids=" ".join,
)
def test_workers_batches_and_threads_change_nothing(
    videos: Path, tokens: Path, tmp_path: Path, engine: list[str]
) -> None:
    assert convert(videos, tmp_path / "out", "--engine", "local", *engine)["fingerprint"] == fingerprint(tokens)


def test_ray_and_s3_change_nothing(videos: Path, tokens: Path, s3_url: str, ray_address: str) -> None:
    source, out = Store(f"{s3_url}/videos"), f"{s3_url}/tokens"
    for path in sorted(videos.rglob("*.m*")):
        source.put(str(path.relative_to(videos)), path.read_bytes())
    summary = convert(f"{s3_url}/videos", out, "--engine", "ray", "--address", ray_address)  # type: ignore[arg-type]
    assert summary["fingerprint"] == fingerprint(tokens)


def test_a_killed_driver_goes_on_where_it_was(videos: Path, tokens: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = command_line("convert", "video", str(videos), str(out), "--quiet", *OPTIONS, "--workers", "1")
    for count in (1, 3):
        driver = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while driver.poll() is None and len(list((out / "data").glob("*.parquet"))) < count:
            time.sleep(0.01)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    assert convert(videos, out)["fingerprint"] == fingerprint(tokens)


def test_a_row_is_a_clip_with_its_time_stamps(videos: Path, tokens: Path) -> None:
    dataset = tokenshard.open(tokens)
    sample = dataset[dataset.index("even/0.mkv#00000")]
    codes = np.asarray(sample["codes"])
    assert codes.shape == (10, 10, 12)
    with av.open(str(videos / "even" / "0.mkv")) as container:
        stream = container.streams.video[0]
        times = [round(frame.pts * stream.time_base * 1_000_000) for frame in container.decode(stream)]
    assert sample["pts"] == times[:10]
    assert (sample["frames"], sample["height"], sample["width"], sample["label"]) == (10, 40, 48, 0)
    cut = dataset[dataset.index("odd/5.mkv#00001")]
    assert (cut["complete"], "the file ends at" in cut["incomplete_reason"]) == (False, True)


def test_clips_are_shown_and_exported_as_movies(tokens: Path, tmp_path: Path) -> None:
    shown = CliRunner().invoke(cli, ["show", str(tokens), "odd/1.mkv#00000", "--out", str(tmp_path / "a.png")])
    assert shown.exit_code == 0, shown.output
    assert Image.open(tmp_path / "a.png").size > (300, 300)
    words = ["export", str(tokens), str(tmp_path / "movies"), "--format", "mp4", "--key", "odd/1.mkv#00000"]
    assert CliRunner().invoke(cli, words).exit_code == 0
    dataset = tokenshard.open(tokens)
    sample = dataset[dataset.index("odd/1.mkv#00000")]
    with av.open(str(tmp_path / "movies" / "odd" / "1.mkv-00000.mp4")) as container:
        stream = container.streams.video[0]
        frames = [
            (frame.pts * stream.time_base, frame.to_ndarray(format="rgb24")) for frame in container.decode(stream)
        ]
    assert [round(float(time), 3) for time, _ in frames] == [
        round((time - sample["pts"][0]) / 1e6, 3) for time in sample["pts"]
    ]
    decoded = dataset.tokenizer.decode(np.asarray(sample["codes"])[:, None], (40, 52))
    shown_error = np.mean([np.abs(np.float32(a) - b).mean() for a, (_, b) in zip(decoded, frames, strict=True)])
    assert shown_error < 6
