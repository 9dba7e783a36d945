"""Clips for training: drawn by seed and step, cut and turned as a whole, in their order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from integration.command import tokenshard_command
from sources.video.conftest import numbered, write_video
from tokenshard.errors import SpecError
from tokenshard.spec.train import TrainingImagesSpec
from tokenshard.store import Store
from tokenshard.tokenizers.conv_network import to_uint8
from tokenshard.tokenizers.folder import load_tokenizer
from tokenshard.training.clips import ClipPool
from tokenshard.training.images import training_clips

pytestmark = pytest.mark.usefixtures("one_thread")


def clips(*lengths: int) -> list[np.ndarray]:
    """Frames whose grey level is 20 times their number, and says of which clip they are."""
    return [
        np.stack([np.full((40, 48 + 8 * number, 3), 20 * frame + number, np.uint8) for frame in range(length)])
        for number, length in enumerate(lengths)
    ]


def test_frames_of_a_clip_follow_each_other() -> None:
    pool = ClipPool.of(clips(7, 12), 5)
    drawn = to_uint8(pool.draw(64, 16, (1, 1), 3, 0))
    assert drawn.shape == (64, 3, 5, 16, 16)
    levels = drawn.flatten(3).float().mean((1, 3))
    assert drawn.flatten(3).float().std(3).max() == 0  # no crop reaches into another frame
    assert (levels.diff(dim=1) == 20).all()
    assert {int(level) % 20 for level in levels.flatten()} == {0, 1}
    assert levels[:, 0].unique().numel() > 4


def test_short_clips_end_with_their_last_frame() -> None:
    drawn = to_uint8(ClipPool.of(clips(3), 5).draw(2, 16, (1, 1), 0, 0))
    assert drawn[0, 0, :, 0, 0].tolist() == [0, 20, 40, 40, 40]


def test_a_clip_is_cut_and_turned_as_a_whole() -> None:
    rng = np.random.default_rng(0)
    still = np.repeat(rng.integers(0, 255, (1, 40, 40, 3), np.uint8), 5, 0)
    drawn = ClipPool.of([still], 5).draw(8, 16, (0.7, 1.5), 0, 4)
    assert (drawn == drawn[:, :, :1]).all()
    assert not torch.equal(drawn[0], drawn[1])


def test_parts_of_a_batch_are_those_of_the_whole() -> None:
    pool = ClipPool.of(clips(9, 12), 5)
    whole = pool.draw(6, 16, (0.6, 1.6), 1, 2)
    assert torch.equal(pool.draw(6, 16, (0.6, 1.6), 1, 2, slice(2, 4)), whole[2:4])
    assert not torch.equal(pool.draw(6, 16, (0.6, 1.6), 1, 3), whole)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    for number in range(4):
        frames = [numbered((frame + 4 * number) % 32, 48, 64) for frame in range(24)]
        write_video(root / f"{number}.mp4", frames)
    (root / "broken.mp4").write_text("no video")
    return root


def test_held_out_clips_are_of_other_videos(videos: Path) -> None:
    said: list[str] = []
    fields = {"path": str(videos), "clips": {"fps": None, "clip_seconds": 1}, "held_out": 9}
    spec = TrainingImagesSpec.model_validate(fields)
    learned, held_out = training_clips(spec, 5, {}, said.append)
    assert (len(learned), len(held_out)) == (9, 3)  # three clips of each video
    assert said == ["1 videos could not be read and are left out"]
    frames, _ = training_clips(spec, None, {}, said.append)
    assert len(frames) == 3 * 24
    alone = spec.model_copy(update={"path": str(videos / "0.mp4")})
    assert [len(pool) for pool in training_clips(alone, 5, {}, said.append)] == [2, 1]
    with pytest.raises(SpecError, match=r"source.form of videos"):
        training_clips(spec.model_copy(update={"form": "coco"}), 5, {}, said.append)


def test_the_command_learns_from_clips_and_goes_on_where_it_stopped(videos: Path, tmp_path: Path) -> None:
    network = tmp_path / "network.json"
    stack = {"stem": 4, "channels": [8, 8], "blocks": [0, 0], "middle": 1}
    words = f'{{"architecture": "causal", "dim": 4, "encoder": {stack}, "decoder": {stack}}}'.replace("'", '"')
    network.write_text(words)
    options = ["--network", str(network), "--frames", "5", "--fps", "10", "--clip-seconds", "1", "--crop", "16"]
    options += ["--batch", "2", "--steps", "6", "--codes", "8", "--set", "start=2", "--device", "cpu"]
    options += ["--checkpoint-every", "3"]
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    done = tokenshard_command("tokenizer", "train", str(videos), str(whole), *options)
    assert done.returncode == 0, done.stderr
    assert "9 clips to train on, 3 held out" in done.stdout
    assert (whole / "training" / "samples-00000006.png").exists()
    for _ in range(2):
        stopped = tokenshard_command("tokenizer", "train", str(videos), str(halves), *options, "--max-minutes", "0")
        assert stopped.returncode == 0, stopped.stderr
    last = tokenshard_command("tokenizer", "train", str(videos), str(halves), *options)
    assert "going on from step" in last.stdout
    assert load_tokenizer(Store(halves)).spec == load_tokenizer(Store(whole)).spec
