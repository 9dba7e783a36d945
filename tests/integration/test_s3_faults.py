"""A conversion on an S3 store that fails now and then, and one that is away: nothing lost, nothing twice."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from durable_s3 import S3_ENVIRONMENT, DurableS3
from flaky_s3 import Fault, FlakyS3, every
from integration.command import command_line, convert, refused, tokenshard_command
from integration.work import SAMPLES, UNITS, WORK
from tokenshard.shards.manifest import read_manifest
from tokenshard.shards.verify import verify
from tokenshard.store import Store

pytestmark = pytest.mark.integration
Proxies = Callable[[Iterable[Fault | None]], FlakyS3]
LOCAL = ["--engine", "local", "--workers", "2"]
DEADLINE = 240


def test_every_tenth_request_failing_changes_nothing(
    workload: Path, undisturbed: dict[str, Any], s3_url: str, flaky_s3: Proxies
) -> None:
    proxy = flaky_s3(every(10, Fault.BUSY, Fault.RESET, Fault.LOST, Fault.CUT))
    source = Store(workload)
    for entry in source.list():
        Store(s3_url).put(f"raw/{entry.name}", source.read(entry.name))
    out = f"{s3_url}/tokens"
    summary = convert(f"{s3_url}/raw", out, *WORK, *LOCAL, AWS_ENDPOINT_URL=proxy.endpoint)
    assert proxy.failures.total() > 20
    assert summary["fingerprint"] == undisturbed["fingerprint"]
    assert verify(Store(out), deep=True).ok


def test_a_store_that_goes_away_stops_the_job_and_the_same_command_completes_it(
    workload: Path, undisturbed: dict[str, Any], s3_url: str, flaky_s3: Proxies
) -> None:
    away = flaky_s3([*[None] * 45, *[Fault.BUSY] * 100_000])
    out = f"{s3_url}/tokens"
    command = ["convert", "images", str(workload), out, "--quiet", *WORK, *LOCAL]
    message = refused(*command, AWS_ENDPOINT_URL=away.endpoint)
    assert out in message
    assert "attempts" in message
    assert convert(workload, out, *WORK, *LOCAL)["fingerprint"] == undisturbed["fingerprint"]


def test_a_server_that_is_killed_and_started_again_loses_nothing(
    workload: Path, undisturbed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in S3_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    with DurableS3(tmp_path / "s3") as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        out = Store("s3://tokens/killed", {"endpoint_url": server.endpoint})
        command = command_line("convert", "images", str(workload), out.root, "--quiet", *WORK, *LOCAL)
        kills = [3, 9]
        while True:
            with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as driver:
                until = time.monotonic() + DEADLINE
                while driver.poll() is None:
                    assert time.monotonic() < until, "the conversion does not get on"
                    if kills and sum(1 for _ in out.list("data")) >= kills[0]:
                        assert kills.pop(0) < UNITS
                        server.kill()
                        server.start()
                    time.sleep(0.05)
                _, errors = driver.communicate()
            if driver.returncode == 0:
                break
            assert b"attempts" in errors, errors.decode()  # the server was away for too long: the same command again
        assert not kills
        assert read_manifest(out).fingerprint == undisturbed["fingerprint"]
        assert verify(out, deep=True).ok


def test_answers_that_do_not_come_are_asked_for_again(
    workload: Path, undisturbed: dict[str, Any], s3_url: str, flaky_s3: Proxies, tmp_path: Path
) -> None:
    """For a while no request is answered at all; connections stay open."""
    proxy = flaky_s3([*[None] * 60, *[Fault.HELD] * 8])
    storage = {"endpoint_url": proxy.endpoint, "config_kwargs": {"read_timeout": 2, "connect_timeout": 2}}
    job = {
        "kind": "convert-images",
        "source": {"path": str(workload)},
        "output": f"{s3_url}/tokens",
        "tokenizer": "patch:4x4,k=256",
        "unit": {"samples": SAMPLES},
        "engine": {"kind": "local", "workers": 2},
        "storage": storage,
    }
    spec = tmp_path / "job.json"
    spec.write_text(json.dumps(job))
    done = tokenshard_command("run", str(spec), "--quiet", "--json")
    assert done.returncode == 0, done.stderr
    assert proxy.failures[Fault.HELD] == 8
    assert json.loads(done.stdout)["fingerprint"] == undisturbed["fingerprint"]


def test_a_store_that_cannot_be_reached_is_one_clear_line(workload: Path, s3_url: str) -> None:
    command = ["convert", "images", str(workload), f"{s3_url}/out", "--quiet", *WORK, *LOCAL]
    assert s3_url in refused(*command, AWS_ENDPOINT_URL="http://127.0.0.1:9")
