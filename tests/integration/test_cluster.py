"""Jobs on a real Ray cluster of several nodes, data in an S3-protocol store: submitted, watched, stopped, and lost."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from flaky_s3 import Fault, FlakyS3, every
from infra_files import load
from integration.chaos import DEADLINE, Chaos
from integration.command import command_line, refused, tokenshard_command
from integration.ray_nodes import RayNodes
from integration.work import SAMPLES, UNITS
from tokenshard.engine.job_folder import JobFolder, Journal
from tokenshard.engine.metrics import METRICS
from tokenshard.shards.verify import verify
from tokenshard.store import Store

pytestmark = pytest.mark.integration
Proxies = Callable[[Iterable[Fault | None]], FlakyS3]


@pytest.fixture(scope="module")
def cluster(s3_server: str) -> Iterator[RayNodes]:
    """A head that does no work and two nodes; they know the S3 server from their environment."""
    with RayNodes() as nodes:
        nodes.add()
        nodes.add()
        yield nodes


@pytest.fixture(scope="module")
def raw(workload: Path, s3_server: str) -> str:
    """The workload in the store."""
    source, url = Store(workload), "s3://tokens/cluster-raw"
    for entry in source.list():
        Store(url).put(entry.name, source.read(entry.name))
    return url


@pytest.fixture
def job(raw: str, s3_url: str, tmp_path: Path) -> tuple[Path, str]:
    """A job spec for the cluster, and its output."""
    out = f"{s3_url}/tokens"
    spec = {
        "kind": "convert-images",
        "source": {"path": raw},
        "output": out,
        "tokenizer": "patch:4x4,k=256",
        "unit": {"samples": SAMPLES},
        "engine": {"workers": 2},
    }
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(spec))
    return path, out


@pytest.fixture
def slow_job(job: tuple[Path, str], flaky_s3: Proxies) -> tuple[Path, str, threading.Event]:
    """The same with a store that answers late while units are run, so that there is time to do something to them.

    When that is done, the event ends it.
    """
    path, out = job
    done = threading.Event()

    def late() -> Iterator[Fault | None]:
        while JobFolder(Store(out), 1).pilot() is None:
            yield None
        yield from itertools.takewhile(lambda _: not done.is_set(), every(2, Fault.SLOW))

    storage = {"endpoint_url": flaky_s3(late()).endpoint}
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "storage": storage}))
    return path, out, done


def submitted(cluster: RayNodes, job: Path, *words: str) -> str:
    """The id of a job that was submitted and left alone."""
    done = tokenshard_command(
        "submit",
        str(job),
        "--address",
        cluster.dashboard,
        "--package",
        "image",
        "--json",
        *words,
        **cluster.environment,
    )
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["id"])


def cluster_command(cluster: RayNodes, *words: str) -> subprocess.CompletedProcess[str]:
    return tokenshard_command(*words, "--address", cluster.dashboard, **cluster.environment)


def job_state(cluster: RayNodes, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(cluster_command(cluster, "status", name, "--json").stdout)
    return found


def wait_for(condition: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < until, f"{what} did not happen"
        time.sleep(0.1)


def shards(out: str) -> int:
    return sum(1 for _ in Store(out).list("data"))


def assert_as_undisturbed(out: str, undisturbed: dict[str, Any]) -> None:
    report = verify(Store(out), deep=True)
    assert report.ok, report.errors
    info = json.loads(tokenshard_command("info", out, "--json").stdout)
    assert info["fingerprint"] == undisturbed["fingerprint"]
    assert info["num_rejects"] == 0


def test_a_submitted_job_is_followed_to_its_end(
    cluster: RayNodes, job: tuple[Path, str], undisturbed: dict[str, Any]
) -> None:
    path, out = job
    followed = cluster_command(cluster, "submit", str(path), "--follow", "--id", "followed")
    assert followed.returncode == 0, followed.stderr
    assert re.search(r"converting: 0/160 inputs", followed.stderr)
    assert re.search(r"converting: 160/160 inputs", followed.stderr)
    assert "succeeded" in followed.stdout
    assert_as_undisturbed(out, undisturbed)
    assert "followed  succeeded" in cluster_command(cluster, "status").stdout
    assert "160/160" in cluster_command(cluster, "logs", "followed").stdout
    status = json.loads(tokenshard_command("status", out, "--json").stdout)
    assert (status["state"], status["units_done"], status["inputs"]) == ("complete", UNITS, UNITS * SAMPLES)
    assert_metrics(cluster, out, undisturbed)
    assert_dashboard(cluster, out)


def assert_dashboard(cluster: RayNodes, out: str) -> None:
    """Ray's dashboard says of actors and tasks what they do, and shows how far the job is by what its driver wrote."""

    def asked(path: str) -> Any:
        token = {"Authorization": f"Bearer {cluster.environment['RAY_AUTH_TOKEN']}"}
        with urllib.request.urlopen(
            urllib.request.Request(cluster.dashboard + path, headers=token), timeout=30
        ) as page:
            return json.load(page)

    def listed(what: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = asked(f"/api/v0/{what}?detail=1&limit=1000")["data"]["result"]["result"]
        return found

    actors = {actor["repr_name"] for actor in listed("actors") if actor["class_name"] == "UnitActor"}
    assert {f"pilot of {out} (version 1)", f"units of {out} (version 1)"} <= actors
    wait_for(
        lambda: (
            {"set up", "pilot", *(f"unit {unit}" for unit in range(UNITS))} <= {one["name"] for one in listed("tasks")}
        ),
        "all tasks under their names",
    )
    assert "converting: 160/160 inputs" in asked("/api/jobs/followed/logs")["logs"]
    assert asked("/api/jobs/followed")["metadata"] == {"tokenshard_kind": "convert-images", "tokenshard_output": out}


def assert_metrics(cluster: RayNodes, out: str, undisturbed: dict[str, Any]) -> None:
    """What Ray exports for Prometheus adds up; it comes some seconds late."""
    wanted = {
        'tokenshard_units_total.*status="done"': UNITS,
        "tokenshard_samples_total": UNITS * SAMPLES,
        "tokenshard_raw_bytes_total": undisturbed["raw_bytes"],
        "tokenshard_shard_bytes_total": undisturbed["token_bytes"],
        "tokenshard_unit_seconds_count": UNITS,
    }
    lines: list[str] = []

    def exported() -> bool:
        with urllib.request.urlopen(f"http://127.0.0.1:{cluster.metrics_port}/metrics", timeout=10) as page:
            lines[:] = [line for line in page.read().decode().splitlines() if f'output="{out}"' in line]
        return all(
            sum(float(line.rpartition(" ")[2]) for line in lines if re.match(f"ray_{name}", line)) == value
            for name, value in wanted.items()
        )

    wait_for(exported, "the export of all metrics")
    names = {re.sub(r"_(bucket|count|sum)$", "", line.partition("{")[0].removeprefix("ray_")) for line in lines}
    assert names <= set(METRICS)


def test_a_stopped_job_goes_on_when_it_is_submitted_again(
    cluster: RayNodes, slow_job: tuple[Path, str, threading.Event], undisturbed: dict[str, Any]
) -> None:
    path, out, done = slow_job
    name = submitted(cluster, path)
    wait_for(lambda: shards(out) >= 3, "the third shard")
    stopped = cluster_command(cluster, "stop", name)
    assert stopped.returncode == 0, stopped.stderr
    assert job_state(cluster, name)["state"] == "STOPPED"
    assert shards(out) < UNITS
    status = json.loads(tokenshard_command("status", out, "--json").stdout)
    assert status["state"] in {"dead", "stopped"}
    assert 0 < status["units_done"] < UNITS
    done.set()
    followed = cluster_command(cluster, "submit", str(path), "--package", "image", "--follow")
    assert followed.returncode == 0, followed.stderr
    assert_as_undisturbed(out, undisturbed)


@pytest.mark.parametrize("case", ["lost", "taken back", "two of three lost"])
def test_nodes_that_go_away_cost_nothing_but_time(
    cluster: RayNodes, slow_job: tuple[Path, str, threading.Event], undisturbed: dict[str, Any], case: str
) -> None:
    path, out, done = slow_job
    if case == "two of three lost":
        cluster.add()
        path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "engine": {"workers": 3}}))
    name = submitted(cluster, path)
    wait_for(lambda: shards(out) >= 4, "the fourth shard")
    lost, *others = (node for node in cluster.nodes if node.poll() is None)
    if case == "taken back":
        cluster.announce_end(lost, 2)
        cluster.add()
        time.sleep(2)
    cluster.kill(lost)
    if case == "two of three lost":
        cluster.kill(others[0])
    assert shards(out) < UNITS
    if case == "lost":
        cluster.add()
    done.set()
    wait_for(lambda: job_state(cluster, name)["state"] not in {"PENDING", "RUNNING"}, "the end of the job")
    assert job_state(cluster, name)["state"] == "SUCCEEDED", cluster_command(cluster, "logs", name).stdout
    assert_as_undisturbed(out, undisturbed)
    events = [event["event"] for event in Journal(JobFolder(Store(out), 1)).events]
    assert "quarantine" not in events
    assert "poison" not in events
    if case == "two of three lost":
        cluster.add()


def test_a_node_without_memory_for_workers_does_not_end_the_job(
    cluster: RayNodes, slow_job: tuple[Path, str, threading.Event], undisturbed: dict[str, Any]
) -> None:
    path, out, done = slow_job
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "engine": {"workers": 3}}))
    full = cluster.add(RAY_memory_usage_threshold="0.001", RAY_memory_monitor_refresh_ms="50")
    try:
        name = submitted(cluster, path)
        killed = "low on memory"
        wait_for(lambda: killed in cluster_command(cluster, "logs", name).stdout, "a kill by Ray's memory monitor")
        done.set()
        wait_for(lambda: job_state(cluster, name)["state"] not in {"PENDING", "RUNNING"}, "the end of the job")
    finally:
        cluster.kill(full)
    assert job_state(cluster, name)["state"] == "SUCCEEDED", cluster_command(cluster, "logs", name).stdout
    assert_as_undisturbed(out, undisturbed)
    events = [event["event"] for event in Journal(JobFolder(Store(out), 1)).events]
    assert set(events) <= {"death"}


@pytest.mark.nightly
def test_a_cluster_without_a_token_takes_jobs_too(job: tuple[Path, str], undisturbed: dict[str, Any]) -> None:
    path, out = job
    with RayNodes(token=False) as open_to_all:
        open_to_all.add(2)
        followed = cluster_command(open_to_all, "submit", str(path), "--package", "image", "--follow")
    assert followed.returncode == 0, followed.stderr
    assert_as_undisturbed(out, undisturbed)


def test_of_two_drivers_of_one_output_the_second_stops(
    cluster: RayNodes, slow_job: tuple[Path, str, threading.Event], undisturbed: dict[str, Any]
) -> None:
    path, out, done = slow_job
    engine = ["--engine", "ray", "--address", cluster.address, "--workers", "1", "--quiet"]
    words = command_line("run", str(path), *engine)
    with subprocess.Popen(
        words, env={**os.environ, **cluster.environment}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as first:
        wait_for(lambda: shards(out) >= 1 or first.poll() is not None, "the first shard")
        message = refused("run", str(path), "--engine", "local", "--workers", "1", "--quiet")
        assert f"process {first.pid} on" in message
        assert "another job writes there" in message
        status = json.loads(tokenshard_command("status", out, "--json").stdout)
        assert status["state"] == "running"
        done.set()
        _, errors = first.communicate(timeout=DEADLINE)
    assert first.returncode == 0, errors.decode()
    assert_as_undisturbed(out, undisturbed)


def test_the_command_of_the_rayjob_manifest_is_a_job_like_any_other(
    cluster: RayNodes, job: tuple[Path, str], undisturbed: dict[str, Any]
) -> None:
    path, out = job
    program, command, _ = load("kuberay", "rayjob.yaml")["spec"]["entrypoint"].split()  # the last: where it is mounted
    ray = str(Path(sys.executable).with_name("ray"))
    words = ["job", "submit", "--address", cluster.dashboard, "--submission-id", "rayjob", "--", program, command]
    done = subprocess.run(
        [ray, *words, str(path)],
        env={**os.environ, **cluster.environment},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert_as_undisturbed(out, undisturbed)
    assert job_state(cluster, "rayjob")["state"] == "SUCCEEDED"
    assert "rayjob  succeeded" in cluster_command(cluster, "status").stdout
    assert "160/160" in cluster_command(cluster, "logs", "rayjob").stdout


@pytest.mark.parametrize(("whole", "code", "reason"), [(0, 1, "could be read"), (4, 3, "4 of 8 inputs were rejected")])
def test_the_exit_code_of_the_job_is_passed_on(
    cluster: RayNodes, job: tuple[Path, str], raw: str, whole: int, code: int, reason: str
) -> None:
    path, out = job
    source, few = Store(raw), Store(f"{out}-raw")
    for number, entry in enumerate(itertools.islice(source.list(), 8)):
        data = source.read(entry.name)
        few.put(entry.name, data if number < whole else data[:100])
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "source": {"path": f"{out}-raw"}}))
    followed = cluster_command(cluster, "submit", str(path), "--package", "image", "--follow")
    assert followed.returncode == code, followed.stderr
    assert reason in followed.stderr
    assert reason in json.loads(tokenshard_command("status", out, "--json").stdout)["reason"]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--output", "tokens/"], "output is 'tokens/', a path on this machine"),
        (["--env", "AWS_SECRET_ACCESS_KEY=x"], "everyone who can open the cluster's dashboard could read it"),
        (["--package", "nothing.whl"], "is no wheel"),
        (["--extra", "nothing"], "no such extra"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_work_there_is_refused_before(
    cluster: RayNodes, job: tuple[Path, str], words: list[str], wanted: str
) -> None:
    message = refused("submit", str(job[0]), "--address", cluster.dashboard, *words, code=2, **cluster.environment)
    assert wanted in message


def test_a_wrong_token_and_a_wrong_address_are_one_clear_line(cluster: RayNodes) -> None:
    wrong = {**cluster.environment, "RAY_AUTH_TOKEN": "0" * 64}
    assert "RAY_AUTH_TOKEN" in refused("status", "--address", cluster.dashboard, **wrong)
    assert "RAY_AUTH_MODE=token" in refused("status", "--address", cluster.dashboard, RAY_AUTH_MODE="disabled")
    assert "no Ray job server answers" in refused("status", "--address", "http://127.0.0.1:9")
    assert "has no job nothing" in refused("logs", "nothing", "--address", cluster.dashboard, **cluster.environment)


@pytest.mark.parametrize("faults", [10, pytest.param(100, marks=pytest.mark.nightly)])
def test_whatever_fails_at_random_the_result_is_the_same(
    cluster: RayNodes, job: tuple[Path, str], undisturbed: dict[str, Any], flaky_s3: Proxies, faults: int
) -> None:
    path, out = job
    chaos = Chaos(cluster, random.Random(faults))
    storage = {"endpoint_url": flaky_s3(chaos.schedule()).endpoint}
    path.write_text(
        yaml.safe_dump({**yaml.safe_load(path.read_text()), "storage": storage, "retry": {"attempts": 100}})
    )
    number = 0
    while number == 0 or chaos.done.total() < faults:
        chaos.convert(path, f"{out}{number}", faults)
        assert_as_undisturbed(f"{out}{number}", undisturbed)
        number += 1
    assert chaos.done.total() == faults
    assert len(chaos.done) >= 3
