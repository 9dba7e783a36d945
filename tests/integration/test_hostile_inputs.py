"""Inputs that take their worker down with them: found, put among the rejects, and nothing else is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

import tokenshard
from integration.command import convert, refused, tokenshard_command
from tokenshard.shards.rejects import read_rejects
from tokenshard.shards.verify import verify
from tokenshard.store import Store

pytestmark = pytest.mark.integration
DECODER = str(Path(__file__).parent / "hostile_decoder")
HOSTILE = {"PYTHONPATH": os.pathsep.join([DECODER, os.environ.get("PYTHONPATH", "")])}
"""Environment in which a decoder kills, hangs or fails, as the file says."""


UNITS, SAMPLES = 6, 4
SMALL = ["--tokenizer", "patch:4x4,k=32", "--unit-samples", str(SAMPLES)]


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """Small images that make 6 units of 4; tests put hostile files among them."""
    root = tmp_path / "images"
    root.mkdir()
    draw = np.random.default_rng(4)
    for number in range(UNITS * SAMPLES):
        Image.fromarray(draw.integers(0, 255, (32, 32, 3), np.uint8)).save(root / f"{number:02d}.png")
    return root


NO_TOKENS = {"RAY_AUTH_MODE": "disabled"}
CLUSTER = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 100_000_000})
for node in range(2):
    cluster.add_node(num_cpus=1, object_store_memory=100_000_000)
print("address", cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


ROOM = 4 << 30
"""Bytes of memory that the cluster, and what else starts meanwhile, get before Ray's memory monitor kills a worker."""


@pytest.fixture(scope="module")
def hostile_ray() -> Iterator[str]:
    """Address of a Ray cluster of two nodes whose workers have the hostile decoder, and not much memory."""
    memory = psutil.virtual_memory()
    if memory.available < ROOM + (1 << 30):
        pytest.skip(f"needs {(ROOM >> 30) + 1} GiB of free memory")
    threshold = (memory.total - memory.available + ROOM) / memory.total
    monitor = {"RAY_memory_usage_threshold": f"{threshold:.4f}", "RAY_memory_monitor_refresh_ms": "50"}
    environment = {**os.environ, **NO_TOKENS, **HOSTILE, **monitor}
    words = [sys.executable, "-c", CLUSTER]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as cluster:
        assert cluster.stdout is not None
        yield next(line.split()[1] for line in cluster.stdout if line.startswith("address"))
        cluster.communicate()


def run_job(folder: Path, source: Path, **fields: Any) -> dict[str, Any]:
    """Run a job spec on the hostile decoder; the dataset is ``folder/out``."""
    job = {"kind": "convert-images", "source": {"path": str(source)}, "output": str(folder / "out"), **fields}
    job = {"tokenizer": "patch:4x4,k=32", "unit": {"samples": SAMPLES}, "pilot": {"samples": SAMPLES}, **job}
    spec = folder / "job.yaml"
    spec.write_text(json.dumps(job))
    done = tokenshard_command("run", str(spec), "--quiet", "--json", **HOSTILE, **NO_TOKENS)
    assert done.returncode == 0, done.stderr
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


def rejects(out: Path) -> dict[str, tuple[str, str]]:
    """Key -> (stage, error) of every reject."""
    rows = read_rejects(Store(out), tokenshard.open(out).manifest).to_pylist()
    return {row["key"]: (row["stage"], row["error"]) for row in rows}


def deaths(out: Path) -> list[dict[str, Any]]:
    """Deaths of workers, as the job's journal has them."""
    events = [json.loads(path.read_text()) for path in sorted((out / "_job/00000001/journal").iterdir())]
    return [event for event in events if event["event"] == "death"]


LOCAL = ["--engine", "local", "--workers", "2", "--max-rejects", "0.1"]


def test_inputs_that_kill_their_worker_are_found_and_left_out(hostile: Path, tmp_path: Path) -> None:
    (hostile / "04.png").write_bytes(b"HOSTILE die ")
    (hostile / "20.qoi").write_bytes(b"HOSTILE crash ")
    summary = convert(hostile, tmp_path / "out", *SMALL, *LOCAL, **HOSTILE)
    assert rejects(tmp_path / "out") == {
        "04.png": ("worker", "WorkerDied"),
        "20.qoi": ("worker", "WorkerDied"),
    }
    assert summary["num_samples"] == UNITS * SAMPLES - 1
    assert summary["deaths"] == {"WorkerDied": len(deaths(tmp_path / "out"))}
    assert any("SIGSEGV" in event["reason"] for event in deaths(tmp_path / "out"))
    assert verify(Store(tmp_path / "out"), deep=True).ok


def test_a_unit_of_nothing_but_poison_is_quarantined(hostile: Path, tmp_path: Path) -> None:
    poison = sorted(hostile.rglob("*.png"))[8:16]
    for path in poison:
        path.write_bytes(b"HOSTILE die ")
    engine = {"kind": "local", "workers": 2}
    summary = run_job(tmp_path, hostile, max_rejects=0.5, unit={"samples": len(poison)}, engine=engine)
    assert summary["num_samples"] == UNITS * SAMPLES - len(poison)
    found = rejects(tmp_path / "out")
    assert found.keys() == {path.relative_to(hostile).as_posix() for path in poison}
    assert set(found.values()) == {("worker", "Quarantined")}
    assert verify(Store(tmp_path / "out"), deep=True).ok


def test_an_input_that_hangs_is_found_by_the_time_limit(hostile: Path, tmp_path: Path) -> None:
    (hostile / "20-hang.qoi").write_bytes(b"HOSTILE hang ")
    limits = {"unit_timeout": 4, "attempts": 1}
    summary = run_job(
        tmp_path,
        hostile,
        max_rejects=0.1,
        retry=limits,
        engine={"kind": "local", "workers": 2},
    )
    assert rejects(tmp_path / "out") == {"20-hang.qoi": ("worker", "TimedOut")}
    assert summary["num_samples"] == UNITS * SAMPLES


def test_a_decoder_that_raises_costs_one_reject(hostile: Path, tmp_path: Path) -> None:
    (hostile / "20-fail.qoi").write_bytes(b"HOSTILE fail ")
    convert(hostile, tmp_path / "out", *SMALL, *LOCAL, **HOSTILE)
    assert rejects(tmp_path / "out") == {"20-fail.qoi": ("decode", "RuntimeError")}


@pytest.mark.parametrize("deed", ["die", "hoard"])
def test_on_ray_poison_is_found_and_no_other_unit_suffers(
    hostile: Path, tmp_path: Path, hostile_ray: str, deed: str
) -> None:
    (hostile / "20-poison.qoi").write_text(f"HOSTILE {deed} ")
    summary = run_job(
        tmp_path,
        hostile,
        max_rejects=0.1,
        engine={"kind": "ray", "address": hostile_ray, "workers": 2},
    )
    cause = "OutOfMemory" if deed == "hoard" else "WorkerDied"
    assert rejects(tmp_path / "out") == {"20-poison.qoi": ("worker", cause)}
    assert summary["num_samples"] == UNITS * SAMPLES
    assert summary["deaths"] == {cause: len(deaths(tmp_path / "out"))}
    assert len({event["node"] for event in deaths(tmp_path / "out")}) == 2, "tried on the other node, too"
    shown = tokenshard_command("status", summary["output"]).stdout
    assert f"workers lost: {summary['deaths'][cause]} x {cause}" in shown


def test_a_worker_that_cannot_be_set_up_ends_the_job_with_the_cause(hostile: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(hostile, out, *SMALL, "--engine", "local", "--workers", "0", "--max-rejects", "0.1")
    for path in (out / "manifest").iterdir():
        path.unlink()
    for path in (out / "_job/00000001/receipts").iterdir():
        path.unlink()
    weights = next((out / "tokenizer").rglob("model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    for engine in (["--engine", "local", "--workers", "2"], ["--engine", "ray", "--workers", "2"]):
        message = refused("convert", "images", str(hostile), str(out), "--quiet", *SMALL, *engine)
        assert "no worker could be set up" in message
        assert "model.safetensors" in message
