"""Training as a job: a spec does what `tokenizer train` does, and mistakes are told before images are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import tokenshard as ts
from integration.command import refused, tokenshard_command
from tokenshard.errors import SpecError
from tokenshard.spec.images import ImageSourceSpec
from tokenshard.spec.job import TrainTokenizer, build_job, parse_job
from tokenshard.store import Store
from tokenshard.tokenizers.folder import load_tokenizer
from tokenshard.training.images import read_samples
from tokenshard.training.job import Training, recipe_of, train_tokenizer
from tokenshard.training.recipe import PRESETS
from training.small import TINY, photos, tiny

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = {"network": TINY.model_dump(mode="json"), "quantizer_options": {"size": 32}, "crop": 32, "batch": 4, "steps": 6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`photos/` and `job.yaml`."""
    root = tmp_path_factory.mktemp("job")
    (root / "photos").mkdir()
    pool = photos()[0]
    for number in range(len(pool)):
        Image.fromarray(pool.image(number)).save(root / "photos" / f"{number}.png")
    (root / "broken").mkdir()
    (root / "broken" / "x.png").write_bytes(b"not a picture")
    fields = {"kind": "train-tokenizer", "source": {"path": str(root / "photos")}, "output": "out", "recipe": SMALL}
    (root / "job.yaml").write_text(yaml.safe_dump({**fields, "engine": {"device": "cpu"}}))
    return root


def job(folder: Path, out: Path, **fields: Any) -> TrainTokenizer:
    source = {"path": str(folder / "photos"), **fields.pop("source", {})}
    data = {"source": source, "output": str(out), "recipe": SMALL, "engine": {"device": "cpu"}, **fields}
    return build_job(TrainTokenizer, data)


def with_recipe(recipe: dict[str, Any]) -> TrainTokenizer:
    return build_job(TrainTokenizer, {"source": {"path": "x"}, "output": "y", "recipe": recipe})


def test_a_spec_from_python_trains_and_running_it_again_does_nothing(folder: Path, tmp_path: Path) -> None:
    spec = job(folder, tmp_path / "out", log={"every": 2})
    made = ts.run(spec)
    assert isinstance(made, Training)
    assert (made.steps, made.fingerprint) == (6, load_tokenizer(Store(tmp_path / "out")).spec.fingerprint)
    assert made.psnr is not None
    assert made.psnr > 5
    said: list[str] = []
    assert train_tokenizer(spec, said.append) == made
    assert said == [f"{tmp_path / 'out'}: holds a trained tokenizer already; nothing was done"]


def test_a_run_that_is_out_of_time_has_no_fingerprint_yet(folder: Path, tmp_path: Path) -> None:
    spec = job(folder, tmp_path / "out", engine={"device": "cpu", "max_minutes": 0})
    made = train_tokenizer(spec, lambda text: None)
    assert (made.fingerprint, made.steps, made.psnr) == ("", 1, None)


def test_several_places_are_read_and_what_cannot_be_read_is_said(folder: Path, tmp_path: Path) -> None:
    said: list[str] = []
    also = [str(folder / "broken"), str(folder / "photos")]
    train_tokenizer(job(folder, tmp_path / "out", source={"also": also, "held_out": 2}), said.append)
    assert said[:2] == [
        "1 images could not be read and are left out",
        "5 images to train on, 1 held out; cpu",
    ]


def test_pictures_beyond_the_memory_allowed_are_left_out(folder: Path, tmp_path: Path) -> None:
    said: list[str] = []
    train_tokenizer(job(folder, tmp_path / "out", source={"memory": 300_000}), said.append)
    assert said[0].startswith("1 images are left out: the others take 192 kB; allow more with --memory-gb")


def test_memory_for_not_one_picture_says_what_to_allow(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"photos: none of the images fits into 10 B; allow more with --memory-gb"):
        train_tokenizer(job(folder, tmp_path / "out", source={"memory": 10}), lambda text: None)


def test_of_more_pictures_than_the_memory_allowed_holds_a_part_is_spread_over_all(tmp_path: Path) -> None:
    for number in range(60):
        Image.new("L", (10, 10), number).save(tmp_path / f"{number:02d}.png")
    said: list[str] = []
    samples = read_samples([ImageSourceSpec(path=str(tmp_path), labels="none")], {}, said.append, memory=20 * 300)
    kept = [int(sample.data.flat[0]) for sample in samples]
    assert len(said) == 1
    assert said[0].startswith("41 images are left out: the others take 5.70 kB; allow more with --memory-gb, or")
    assert (kept[0], kept[-1], len(kept)) == (0, 59, 19)
    assert set(np.diff(kept)) == {3, 4}


@pytest.mark.integration
def test_the_command_run_and_the_command_train_make_the_same_tokenizer(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text(json.dumps(SMALL))
    words = ("--recipe", str(tmp_path / "recipe.json"), "--device", "cpu", "--json", "--tensorboard")
    trained = tokenshard_command("tokenizer", "train", str(folder / "photos"), str(tmp_path / "trained"), *words)
    ran = tokenshard_command("run", str(folder / "job.yaml"), "--output", str(tmp_path / "ran"), "--json", "--quiet")
    assert (trained.returncode, ran.returncode) == (0, 0), trained.stderr + ran.stderr
    assert "step       6" in trained.stderr
    assert "step" not in ran.stderr
    first, second = json.loads(trained.stdout), json.loads(ran.stdout)
    assert first["fingerprint"] == second["fingerprint"] != ""
    assert list((tmp_path / "trained" / "training" / "tensorboard").iterdir())
    assert not (tmp_path / "ran" / "training" / "tensorboard").exists()


@pytest.mark.integration
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--append"], "a train-tokenizer job has no --append"),
        (["--engine", "local"], "engine.kind: unknown field; allowed: address, compile, cpus"),
    ],
)
def test_options_of_conversions_are_refused_for_training(words: list[str], message: str, folder: Path) -> None:
    assert message in refused("run", str(folder / "job.yaml"), *words, code=2)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"network": "f9"}, "recipe.network: no network is named 'f9'; use one of f8, f16"),
        ({"network": {"dim": 4}}, r"recipe\.network.*encoder: Field required"),
        ({"crop": 20}, "recipe: crop 20 is not a multiple of 8"),
        ({"quantizer": "vqq"}, "unknown quantizer 'vqq'"),
        ({"quantizer": "lookup"}, "train one of vq, simvq"),
        ({"quantizer_options": {"size": 8, "rat": 1}}, "rat"),
    ],
)
def test_recipes_that_do_not_fit_together_are_refused(recipe: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        recipe_of(with_recipe(recipe))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("recipe: {losses: {lpips: 1}}", "recipe.losses.lpips needs lpips_weights"),
        ("recipe: {losses: {l1: 0, l2: 0}}", "job.yaml:4: recipe.losses: one of l1, l2 and lpips must be above 0"),
        ("recipe: {scale: [2, 1]}", r"job.yaml:4: recipe: scale \(2.0, 1.0\) is not a range"),
        ("recipe: {step: 3}", "job.yaml:4: recipe.step: unknown field; allowed: batch, clip"),
        ("engine: {workers: 0}", "job.yaml:4: engine.workers: Input should be greater than or equal to 1"),
    ],
)
def test_mistakes_in_a_spec_are_answered_with_their_line(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_job(f"kind: train-tokenizer\nsource: {{path: x}}\noutput: y\n{text}", "job.yaml")


def test_a_network_by_name_is_that_of_the_list() -> None:
    assert recipe_of(with_recipe({"network": "f16"})).network == PRESETS["f16"]
    assert recipe_of(with_recipe({})).network == PRESETS["f8"]
    assert recipe_of(with_recipe(tiny().model_dump(mode="json"))) == tiny()


def test_a_stored_recipe_is_one_that_can_be_given_again(folder: Path, tmp_path: Path) -> None:
    spec = job(folder, tmp_path / "out")
    train_tokenizer(spec, lambda text: None)
    stored = json.loads((tmp_path / "out" / "training" / "recipe.json").read_text())
    assert recipe_of(with_recipe(stored)) == recipe_of(spec)
