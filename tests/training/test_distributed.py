"""Training in two processes: the same codebooks on both, and what one process would have learned."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor

from integration.command import command_line, refused
from ports import free_port
from tokenshard.spec.train import TrainingLogSpec
from tokenshard.store import Store
from tokenshard.tokenizers.conv import ConvVQ
from tokenshard.tokenizers.folder import load_tokenizer
from training.small import photos, tiny, training
from training.workers import CASES, STEPS, recipe, steps, weights

TESTS = Path(__file__).parents[1]
pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("one_thread")]


def environments(count: int) -> list[dict[str, str]]:
    """The variables of torchrun for each process."""
    server = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    shared = {**os.environ, "OMP_NUM_THREADS": "1", **server}
    shared["PYTHONPATH"] = os.pathsep.join((str(TESTS), os.environ.get("PYTHONPATH", "")))
    return [{**shared, "WORLD_SIZE": str(count), "RANK": str(n), "LOCAL_RANK": str(n)} for n in range(count)]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left of all the cases."""
    folder = tmp_path_factory.mktemp("workers")
    words = [sys.executable, str(TESTS / "training" / "workers.py"), str(folder)]
    running = [subprocess.Popen(words, env=environment, stderr=subprocess.PIPE) for environment in environments(2)]
    errors = [process.communicate(timeout=300)[1].decode() for process in running]
    assert [process.returncode for process in running] == [0, 0], errors
    return folder


def ranks(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    first, second = (safetensors.torch.load_file(folder / f"rank-{rank}.safetensors") for rank in (0, 1))
    return first, second


@pytest.mark.parametrize("case", CASES)
def test_both_processes_hold_the_same_weights_to_the_last_bit(case: str, out: Path) -> None:
    first, second = ranks(out / case)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


@pytest.mark.parametrize("case", CASES)
def test_two_processes_learn_what_one_does_up_to_the_order_of_sums(case: str, out: Path, tmp_path: Path) -> None:
    alone = weights(steps(training(recipe(case), photos(), tmp_path), STEPS))
    start = weights(training(recipe(case), photos(), tmp_path))
    together = ranks(out / case)[0]
    for name, tensor in alone.items():
        torch.testing.assert_close(
            together[name], tensor, rtol=1e-4, atol=1e-4, msg=lambda text, name=name: name + text
        )
    assert max(float((alone[name] - start[name]).abs().max()) for name in alone) > 0.01


@pytest.mark.parametrize("stop", [3, 7])
def test_a_stopped_run_goes_on_to_the_same_weights(stop: int, out: Path) -> None:
    straight, resumed = ranks(out / "vq")[0], ranks(out / f"stopped-{stop}")[0]
    assert [name for name in straight if not torch.equal(straight[name], resumed[name])] == []


def test_a_run_of_two_processes_is_finished_by_one(out: Path) -> None:
    resumed = training(recipe("vq"), photos(), out / "stopped-3" / "run")
    assert resumed.step == 3
    alone = weights(steps(resumed, STEPS))
    for name, tensor in ranks(out / "vq")[0].items():
        torch.testing.assert_close(alone[name], tensor, rtol=1e-4, atol=1e-4)


def test_figures_are_those_of_all_processes_and_written_once(out: Path, tmp_path: Path) -> None:
    training(recipe("vq"), photos(), tmp_path).run(TrainingLogSpec(every=4, checkpoint_every=4))
    rows = [
        [json.loads(line) for line in (folder / "training" / "metrics.jsonl").read_text().splitlines()]
        for folder in (tmp_path, out / "whole" / "run")
    ]
    assert [row["step"] for row in rows[1]] == [1, 4, 8]
    for alone, together in zip(*rows, strict=True):
        assert {name: value for name, value in together.items() if name != "seconds"} == pytest.approx(
            {name: value for name, value in alone.items() if name != "seconds"}, rel=1e-3
        )


def test_processes_that_see_other_images_are_refused(out: Path) -> None:
    for rank in (0, 1):
        assert "workers differ in sum of pixels" in (out / f"refused-{rank}.txt").read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`photos/`, `recipe.json`, and `alone/`, trained by one process."""
    root = tmp_path_factory.mktemp("command")
    (root / "photos").mkdir()
    pool = photos()[0]
    for number in range(len(pool)):
        Image.fromarray(pool.image(number)).save(root / "photos" / f"{number}.png")
    (root / "recipe.json").write_text(tiny(steps=STEPS, stored="float32").model_dump_json())
    subprocess.run(words(root, "alone"), check=True, capture_output=True)
    return root


def words(root: Path, out: str, *more: str) -> list[str]:
    recipe = str(root / "recipe.json")
    where = ("tokenizer", "train", str(root / "photos"), str(root / out), "--recipe", recipe, "--device", "cpu")
    return command_line(*where, "--log-every", "4", "--checkpoint-every", "4", *more)


def assert_the_same(root: Path, out: str) -> None:
    alone, together = load_tokenizer(Store(root / "alone")), load_tokenizer(Store(root / out))
    assert isinstance(alone, ConvVQ)
    assert isinstance(together, ConvVQ)
    assert alone.config.recipe == together.config.recipe
    for name, tensor in alone.tensors().items():
        torch.testing.assert_close(
            torch.from_numpy(together.tensors()[name]), torch.from_numpy(tensor), rtol=0, atol=1e-4
        )


def test_the_command_under_torchrun_trains_one_tokenizer(folder: Path) -> None:
    running = [
        subprocess.Popen(words(folder, "torchrun"), env=environment, stdout=subprocess.PIPE, text=True)
        for environment in environments(2)
    ]
    said = [process.communicate(timeout=300)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert "2 images to train on, 1 held out; cpu, 2 workers" in said[0]
    assert "fingerprint" in said[0]
    assert said[1] == ""
    assert_the_same(folder, "torchrun")


@pytest.mark.nightly
def test_workers_on_an_embedded_ray_train_one_tokenizer(folder: Path) -> None:
    pytest.importorskip("ray.train.torch")
    done = subprocess.run(
        words(folder, "ray", "--workers", "2"), capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "2 images to train on, 1 held out; cpu, 2 workers" in done.stdout
    assert f"step       {STEPS}" in done.stdout
    assert_the_same(folder, "ray")


def test_a_batch_that_cannot_be_shared_is_refused_before_workers_start(folder: Path) -> None:
    line = refused(*words(folder, "uneven", "--workers", "3")[3:], code=2)
    assert line.endswith("a batch of 4 cannot be shared equally by 3 workers; change one of them")
