"""Training on tokens in several processes: the same samples, and the weights that one process would have come to."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from integration.command import command_line, refused
from tokenshard.shards.dataset import open_dataset
from tokenshard.spec.job import LearnJob
from tokenshard.store import Store
from tokenshard.training.evaluate import evaluate
from tokenshard.training.folder import load_model
from training.conftest import adapt_job, classifier_job, mtm_job
from training.learners import run
from training.test_distributed import TESTS, environments

pytestmark = pytest.mark.integration
STEPS = 10
EVERYTHING = {"color_adapt": 0.5, "cutmix": 1.0, "mixup": 0.5}
"""Beside the other augmentations: what samples of a batch have to do with each other."""
RATE = {"lr": 5e-4, "ema": 0.9}
"""Adam divides gradients by their size: where these are next to nothing, the order of sums decides a step."""


def jobs(tokens: Path, pictures: Path, root: Path) -> dict[str, LearnJob]:
    """By name, with outputs in ``root``. Batches of 36 of 96 samples end in the middle of an epoch; of 7, unevenly."""
    fields: dict[str, Any] = {"steps": STEPS, "batch": 36, "log": {"every": 1, "checkpoint_every": 5}}
    fields |= {"engine": {"device": "cpu"}, "optimizer": RATE}
    learned = {"size": "micro", "embedding": "learned"}
    return {
        "classifier": classifier_job(tokens, root / "classifier", augment=EVERYTHING, model=learned, **fields),
        "mtm": mtm_job(tokens, root / "mtm", augment={"crop_scale": [0.5, 1], "noise": 0.5}, **fields),
        "adapt": adapt_job(tokens, pictures, root / "adapt", **{**fields, "batch": 36}),
    }


def written(found: dict[str, LearnJob], folder: Path) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    for name, job in found.items():
        (folder / f"{name}.yaml").write_text(
            job.model_dump_json(exclude_unset=True, exclude={"kind"})[:-1] + f', "kind": "{job.kind}"}}'
        )
    return [str(folder / f"{name}.yaml") for name in found]


def start(count: int, notes: Path, *specs: str) -> list[subprocess.Popen[bytes]]:
    words = [sys.executable, str(TESTS / "training" / "learners.py"), str(notes), *specs]
    return [subprocess.Popen(words, env=environment, stderr=subprocess.PIPE) for environment in environments(count)]


def ended(running: list[subprocess.Popen[bytes]]) -> None:
    errors = [process.communicate(timeout=120)[1].decode() for process in running]
    assert [process.returncode for process in running] == [0] * len(running), errors


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "training" / "metrics.jsonl").read_text().splitlines()]


def seen(notes: Path) -> list[tuple[int, list[str]]]:
    """The samples of each step, of all ranks in their order, in each world that took it."""
    found: dict[tuple[int, int], list[str]] = defaultdict(list)
    for path in sorted(notes.iterdir()):
        step, _, world = map(int, path.stem.split("-"))
        found[step, world] += json.loads(path.read_text())
    return [(step, names) for (step, _), names in sorted(found.items())]


@pytest.fixture(scope="module")
def both(tokens: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders with what one process and what two left of all jobs."""
    root = tmp_path_factory.mktemp("together")
    running = start(2, root / "notes-2", *written(jobs(tokens, pictures, root / "two"), root / "specs"))
    for name, job in jobs(tokens, pictures, root / "one").items():
        run(job, root / "notes-1" / name)
    ended(running)
    return root / "one", root / "two"


@pytest.mark.parametrize("kind", ["classifier", "mtm", "adapt"])
def test_two_processes_come_to_the_weights_of_one(kind: str, both: tuple[Path, Path]) -> None:
    one, two = (load_file(root / kind / "model.safetensors") for root in both)
    worst = max(float((one[name].float() - two[name].float()).abs().max()) for name in one)
    assert worst <= (1e-5 if kind != "adapt" else 1e-3)  # an adapter is stored in float16
    for alone, together in zip(rows_of(both[0] / kind), rows_of(both[1] / kind), strict=True):
        figures = {name: value for name, value in alone.items() if "second" not in name}
        assert {name: together[name] for name in figures} == pytest.approx(figures, abs=1e-5, rel=1e-5)
        assert abs(alone["loss"] - together["loss"]) <= 1e-6 * max(1, alone["loss"])
    assert seen(both[0].parent / "notes-1" / kind) == seen(both[0].parent / "notes-2" / kind)


def test_a_run_that_is_killed_goes_on_with_other_processes_and_threads(
    both: tuple[Path, Path], tokens: Path, tmp_path: Path
) -> None:
    straight = both[0].parent / "notes-1" / "classifier"
    out = tmp_path / "killed"
    fields: dict[str, Any] = {"augment": EVERYTHING, "model": {"size": "micro", "embedding": "learned"}}
    fields |= {"steps": STEPS, "batch": 36, "log": {"every": 1, "checkpoint_every": 1}, "optimizer": RATE}

    def step() -> int:
        try:
            return int(json.loads((out / "training" / "state.json").read_text())["step"])
        except FileNotFoundError:
            return 0

    for number, (world, threads, until) in enumerate([(1, 0, 2), (2, 4, 4), (1, 4, 7), (2, 0, None)]):
        job = classifier_job(tokens, out, engine={"device": "cpu", "threads": threads}, **fields)
        running = start(world, tmp_path / "notes", *written({"classifier": job}, tmp_path / str(number)))
        if until is None:
            ended(running)
            break
        while step() < until:
            assert all(process.poll() is None for process in running)
            time.sleep(0.002)
        for process in running:
            process.send_signal(signal.SIGKILL)
        assert [process.wait() for process in running] == [-signal.SIGKILL] * world
    wanted = dict(seen(straight))
    found = seen(tmp_path / "notes" / "classifier")
    assert {step for step, _ in found} == set(range(STEPS))
    # a step that a kill cut off was taken by some ranks only
    complete = [(step, names) for step, names in found if len(names) == 36]
    assert [names == wanted[step] for step, names in complete] == [True] * len(complete)
    assert {step for step, _ in complete} == set(range(STEPS))
    losses = [[row["loss"] for row in rows_of(one)] for one in (both[0] / "classifier", out)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-6)


def test_validation_does_not_depend_on_how_many_share_it(both: tuple[Path, Path], tokens: Path) -> None:
    for kind in ("classifier", "mtm"):
        alone = evaluate(load_model(Store(both[1] / kind)), open_dataset(tokens / "val"), batch=36)
        row = rows_of(both[1] / kind)[-1]
        assert {name: row[f"val_{name}"] for name in alone if name != "num_samples"} == pytest.approx(
            {name: value for name, value in alone.items() if name != "num_samples"}, abs=1e-5
        )


# -- on Ray Train -----------------------------------------------------------------------------------------------------


def words(tokens: Path, out: Path, *more: str) -> list[str]:
    data = ("train", "classifier", "--data", str(tokens / "train"), str(out), "--size", "micro", "--batch", "16")
    return command_line(*data, "--steps", "4", "--device", "cpu", *more)


def test_workers_on_an_embedded_ray_train_one_classifier(tokens: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray.train.torch")
    together = subprocess.run(
        words(tokens, tmp_path / "ray", "--workers", "2", "--json"),
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert together.returncode == 0, together.stderr
    assert "weights on cpu, 2 workers" in together.stderr
    assert "step       4/4" in together.stderr
    found = json.loads(together.stdout)
    assert (found["steps"], found["num_samples"]) == (4, 96)
    assert found["fingerprint"] == load_model(Store(tmp_path / "ray")).document.fingerprint
    subprocess.run(words(tokens, tmp_path / "alone"), check=True, capture_output=True)
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("alone", "ray"))
    assert max(float((one[name] - other[name]).abs().max()) for name in one) <= 1e-5


def test_a_mistake_that_a_worker_finds_is_told_once_with_the_exit_code_of_mistakes(
    tokens: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ray.train.torch")
    done = subprocess.run(
        words(tokens, tmp_path / "out", "--workers", "2", "--label", "no-such-column"),
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if "no column 'no-such-column' to learn from" in line]
    assert len(lines) == 1
    assert lines[0].startswith("tokenshard: ")
    assert "starting them again" not in done.stderr


def test_a_batch_that_cannot_be_shared_is_refused_before_workers_start(tokens: Path, tmp_path: Path) -> None:
    line = refused(*words(tokens, tmp_path, "--workers", "3")[3:], code=2)
    assert line.endswith("a batch of 16 cannot be shared equally by 3 workers; change one of them")
