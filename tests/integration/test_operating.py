"""What a user sees of a job: its estimate before, its metrics and log meanwhile, its state at any time."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import threading
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from integration.command import command_line, convert, refused, tokenshard_command
from integration.work import SAMPLES, UNITS, WORK
from ports import free_port
from tokenshard.engine.metrics import METRICS
from tokenshard.engine.status import job_status
from tokenshard.store import Store

pytestmark = pytest.mark.integration
LOCAL = ["--engine", "local", "--workers", "2"]


def state_of(out: Path) -> dict[str, Any]:
    done = tokenshard_command("status", str(out), "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_dry_run_says_what_the_job_will_take(workload: Path, tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    out = tmp_path / "out"
    found = convert(workload, out, *WORK, "--dry-run")
    assert not out.exists()
    assert (found["num_inputs"], found["num_units"]) == (UNITS * SAMPLES, UNITS)
    assert found["raw_bytes"] == undisturbed["raw_bytes"]
    assert found["sampled"] == 64
    assert abs(found["token_bytes"] / undisturbed["token_bytes"] - 1) < 0.2
    assert set(found["stage_seconds"]) == {"read", "encode", "code", "commit"}
    assert found["seconds"] > 0
    shown = tokenshard_command("convert", "images", str(workload), str(out), "--quiet", *WORK, "--dry-run").stdout
    assert re.search(r"token bytes +about .* [kM]B", shown)
    assert "Nothing was written." in shown


def test_the_first_inputs_alone_are_converted(workload: Path, tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    out = tmp_path / "out"
    assert convert(workload, out, *WORK, *LOCAL, "--limit", "20")["num_samples"] == 20
    message = refused("convert", "images", str(workload), str(out), *WORK, *LOCAL, code=2)
    assert "limit: 20 there, None here" in message
    whole = convert(workload, tmp_path / "whole", *WORK, *LOCAL, "--limit", str(UNITS * SAMPLES))
    assert whole["num_samples"] == undisturbed["num_samples"]


def test_log_and_metrics_tell_the_same(workload: Path, tmp_path: Path) -> None:
    port = free_port()
    words = ["--log-format", "json", "--metrics-port", str(port)]
    command = command_line("convert", "images", str(workload), str(tmp_path / "out"), *WORK, *LOCAL, *words)
    pages: list[str] = []
    over = threading.Event()

    def scrape() -> None:
        while not over.wait(0.1):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as page:
                    pages.append(page.read().decode())
            except OSError:
                continue

    thread = threading.Thread(target=scrape)
    thread.start()
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    over.set()
    thread.join()
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    units = [line for line in lines if line["event"] == "unit"]
    assert sorted(line["unit"] for line in units) == list(range(UNITS))
    assert all(
        line["rows"] == SAMPLES and set(line["stages"]) == {"read", "encode", "code", "commit"} for line in units
    )
    assert [line["phase"] for line in lines if line["event"] == "progress"][-1] == "converting"
    named = {name.removesuffix("_total") for name in METRICS}
    assert pages
    for line in pages[-1].splitlines():
        if not line.startswith("#"):
            name = re.sub(r"_(total|created|bucket|count|sum)$", "", line.partition("{")[0])
            assert name in named
    assert f'tokenshard_units_planned{{output="{tmp_path / "out"}"}} {UNITS}.0' in pages[-1]


def test_the_state_of_a_job_is_known_from_its_output(workload: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "no job was started there" in refused("status", str(out), code=2)
    command = command_line("convert", "images", str(workload), str(out), "--quiet", *WORK, *LOCAL)
    for number, wanted in ((signal.SIGKILL, "dead"), (signal.SIGINT, "stopped")):
        before = state_of(out)["units_done"] if out.exists() else 0
        with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as driver:
            while driver.poll() is None and len(list(out.glob("_job/00000001/receipts/*"))) <= before:
                threading.Event().wait(0.02)
            assert job_status(Store(out)).state == "running"
            driver.send_signal(number)
        found = state_of(out)
        assert found["state"] == wanted, found
        assert 0 < found["units_done"] < UNITS
    assert "run the same command again" in found["reason"]
    assert tokenshard_command(*command[3:]).returncode == 0
    found = state_of(out)
    assert (found["state"], found["units_done"], found["inputs"]) == ("complete", UNITS, UNITS * SAMPLES)
    assert f"units   {UNITS} of {UNITS} (100%)" in tokenshard_command("status", str(out)).stdout
