"""Inputs that take their worker down with them: found, put among the rejects, and nothing else is lost."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import tokenshard
from integration.command import convert, refused
from integration.work import SAMPLES, UNITS, WORK
from tokenshard.shards.rejects import read_rejects
from tokenshard.shards.verify import verify
from tokenshard.store import Store

pytestmark = pytest.mark.integration
DECODER = str(Path(__file__).parent / "hostile_decoder")
"""Put on the PYTHONPATH of workers: a decoder that kills, hangs or fails as the file says."""


@pytest.fixture
def hostile(workload: Path, tmp_path: Path) -> Path:
    """The workload; tests add hostile files to it."""
    return shutil.copytree(workload, tmp_path / "images")


@pytest.fixture(scope="module")
def hostile_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Ray cluster of its own whose workers have the hostile decoder; workers above 2.5 GB in all are killed."""
    environment = {**os.environ, "PYTHONPATH": DECODER, "RAY_DISABLE_IMPORT_WARNING": "1"}
    port = "26379"
    head = ["ray", "start", "--head", f"--port={port}", "--num-cpus=2", "--include-dashboard=false"]
    options = ["--object-store-memory=100000000", "--disable-usage-stats", "--min-worker-port=26400"]
    more = ["--max-worker-port=26499", "--ray-client-server-port=26380"]
    subprocess.run([*head, *options, *more], check=True, env=environment, capture_output=True, timeout=120)
    yield f"127.0.0.1:{port}"
    subprocess.run(["ray", "stop", "--force"], check=False, capture_output=True, timeout=60)


def rejects(out: Path) -> dict[str, tuple[str, str]]:
    """Key -> (stage, error) of every reject."""
    rows = read_rejects(Store(out), tokenshard.open(out).manifest).to_pylist()
    return {row["key"]: (row["stage"], row["error"]) for row in rows}


LOCAL = ["--engine", "local", "--workers", "2", "--max-rejects", "0.1"]


def test_inputs_that_kill_their_worker_are_found_and_left_out(hostile: Path, tmp_path: Path) -> None:
    for name in ("class0/005.png", "class2/120.qoi"):
        (hostile / name).write_bytes(b"HOSTILE die ")
    summary = convert(hostile, tmp_path / "out", *WORK, *LOCAL, PYTHONPATH=DECODER)
    assert rejects(tmp_path / "out") == {
        "class0/005.png": ("worker", "WorkerDied"),
        "class2/120.qoi": ("worker", "WorkerDied"),
    }
    assert summary["num_samples"] == UNITS * SAMPLES
    assert verify(Store(tmp_path / "out"), deep=True).ok


def test_a_unit_of_nothing_but_poison_is_quarantined(hostile: Path, tmp_path: Path) -> None:
    for path in sorted(hostile.rglob("*.png"))[: 2 * SAMPLES]:
        path.write_bytes(b"HOSTILE die ")
    options = [*WORK, "--engine", "local", "--workers", "2", "--max-rejects", "0.3"]
    summary = convert(hostile, tmp_path / "out", *options, PYTHONPATH=DECODER)
    assert summary["num_samples"] == (UNITS - 2) * SAMPLES
    assert set(rejects(tmp_path / "out").values()) <= {("worker", "Quarantined"), ("worker", "WorkerDied")}
    assert len(rejects(tmp_path / "out")) == 2 * SAMPLES
    assert verify(Store(tmp_path / "out"), deep=True).ok


def test_an_input_that_hangs_is_found_by_the_time_limit(hostile: Path, tmp_path: Path) -> None:
    (hostile / "class1" / "hang.qoi").write_bytes(b"HOSTILE hang ")
    options = [*WORK, *LOCAL, "--unit-timeout", "6"]
    summary = convert(hostile, tmp_path / "out", *options, PYTHONPATH=DECODER)
    assert rejects(tmp_path / "out") == {"class1/hang.qoi": ("worker", "WorkerDied")}
    assert summary["num_samples"] == UNITS * SAMPLES


def test_a_decoder_that_raises_costs_one_reject(hostile: Path, tmp_path: Path) -> None:
    (hostile / "class1" / "fail.qoi").write_bytes(b"HOSTILE fail ")
    convert(hostile, tmp_path / "out", *WORK, *LOCAL, PYTHONPATH=DECODER)
    assert rejects(tmp_path / "out") == {"class1/fail.qoi": ("decode", "RuntimeError")}


def test_on_ray_poison_is_found_and_no_other_unit_suffers(hostile: Path, tmp_path: Path, hostile_ray: str) -> None:
    (hostile / "class3" / "poison.qoi").write_bytes(b"HOSTILE die ")
    engine = ["--engine", "ray", "--address", hostile_ray, "--workers", "2", "--max-rejects", "0.1"]
    summary = convert(hostile, tmp_path / "out", *WORK, *engine)
    assert rejects(tmp_path / "out") == {"class3/poison.qoi": ("worker", "WorkerDied")}
    assert summary["num_samples"] == UNITS * SAMPLES


def test_a_worker_that_cannot_be_set_up_ends_the_job_with_the_cause(workload: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(workload, out, *WORK, "--engine", "local", "--workers", "0", "--max-rejects", "0.1")
    for path in (out / "manifest").iterdir():
        path.unlink()
    for path in (out / "_job/00000001/receipts").iterdir():
        path.unlink()
    weights = next((out / "tokenizer").rglob("model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    for engine in (["--engine", "local", "--workers", "2"], ["--engine", "ray", "--workers", "2"]):
        message = refused("convert", "images", str(workload), str(out), "--quiet", *WORK, *engine)
        assert "no worker could be set up" in message
        assert "model.safetensors" in message
