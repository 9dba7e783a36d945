"""Clips in the trainers: what only time tells is learned, hidden codes stay hidden, and other lengths are said so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray

from engine.arrays import import_arrays
from sources.video.conftest import write_video
from tokenshard.cli.main import cli
from tokenshard.errors import SpecError
from tokenshard.spec.training import AugmentSpec, MaskSpec
from tokenshard.store import Store
from tokenshard.training.augment.draws import Draws
from tokenshard.training.augment.recipe import Augmentation
from tokenshard.training.folder import load_model
from tokenshard.training.masks import draw_masks
from tokenshard.training.models.masked import MaskedConfig, MaskedModel
from tokenshard.training.models.vit import EncoderConfig, TokenEncoder, inflated
from tokenshard.training.setting import Outcome
from tokenshard.training.start import train
from training.conftest import classifier_job, mtm_job, quiet

pytestmark = pytest.mark.integration
SMALL: dict[str, Any] = {"model": {"size": "micro", "stride": 2}, "log": {"every": 20, "checkpoint_every": 400}}
PLAIN = {"cutmix": 0, "synonyms": 0, "swap": 0, "noise": 0, "crop_scale": [1, 1]}


def moving(number: int, frames: int, side: int) -> NDArray[np.uint16]:
    """A bar that moves to the right, to the left, or stands, by the label of the sample: no frame tells which. The
    ground of ``side`` x ``side`` codes, or of a single one, stays as it is."""
    rng = np.random.default_rng(number)
    codes = np.array(np.broadcast_to(rng.integers(0, 2, (1, 1, side, side)), (1, frames, 8, 8)))
    first = rng.integers(8)
    for frame in range(frames):
        codes[0, frame, :, (first + (1, -1, 0)[number % 3] * frame) % 8] = 12
    return codes.astype(np.uint16)


def source(clips: Path, *crop: int) -> dict[str, Any]:
    return {"path": str(clips / "train"), "val": str(clips / "val"), "crop": crop}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`train/` and `val/`, and `plain/` on grounds of one code: clips of several lengths, with a codebook."""
    root = tmp_path_factory.mktemp("clips")
    codebook = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
    for name, first, count, side in (("train", 0, 192, 8), ("val", 1000, 48, 8), ("plain", 2000, 96, 1)):
        (root / "made" / name).mkdir(parents=True)
        codes = [moving(number, 4 + number % 2, side) for number in range(first, first + count)]
        import_arrays(root / "made" / name, codes, first=first, codebook=codebook, source={"alphabet": 16})
        (root / name).symlink_to(root / "made" / name / "tokens")
    return root


@pytest.fixture(scope="module")
def classified(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    out = tmp_path_factory.mktemp("models") / "classifier"
    return out, train(
        classifier_job(
            clips,
            out,
            **SMALL,
            source=source(clips, 4, 8, 8),
            steps=200,
            augment=PLAIN,
            optimizer={"lr": 1e-3, "ema": 0.9},
        ),
        quiet,
    )


@pytest.fixture(scope="module")
def pretrained(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    out, model = tmp_path_factory.mktemp("models") / "mtm", {**SMALL["model"], "stem": "patch"}
    grids = {"path": str(clips / "plain"), "crop": [4, 8, 8]}
    job = mtm_job(clips, out, **{**SMALL, "model": model}, source=grids, steps=80, samples=2)
    return out, train(job, quiet)


def test_a_classifier_learns_what_only_time_tells(classified: tuple[Path, Outcome]) -> None:
    assert classified[1].metrics["val_top1"] > 0.8  # a single frame: 1 / 3


def test_a_masked_model_learns_from_clips(pretrained: tuple[Path, Outcome]) -> None:
    assert pretrained[1].metrics["loss"] < 0.85  # without a look at the visible codes 0.98


@pytest.mark.parametrize("kind", ["knn", "linear", "attentive"])
def test_probes_read_clips(clips: Path, classified: tuple[Path, Outcome], kind: str) -> None:
    words = ["probe", str(classified[0]), "--data", str(clips / "train"), "--val", str(clips / "val")]
    done = CliRunner().invoke(cli, [*words, "--kind", kind, "--layer", "4", "--epochs", "3", "--json"])
    assert done.exit_code == 0, done.output
    assert float(done.output.partition('"top1":')[2].split("}")[0]) > 0.6


def test_fine_tuning_goes_on_with_longer_clips(clips: Path, pretrained: tuple[Path, Outcome], tmp_path: Path) -> None:
    longer = {"path": str(clips / "train"), "where": "serial > 0", "crop": [2, 8, 8]}
    job = classifier_job(clips, tmp_path / "a", source=longer, steps=1, start=str(pretrained[0]), model={})
    train(job, quiet)
    encoder = load_model(Store(str(tmp_path / "a"))).encoder
    assert (encoder.config.grid, encoder.config.tubelet, encoder.config.positions) == ((2, 8, 8), 2, (1, 4, 4))
    with pytest.raises(SpecError, match="tubelets of 2 frames"):
        train(
            classifier_job(
                clips, tmp_path / "b", source=source(clips, 3, 8, 8), steps=1, start=str(pretrained[0]), model={}
            ),
            quiet,
        )


@pytest.mark.parametrize(
    ("crop", "model", "wrong"),
    [(None, {}, "--crop FRAMESxROWSxCOLUMNS"), ([8, 8], {}, "does not fit"), ([3, 8, 8], {"tubelet": 2}, "tubelet")],
)
def test_what_does_not_fit_clips_is_said(
    clips: Path, tmp_path: Path, crop: list[int] | None, model: dict[str, Any], wrong: str
) -> None:
    fields: dict[str, Any] = {"source": {"path": str(clips / "train"), "crop": crop}, "model": model}
    with pytest.raises(SpecError, match=wrong):
        train(classifier_job(clips, tmp_path / "x", steps=1, **fields), quiet)


def test_an_encoder_of_images_sees_a_clip_that_stands_still_as_its_frame() -> None:
    fields: dict[str, Any] = {"alphabets": (16,), "dim": 8, "embedding": "learned", "stem": "overlap", "stride": 2}
    fields |= {"width": 32, "depth": 2, "heads": 2}
    torch.manual_seed(0)
    image = TokenEncoder(EncoderConfig(**fields, grid=(8, 8)))
    clip = TokenEncoder(EncoderConfig(**fields, grid=(4, 8, 8), tubelet=2))
    clip.load_state_dict(inflated(image.state_dict(), 2))
    ids = torch.randint(0, 16, (3, 1, 8, 8))
    with torch.no_grad():
        frame = image.patches(image.embed(ids)) - image.positions
        still = clip.patches(clip.embed(ids[:, :, None].expand(-1, -1, 4, -1, -1))) - clip.positions
    torch.testing.assert_close(still.view(3, 2, 16, 32), frame[:, None].expand(-1, 2, -1, -1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("mixed", ["cutmix", "mixup"])
def test_a_clip_that_stands_still_stands_still_when_it_is_augmented(mixed: str) -> None:
    spec = AugmentSpec(synonyms=0.5, swap=0.5, noise=1, color_adapt=0.5, **{"cutmix": 0, mixed: 1})
    codebook = torch.randn(16, 8)
    augmentation = Augmentation(spec, (4, 8, 8), [codebook])
    frame = torch.randint(0, 16, (12, 1, 1, 8, 8))
    ids, targets = frame.expand(-1, -1, 4, -1, -1), torch.eye(12)
    found, shares = augmentation.mixtures(ids, targets, lambda ids: codebook[ids[:, 0]].movedim(-1, 1), Draws(0, 0))
    assert found.shape == (12, 8, 4, 8, 8)
    assert torch.equal(found, found[:, :, :1].expand_as(found))
    assert float((found[:, :, 0] - codebook[frame[:, 0, 0]].movedim(-1, 1)).abs().mean()) > 0.1
    assert float(shares.diagonal().min()) < 1


def masked(tubelet: int) -> MaskedModel:
    torch.manual_seed(0)
    config = EncoderConfig(
        alphabets=(64, 64), dim=8, embedding="frozen", grid=(4, 8, 4), stem="patch", stride=2, tubelet=tubelet,
        width=32, depth=2, heads=2,
    )  # fmt: skip
    return MaskedModel(MaskedConfig(encoder=config, width=32, depth=1, head="tied")).eval()


@pytest.mark.parametrize("tubelet", [1, 2])
@pytest.mark.parametrize("tube", [False, True])
def test_hidden_codes_of_clips_change_no_output(tubelet: int, tube: bool) -> None:
    module, times = masked(tubelet), 4 // tubelet
    torch.nn.init.normal_(module.encoder.embedding.table)
    ids = torch.randint(0, 64, (4, 2, 4, 8, 4))
    positions = 8 if tube else 8 * times
    masks = draw_masks(MaskSpec(), 4, positions, 2, False, Draws(0, 0)).at_times(times if tube else 1)
    hidden = module.by_code(masks.kept)[:, None] == 0
    assert 0 < float(hidden.float().mean()) < 1
    if tube:
        assert bool((hidden == hidden[:, :, :1]).all())
    other = torch.where(hidden, torch.randint(0, 64, ids.shape), ids)
    with torch.no_grad():
        assert float((module(ids, *masks) - module(other, *masks)).abs().max()) == 0
        assert float((module(ids, *masks) - module(63 - ids, *masks)).abs().max()) > 0


@pytest.mark.parametrize("tubelet", [1, 2])
def test_codes_of_positions_become_the_grid_again(tubelet: int) -> None:
    module = masked(tubelet)
    ids = torch.arange(2 * 2 * 4 * 8 * 4).view(2, 2, 4, 8, 4)
    codes = module.codes_of(ids)
    assert codes.shape == (2, 32 // tubelet, 4 * tubelet, 2)
    assert torch.equal(module.grid_of(codes), ids)
    first = ids[0, :, :tubelet, :2, :2].flatten(1).T  # what the first position covers, frame by frame
    assert torch.equal(codes[0, 0], first)
    numbers = torch.arange(32 // tubelet).expand(2, -1)
    covered = module.by_code(numbers)[:, None].expand_as(ids)
    assert torch.equal(module.codes_of(covered)[..., 0, 0], numbers)


def test_videos_are_predicted_as_they_were_learned(tmp_path: Path) -> None:
    """A square that moves to the right or to the left, converted, learned and predicted."""
    for number in range(12):
        name, step = (("left", -2), ("right", 2))[number % 2]
        (tmp_path / "videos" / name).mkdir(parents=True, exist_ok=True)
        frames = np.full((12, 32, 32, 3), 30, np.uint8)
        for place, frame in enumerate(frames):
            frame[8:24, (np.arange(8) + 2 * number + step * place) % 32] = 220
        write_video(tmp_path / "videos" / name / f"{number:02d}.mkv", list(frames), [0.1 * at for at in range(12)])
    run = CliRunner().invoke
    words = ["--tokenizer", "patch:4x4,k=16", "--clip-seconds", "0.6", "--workers", "0", "--quiet"]
    done = run(cli, ["convert", "video", str(tmp_path / "videos"), str(tmp_path / "tokens"), *words])
    assert done.exit_code == 0, done.output
    words = ["--data", str(tmp_path / "tokens"), "--crop", "4x8x8", "--size", "micro", "--batch", "12", "--steps", "60"]
    words += [f"--set=augment.{name}={'[1,1]' if name == 'crop_scale' else 0}" for name in PLAIN]
    done = run(cli, ["train", "classifier", *words, "--lr", "2e-3", "--set=optimizer.ema=0.9", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    done = run(cli, ["predict", str(tmp_path / "run"), str(tmp_path / "videos")])
    assert done.exit_code == 0, done.output
    lines = [line for line in done.output.splitlines() if "#0000" in line]
    assert len(lines) == 24
    assert sum(f" {line.partition('/')[0]} " in line for line in lines) >= 20
