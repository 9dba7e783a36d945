"""`tokenizer train`: seeded, resumable at any step with the same weights, and loud when codes collapse."""

from __future__ import annotations

import csv
import json
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from integration.command import command_line, refused, tokenshard_command
from tokenshard.errors import FormatError, SpecError
from tokenshard.report.similarity import ssim
from tokenshard.report.tokenizer_quality import tokenizer_quality
from tokenshard.spec.recipe import Losses
from tokenshard.spec.train import TrainingLogSpec
from tokenshard.store import Store
from tokenshard.tokenizers.conv import ConvVQ
from tokenshard.tokenizers.folder import load_tokenizer
from tokenshard.training.crops import PixelPool
from tokenshard.training.losses import learning_rate, reconstruction_loss
from tokenshard.training.metrics import code_statistics
from tokenshard.training.recipe import TokenizerRecipe
from tokenshard.training.tokenizer import TokenizerTraining
from training.small import photos, tiny, training

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def pools() -> tuple[PixelPool, PixelPool]:
    return photos()


@pytest.fixture(scope="module")
def run(pools: tuple[PixelPool, PixelPool], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ConvVQ]:
    out = tmp_path_factory.mktemp("run")
    made = training(tiny(), pools, out).run(TrainingLogSpec(checkpoint_every=20, every=10))
    assert made is not None
    return out, made


def test_a_run_leaves_a_tokenizer_metrics_the_recipe_and_pictures(run: tuple[Path, ConvVQ]) -> None:
    out, made = run
    assert load_tokenizer(Store(out)).spec == made.spec
    folder = out / "training"
    assert {path.name for path in folder.iterdir()} == {
        *("metrics.csv", "metrics.jsonl", "recipe.json"),
        *("samples-00000020.png", "samples-00000040.png"),
    }
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 10, 20, 30, 40]
    assert rows[-1]["train_psnr"] > rows[0]["train_psnr"] + 3
    assert rows[-1]["psnr"] > rows[2]["psnr"]
    table = list(csv.DictReader((folder / "metrics.csv").open()))
    assert [row["step"] for row in table] == ["1", "10", "20", "30", "40"]
    assert float(table[-1]["perplexity"]) == pytest.approx(rows[-1]["perplexity"])
    assert TokenizerRecipe.model_validate_json((folder / "recipe.json").read_text()) == tiny()
    with Image.open(folder / "samples-00000040.png") as picture:
        assert picture.size == (192, 2 * 192)


def test_what_was_trained_shows_images(run: tuple[Path, ConvVQ]) -> None:
    photo = skimage.data.coffee()[:160, :160]
    quality = tokenizer_quality(run[1], [photo])
    assert quality.psnr > 14
    assert quality.tokens == 40 * 40
    assert 0 < quality.usage <= 1


def test_equal_recipes_give_equal_weights_and_another_seed_others(
    run: tuple[Path, ConvVQ], pools: tuple[PixelPool, PixelPool], tmp_path: Path
) -> None:
    again = training(tiny(), pools, tmp_path / "again").run()
    other = training(tiny(seed=1), pools, tmp_path / "other").run()
    assert again is not None
    assert other is not None
    assert again.spec.fingerprint == run[1].spec.fingerprint != other.spec.fingerprint


@pytest.mark.parametrize(("quantizer", "stop"), [("vq", 7), ("vq", 33), ("vq", 37), ("rvq", 7), ("simvq", 33)])
def test_a_run_that_stops_goes_on_to_the_same_weights(
    quantizer: str, stop: int, pools: tuple[PixelPool, PixelPool], tmp_path: Path
) -> None:
    recipe = tiny(quantizer=quantizer)  # the encoder is frozen from step 32, the codebook from 34
    straight = training(recipe, pools, tmp_path / "straight").run()
    first = training(recipe, pools, tmp_path / "parts")
    while first.step < stop:
        first._one_step()
    first._checkpoint()
    second = training(recipe, pools, tmp_path / "parts")
    assert second.step == stop
    made = second.run()
    assert straight is not None
    assert made is not None
    assert made.spec.fingerprint == straight.spec.fingerprint


def test_time_that_is_up_leaves_a_state_to_go_on_from(
    run: tuple[Path, ConvVQ], pools: tuple[PixelPool, PixelPool], tmp_path: Path
) -> None:
    assert training(tiny(), pools, tmp_path).run(TrainingLogSpec(every=10), max_seconds=0) is None
    assert not (tmp_path / "tokenizer.json").exists()
    made = training(tiny(), pools, tmp_path).run(TrainingLogSpec(every=10))
    assert made is not None
    assert made.spec.fingerprint == run[1].spec.fingerprint
    rows = [json.loads(line) for line in (tmp_path / "training/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 10, 20, 30, 40]


def test_a_state_of_another_recipe_and_a_damaged_one_are_refused(
    pools: tuple[PixelPool, PixelPool], tmp_path: Path
) -> None:
    training(tiny(), pools, tmp_path).run(max_seconds=0)
    with pytest.raises(FormatError, match=r"state\.json: belongs to another recipe"):
        training(tiny(lr=1e-4), pools, tmp_path)
    state = next((tmp_path / "training").glob("state-*.safetensors"))
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(FormatError, match=r"state\.json: damaged .*remove it to train anew"):
        training(tiny(), pools, tmp_path)
    state.unlink()
    with pytest.raises(FormatError, match="damaged"):
        training(tiny(), pools, tmp_path)


def test_the_alarm_is_raised_when_few_codes_are_used(pools: tuple[PixelPool, PixelPool], tmp_path: Path) -> None:
    said: list[str] = []
    recipe = tiny(quantizer_options={"size": 32, "ema": False}, warmup=1, decoder_only=0, steps=12)
    one = TokenizerTraining(recipe, *pools, Store(tmp_path), say=said.append)
    with torch.no_grad():
        one.quantizer.get_parameter("codebook")[1:] += 1e4  # all latents fall to one code
    one.run(TrainingLogSpec(every=4))
    rows = [json.loads(line) for line in (tmp_path / "training/metrics.jsonl").read_text().splitlines()]
    assert [row["collapsed"] for row in rows][-2:] == [True, True]
    assert "CODEBOOK COLLAPSE" in said[-1]


def test_no_alarm_in_a_healthy_run(run: tuple[Path, ConvVQ]) -> None:
    rows = [json.loads(line) for line in (run[0] / "training/metrics.jsonl").read_text().splitlines()]
    assert not any(row["collapsed"] for row in rows)


def test_crops_are_a_function_of_seed_and_step_and_of_real_pixels(pools: tuple[PixelPool, PixelPool]) -> None:
    pool = pools[0]
    crops = pool.draw(16, 24, (1.0, 1.0), 0, 5)
    assert torch.equal(crops, pool.draw(16, 24, (1.0, 1.0), 0, 5))
    assert not torch.equal(crops, pool.draw(16, 24, (1.0, 1.0), 0, 6))
    assert not torch.equal(crops, pool.draw(16, 24, (1.0, 1.0), 1, 5))
    pixels = {tuple(pixel) for index in range(3) for pixel in pool.image(index).reshape(-1, 3).tolist()}
    found = ((crops + 1) * 127.5).round().permute(0, 2, 3, 1).reshape(-1, 3).int().tolist()
    assert {tuple(pixel) for pixel in found} <= pixels
    resized = pool.draw(16, 24, (0.5, 2.0), 0, 5)
    assert resized.shape == (16, 3, 24, 24)
    assert -1 <= float(resized.min()) < float(resized.max()) <= 1


def test_crops_larger_than_an_image_mirror_it() -> None:
    image = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    window = PixelPool.of([image]).centres(12, 1)[0].permute(1, 2, 0).numpy()
    assert (window == np.pad(image, ((0, 7), (0, 5), (0, 0)), mode="reflect")).all()


def test_the_learning_rate_warms_up_falls_and_starts_again_for_the_decoder() -> None:
    recipe = tiny(steps=1000, warmup=100, decoder_only=0.2, lr=1.0)
    assert learning_rate(recipe, 0) == pytest.approx(0.01)
    assert learning_rate(recipe, 99) == learning_rate(recipe, 100) == pytest.approx(1.0)
    assert learning_rate(recipe, 799) == pytest.approx(0.01, abs=0.001)
    assert learning_rate(recipe, 800) == pytest.approx(0.5)
    assert learning_rate(recipe, 999) == pytest.approx(0.01, abs=0.001)


def test_the_loss_is_the_weighted_sum_of_its_terms() -> None:
    images = torch.zeros(1, 3, 4, 4)
    made = torch.zeros(1, 3, 4, 4)
    made[..., 0] = 2.0
    loss, (l1, l2) = reconstruction_loss(made, images, Losses(l1=1, l2=10, gradient=100))
    assert (float(l1), float(l2)) == (0.5, 1.0)
    assert float(loss) == pytest.approx(0.5 + 10 + 100 * 2 / 3)


def test_code_statistics_of_known_counts() -> None:
    found = code_statistics(torch.tensor([2.0, 2.0, 4.0, 0.0]))
    assert (found.usage, found.entropy) == (0.75, 1.5)
    assert found.perplexity == pytest.approx(2**1.5)


def test_ssim_is_that_of_scikit_image() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    a = skimage.data.coffee()[:100, :120]
    b = (a // 32 * 32 + 16).astype(np.uint8)
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    _, full = metrics.structural_similarity(a, b, channel_axis=2, full=True, **settings)
    assert ssim(a, b) == pytest.approx(full[5:-5, 5:-5].mean(), abs=1e-6)
    assert ssim(a, a) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantizer": "vqq"}, "unknown quantizer 'vqq'"),
        ({"quantizer_options": {"size": 32, "rat": 0.1}}, "rat"),
        ({"quantizer": "fsq", "quantizer_options": {"values": [4, 4]}}, "need dim 2"),
    ],
)
def test_a_recipe_with_an_unknown_quantizer_or_option_is_refused(
    changes: dict[str, Any], message: str, pools: tuple[PixelPool, PixelPool], tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match=message):
        training(tiny(**changes), pools, tmp_path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`photos/` with six pictures, and `recipe.json`."""
    root = tmp_path_factory.mktemp("command")
    (root / "photos").mkdir()
    for number in range(6):
        crop = skimage.data.coffee()[40 * number :][:96, :128]
        Image.fromarray(crop).save(root / "photos" / f"{number}.png")
    (root / "recipe.json").write_text(tiny(steps=150).model_dump_json())
    return root


@pytest.mark.integration
def test_a_command_that_is_killed_and_started_again_gives_the_same_tokenizer(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def command(out: Path) -> list[str]:
        words = ("tokenizer", "train", str(folder / "photos"), str(out), "--recipe", str(folder / "recipe.json"))
        return command_line(*words, "--device", "cpu", "--checkpoint-every", "10")

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    killed = tmp_path / "killed"
    running = subprocess.Popen(command(killed), stdout=subprocess.DEVNULL)
    while not (killed / "training" / "state.json").exists() and running.poll() is None:
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    assert not (killed / "tokenizer.json").exists()
    resumed = subprocess.run(command(killed), capture_output=True, text=True, check=True).stdout
    assert "going on from step" in resumed
    subprocess.run(command(tmp_path / "straight"), capture_output=True, check=True)
    assert load_tokenizer(Store(killed)).spec == load_tokenizer(Store(tmp_path / "straight")).spec
    assert "nothing was done" in subprocess.run(command(killed), capture_output=True, text=True, check=True).stdout


@pytest.mark.integration
def test_eval_measures_a_tokenizer_and_list_names_what_there_is(folder: Path) -> None:
    done = tokenshard_command("tokenizer", "eval", "patch:8x8,k=16", str(folder / "photos"), "--json")
    found = json.loads(done.stdout)
    assert (found["images"], found["pixels"], found["tokens"]) == (6, 6 * 96 * 128, 6 * 12 * 16)
    assert found["bits_per_pixel"] == pytest.approx(found["bits_per_token"] / 64)
    listed = json.loads(tokenshard_command("tokenizer", "list", "--json").stdout)
    assert {"patch", "conv"} <= listed["tokenizers"].keys()
    assert "default" in listed["packaged"]
    assert {"vq", "simvq", "rvq", "fsq", "lfq", "bsq"} <= set(listed["quantizers"])


@pytest.mark.integration
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere/", "OUT"], "nowhere"),
        (
            ["photos", "OUT", "--network", "f9"],
            "--network f9: .*use one of f8, f16, f4, patch-f8, f4x8x8, grid-f8, vqgan-f16, or a JSON file",
        ),
        (["photos", "OUT", "--quantizer", "vqq"], "unknown quantizer 'vqq'"),
        (["photos", "OUT", "--crop", "20"], ": recipe: crop 20 is not a multiple of 8"),
        (["photos", "OUT", "--scale", "2,1"], "range of positive factors"),
        (["photos", "OUT", "--recipe", "photos/0.png"], r"--recipe .*photos/0\.png: .*use a JSON file"),
    ],
    ids=lambda words: words[2] if isinstance(words, list) and len(words) > 2 else "",
)
def test_mistakes_are_answered_in_one_line(words: list[str], message: str, folder: Path, tmp_path: Path) -> None:
    words = [str(folder / word) if word.startswith("photos") else word for word in words]
    words = [word.replace("OUT", str(tmp_path / "out")) for word in words]
    line = refused("tokenizer", "train", *words, code=2)
    assert re.search(message, line), line
    assert not (tmp_path / "out").exists()
