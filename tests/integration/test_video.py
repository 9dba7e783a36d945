"""`convert video`: one spec and one input give one dataset, whatever runs it and whatever dies; clips come back."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import tokenshard
from integration.command import command_here, command_line, tokenshard_command
from sources.video.conftest import av, numbered, write_video
from tokenshard.cli.main import cli
from tokenshard.errors import SpecError
from tokenshard.shards.verify import verify
from tokenshard.store import Store
from tokenshard.tokenizers.clip_codebook import ClipCodebookTokenizer

pytestmark = pytest.mark.integration
OPTIONS = ["--clip-seconds", "1", "--unit-samples", "3", "--max-rejects", "0.2"]
TOKENIZERS = ("patch:4x4,k=64", "clip-codebook:patch:4x4,most=16")


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


@dataclass(frozen=True)
class Converted:
    """A dataset and the tokenizer it was asked for."""

    tokenizer: str
    out: Path

    def again(self, src: Path, out: Path, *words: str) -> str:
        """The fingerprint of the same conversion, done otherwise."""
        return str(convert(src, out, self.tokenizer, *words)["fingerprint"])


def convert(src: Path, out: Path, tokenizer: str, *words: str) -> dict[str, Any]:
    options = ["--quiet", "--json", "--tokenizer", tokenizer, *OPTIONS]
    run = tokenshard_command if "ray" in words else command_here
    done = run("convert", "video", str(src), str(out), *options, *words)
    assert done.returncode == 0, done.stderr
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


def converted(videos: Path, out: Path, tokenizer: str) -> Converted:
    summary = convert(videos, out, tokenizer, "--engine", "local", "--workers", "0")
    assert (summary["num_samples"], summary["num_rejects"]) == (16, 1)
    assert verify(Store(out), deep=True).ok
    return Converted(tokenizer, out)


@pytest.fixture(scope="module")
def tokens(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Converted:
    return converted(videos, tmp_path_factory.mktemp("video-tokens") / "out", TOKENIZERS[0])


@pytest.fixture(scope="module")
def codebooks(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Converted:
    return converted(videos, tmp_path_factory.mktemp("video-codebooks") / "out", TOKENIZERS[1])


@pytest.fixture(params=["tokens", "codebooks"])
def either(request: pytest.FixtureRequest) -> Converted:
    found: Converted = request.getfixturevalue(request.param)
    return found


def fingerprint(out: Path) -> str:
    return tokenshard.open(out).manifest.fingerprint


@pytest.mark.parametrize(
    "engine",
    [["--workers", "2", "--batch-size", "1"], ["--workers", "0", "--batch-size", "5", "--decode-threads", "3"]],
    ids=" ".join,
)
def test_workers_batches_and_threads_change_nothing(
    videos: Path, either: Converted, tmp_path: Path, engine: list[str]
) -> None:
    assert either.again(videos, tmp_path / "out", "--engine", "local", *engine) == fingerprint(either.out)


def test_ray_and_s3_change_nothing(videos: Path, either: Converted, s3_url: str, ray_address: str) -> None:
    source, out = Store(f"{s3_url}/videos"), f"{s3_url}/tokens"
    for path in sorted(videos.rglob("*.m*")):
        source.put(str(path.relative_to(videos)), path.read_bytes())
    found = either.again(f"{s3_url}/videos", out, "--engine", "ray", "--address", ray_address)  # type: ignore[arg-type]
    assert found == fingerprint(either.out)


def test_a_killed_driver_goes_on_where_it_was(videos: Path, either: Converted, tmp_path: Path) -> None:
    out, options = tmp_path / "out", ["--quiet", "--tokenizer", either.tokenizer, *OPTIONS, "--workers", "1"]
    words = command_line("convert", "video", str(videos), str(out), *options)
    for count in (1, 3):
        driver = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while driver.poll() is None and len(list((out / "data").glob("*.parquet"))) < count:
            time.sleep(0.01)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    assert either.again(videos, out) == fingerprint(either.out)


def test_a_row_is_a_clip_with_its_time_stamps(videos: Path, tokens: Converted) -> None:
    dataset = tokenshard.open(tokens.out)
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


def test_clips_are_shown_and_exported_as_movies(tokens: Converted, tmp_path: Path) -> None:
    shown = CliRunner().invoke(cli, ["show", str(tokens.out), "odd/1.mkv#00000", "--out", str(tmp_path / "a.png")])
    assert shown.exit_code == 0, shown.output
    assert Image.open(tmp_path / "a.png").size > (300, 300)
    words = ["export", str(tokens.out), str(tmp_path / "movies"), "--format", "mp4", "--key", "odd/1.mkv#00000"]
    assert CliRunner().invoke(cli, words).exit_code == 0
    dataset = tokenshard.open(tokens.out)
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


def test_codebooks_of_clips_are_read_measured_and_not_drawn(codebooks: Converted, tmp_path: Path) -> None:
    dataset = tokenshard.open(codebooks.out)
    sample = dataset[dataset.index("odd/1.mkv#00000")]
    tokenizer = dataset.tokenizer
    assert isinstance(tokenizer, ClipCodebookTokenizer)
    found = tokenizer.codebook_of(sample)
    assert found.index.shape == np.asarray(sample["codes"]).shape == (10, 10, 13)
    assert found.codewords.shape == (sample["codewords"], tokenizer.config.features.dim)
    assert found.features().shape == (*found.index.shape, found.codewords.shape[1])
    done = CliRunner().invoke(cli, ["stats", str(codebooks.out), "--json"])
    figures = json.loads(done.output)
    table = dataset.table(["num_tokens", "codewords", "cosine"]).to_pandas()
    assert figures["token_reduction"] == pytest.approx(table.num_tokens.sum() / table.codewords.sum())
    assert figures["reconstruction_cosine"] == pytest.approx(
        (table.cosine * table.num_tokens).sum() / table.num_tokens.sum()
    )
    assert figures["tok_dense"] == pytest.approx(figures["reconstruction_cosine"] / table.codewords.mean())
    assert figures["tok_dense"] > figures["tok_dense_of_features"]
    shown = CliRunner().invoke(cli, ["show", str(codebooks.out), "--out", str(tmp_path / "a.png")])
    assert isinstance(shown.exception, SpecError) or "not pixels" in shown.output
