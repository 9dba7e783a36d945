"""A tokenizer of clips from end to end: trained, stored, converted with, read, shown, exported; always one dataset."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from PIL import Image

import tokenshard
from integration.command import command_here, refused
from sources.video.conftest import av, write_video
from tokenshard.loading.crop import Crop
from tokenshard.shards.verify import verify
from tokenshard.spec.job import TrainClassifier, TrainMtm, build_job
from tokenshard.store import Store
from tokenshard.tokenizers.folder import load_tokenizer
from tokenshard.tokenizers.frames import clip_size, decode_frames
from tokenshard.tokenizers.video import VideoVQ
from tokenshard.training.setting import ModelSetting

pytestmark = pytest.mark.integration
STACK = {"stem": 4, "channels": [8, 16], "blocks": [0, 0], "middle": 1}
NETWORK = {"architecture": "causal", "frames": 4, "dim": 4, "encoder": STACK, "decoder": STACK}
TRAIN = ["--frames", "5", "--fps", "10", "--clip-seconds", "1", "--crop", "16", "--batch", "2", "--steps", "8"]
LENGTHS = (14, 20, 25)


def frame(video: int, number: int) -> NDArray[np.uint8]:
    """A camera that moves over a photograph."""
    top, left = 30 * video + number, 60 * video + 2 * number
    return np.ascontiguousarray(skimage.data.coffee()[top : top + 40, left : left + 52])


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three videos of 10 frames a second."""
    root = tmp_path_factory.mktemp("videos")
    for video, length in enumerate(LENGTHS):
        write_video(root / f"{video}.mp4", [frame(video, number) for number in range(length)])
    return root


@pytest.fixture(scope="module")
def trained(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tokenizer")
    (root / "network.json").write_text(json.dumps(NETWORK))
    words = ["--network", str(root / "network.json"), "--codes", "16", "--set", "start=2", "--device", "cpu"]
    done = command_here("tokenizer", "train", str(videos), str(root / "mine"), *TRAIN, *words)
    assert done.returncode == 0, done.stderr
    return root / "mine"


def convert(src: Path, out: Path, tokenizer: Path, *words: str) -> dict[str, Any]:
    options = ["--tokenizer", str(tokenizer), "--clip-seconds", "1", "--labels", "name", "--quiet", "--json"]
    done = command_here("convert", "video", str(src), str(out), *options, "--engine", "local", *words)
    assert done.returncode == 0, done.stderr
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


@pytest.fixture(scope="module")
def tokens(videos: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("clips") / "out"
    convert(videos, out, trained, "--workers", "0")
    assert verify(Store(out), deep=True).ok
    return out


def test_rows_are_clips_of_groups_of_frames_with_all_their_time_stamps(videos: Path, tokens: Path) -> None:
    dataset = tokenshard.open(tokens)
    sizes = {}
    for row in (dataset[number] for number in range(len(dataset))):
        codes = np.asarray(row["codes"])
        sizes[row["key"]] = row["num_frames"]
        assert (row["groups"], row["height"], row["width"]) == (codes.shape[0], 40, 52)
        assert codes.shape == (1 + -(-(row["num_frames"] - 1) // 4), 5, 7)
        assert len(row["pts"]) == row["num_frames"]
    assert [sizes[f"{video}.mp4#{clip:05d}"] for video, clip in ((0, 0), (0, 1), (1, 1), (2, 2))] == [10, 4, 10, 5]
    tokenizer = dataset.tokenizer
    assert isinstance(tokenizer, VideoVQ)
    row = dataset[dataset.index("0.mp4#00001")]  # four frames: its last group is not complete
    with av.open(str(videos / "0.mp4")) as container:
        times = [round(shown.pts * shown.time_base * 1_000_000) for shown in container.decode(video=0)]
    assert row["pts"] == times[10:]
    assert decode_frames(tokenizer, np.asarray(row["codes"])[None], clip_size(row)).shape == (4, 40, 52, 3)


def test_clips_are_never_joined(videos: Path, tokens: Path, trained: Path) -> None:
    """Each clip begins with a first frame of its own, whatever came before in the file."""
    dataset, tokenizer = tokenshard.open(tokens), load_tokenizer(Store(trained))
    with av.open(str(videos / "1.mp4")) as container:
        second = [shown.to_ndarray(format="rgb24") for shown in container.decode(video=0)][10:]
    alone = tokenizer.encode(np.stack(second)[None])[0, 0]
    stored = np.asarray(dataset[dataset.index("1.mp4#00001")]["codes"])
    assert stored.shape == alone.shape
    assert (stored == alone).mean() > 0.8  # the source converts colours by another, exact scaler


@pytest.mark.parametrize(
    "engine",
    [["--workers", "2", "--batch-size", "1"], ["--workers", "0", "--batch-size", "8", "--decode-threads", "3"]],
    ids=" ".join,
)
def test_workers_batches_and_threads_change_nothing(
    videos: Path, tokens: Path, trained: Path, tmp_path: Path, engine: list[str]
) -> None:
    summary = convert(videos, tmp_path / "out", trained, *engine)
    assert summary["fingerprint"] == tokenshard.open(tokens).manifest.fingerprint


def test_clips_are_shown_exported_and_cropped(tokens: Path, tmp_path: Path) -> None:
    shown = command_here("show", str(tokens), "0.mp4#00001", "--out", str(tmp_path / "a.png"))
    assert "4 frames" in shown.stdout, shown.stderr
    assert Image.open(tmp_path / "a.png").height > 100
    words = ["--format", "mp4", "--key", "0.mp4#00001"]
    assert command_here("export", str(tokens), str(tmp_path / "movies"), *words).returncode == 0
    dataset = tokenshard.open(tokens)
    pts = dataset[dataset.index("0.mp4#00001")]["pts"]
    with av.open(str(tmp_path / "movies" / "0.mp4-00001.mp4")) as container:
        times = [round(float(one.pts * one.time_base), 3) for one in container.decode(video=0)]
    assert times == [round((time - pts[0]) / 1e6, 3) for time in pts]
    loader = tokenshard.loader(dataset, batch_size=3, crop=Crop((2, 4, 4)), columns=["codes", "key"], drop_last=True)
    assert {tuple(batch["codes"].shape) for batch in loader} == {(3, 2, 4, 4)}


def trained_on(tokens: Path, kind: str, out: Path, *words: str) -> dict[str, Any]:
    """The metrics of a short training."""
    options = ["--crop", "2x4x4", "--steps", "3", "--batch", "3", "--device", "cpu", "--json"]
    done = command_here("train", kind, "--data", str(tokens), str(out), *options, *words)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_trainers_learn_from_groups_and_draw_clips_that_can_be_decoded(
    videos: Path, tokens: Path, tmp_path: Path
) -> None:
    masked, classifier = tmp_path / "mtm", tmp_path / "classifier"
    small = ["--set", "model.size=micro", "--set", "model.stride=2", "--set", "mask.tube=true"]
    trained_on(tokens, "mtm", masked, *small)
    (picture,) = (masked / "training").glob("samples-*.png")
    assert Image.open(picture).width == (1 + 4) * 4 * 8  # a frame and a group of four, of 4 x 4 tokens
    words = ["--from", str(masked), "--val-where", "num_frames > 4"]
    assert np.isfinite(trained_on(tokens, "classifier", classifier, *words)["val_loss"])
    done = command_here("eval", str(masked), "--data", str(tokens), "--json")
    assert np.isfinite(json.loads(done.stdout)["bits_per_token"]), done.stderr
    done = command_here("predict", str(classifier), str(videos))
    assert len(done.stdout.splitlines()) == len(tokenshard.open(tokens)), done.stderr


@pytest.mark.parametrize("kind", [TrainMtm, TrainClassifier])
def test_only_masked_models_want_clips_from_their_first_frame(tokens: Path, tmp_path: Path, kind: Any) -> None:
    """They draw clips, and groups of frames cannot be decoded without those before."""
    dataset = tokenshard.open(tokens)
    openings = [np.asarray(dataset[number]["codes"])[:2] for number in range(len(dataset))]
    windows = np.concatenate([sliding_window_view(clip, (2, 4, 4)).reshape(-1, 32) for clip in openings])
    fields = {"source": {"path": str(tokens), "crop": (2, 4, 4)}, "output": str(tmp_path / "out"), "batch": 7}
    setting = ModelSetting(build_job(kind, fields), torch.device("cpu"), print)
    crops = np.concatenate([batch["codes"].reshape(-1, 32) for batch in islice(setting.loader(), 8)])
    assert (crops[:, None] == windows).all(axis=2).any(axis=1).all() == (kind is TrainMtm)


@pytest.mark.parametrize("how", [["--codec", "pack"], ["--codebook-size", "8"]], ids=" ".join)
def test_recoded_clips_stay_clips(tokens: Path, tmp_path: Path, how: list[str]) -> None:
    done = command_here("transcode", str(tokens), str(tmp_path / "few"), "--quiet", *how)
    assert done.returncode == 0, done.stderr
    words = ["--format", "mp4", "--key", "2.mp4#00002"]
    done = command_here("export", str(tmp_path / "few"), str(tmp_path / "movies"), *words)
    assert "5 frames" in done.stdout, done.stderr


def test_images_are_not_converted_with_a_tokenizer_of_clips(trained: Path, tmp_path: Path) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    words = ("convert", "images", str(tmp_path), str(tmp_path / "out"), "--tokenizer", str(trained))
    assert "a tokenizer of video samples; these are image samples" in refused(*words, code=2)
    assert "is a tokenizer of clips" in refused("tokenizer", "eval", str(trained), str(tmp_path), code=2)
