"""Kills at random moments: whatever dies, the same command goes on, and the result is that of an undisturbed run."""

from __future__ import annotations

import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

import tokenshard
from integration.command import command_line, tokenshard_command
from integration.ray_nodes import UNIT_ACTORS
from integration.work import UNITS, WORK
from tokenshard.errors import SpecError
from tokenshard.shards.verify import verify
from tokenshard.store import Store

pytestmark = pytest.mark.integration
DEADLINE = 240


@contextmanager
def watched(out: Path) -> Iterator[list[str]]:
    """Opens the dataset again and again meanwhile; what a reader must never see is collected."""
    seen: list[str] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            try:
                dataset = tokenshard.open(out)
            except SpecError:
                continue
            missing = [s.path for s in dataset.manifest.shards if not (out / s.path).exists()]
            if missing or len(dataset.manifest.shards) != UNITS:
                seen.append(f"{len(dataset.manifest.shards)} shards, missing: {missing}")

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def shards(out: Path) -> dict[str, int]:
    """Finished shards and their modification times."""
    return {path.name: path.stat().st_mtime_ns for path in sorted((out / "data").glob("*.parquet"))}


def wait_for_shards(out: Path, count: int, driver: subprocess.Popen[bytes]) -> bool:
    """Until there are that many shards (True) or the driver ends (False)."""
    return wait_for(lambda: len(shards(out)) >= count, driver)


def wait_for(condition: Callable[[], bool], driver: subprocess.Popen[bytes]) -> bool:
    """Until the condition holds (True) or the driver ends (False)."""
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        if condition():
            return True
        if driver.poll() is not None:
            return False
        threading.Event().wait(0.02)
    raise AssertionError("the conversion does not get on")


def start(workload: Path, out: Path, *engine: str) -> subprocess.Popen[bytes]:
    words = command_line("convert", "images", str(workload), str(out), "--quiet", *WORK, *engine)
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def named(processes: Iterable[psutil.Process], *names: str) -> list[psutil.Process]:
    """Those whose command line has one of the names, leaving out what is dead already."""
    found = []
    for process in processes:
        try:
            if any(name in word for word in process.cmdline() for name in names):
                found.append(process)
        except psutil.Error:
            continue
    return found


def local_workers(driver: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The unit workers of a local driver; none where it has ended."""
    try:
        return named(psutil.Process(driver.pid).children(), "tokenshard.engine.worker")
    except psutil.NoSuchProcess:
        return []


def ray_workers(driver: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Unit actors of the cluster that the fixture `ray_address` started."""
    return named(psutil.Process().children(recursive=True), *UNIT_ACTORS)


Workers = Callable[[subprocess.Popen[bytes]], list[psutil.Process]]


def kill_workers(driver: subprocess.Popen[bytes], out: Path, workers: Workers, kills: int, draw: random.Random) -> int:
    """SIGKILL all workers of a running driver at random moments, spread over its work; kills that hit."""
    hit = 0
    while hit < kills:
        progress = len(shards(out))
        if not wait_for(lambda: bool(workers(driver)) and (out / "_job/00000001/pilot.json").exists(), driver):
            break
        threading.Event().wait(draw.uniform(0, 0.2))
        for victim in workers(driver):
            try:
                victim.kill()
                hit += 1
            except psutil.NoSuchProcess:
                continue
        if not wait_for_shards(out, progress + 1, driver):
            break
    return hit


def finish(driver: subprocess.Popen[bytes]) -> None:
    _, errors = driver.communicate(timeout=DEADLINE)
    assert driver.returncode == 0, errors.decode()


def assert_as_undisturbed(out: Path, undisturbed: dict[str, Any]) -> None:
    dataset = tokenshard.open(out)
    assert dataset.fingerprint == undisturbed["fingerprint"]
    assert dataset.manifest.totals.rejects == 0
    assert verify(Store(out), deep=True).ok


@pytest.mark.parametrize("seed", [0, 1])
def test_killed_local_workers_cost_nothing_but_time(
    workload: Path, tmp_path: Path, undisturbed: dict[str, Any], seed: int
) -> None:
    out = tmp_path / "out"
    with watched(out) as seen:
        driver = start(workload, out, "--engine", "local", "--workers", "2")
        assert kill_workers(driver, out, local_workers, 4, random.Random(seed)) >= 3
        finish(driver)
    assert not seen
    assert_as_undisturbed(out, undisturbed)


def kill_drivers(
    workload: Path, out: Path, undisturbed: dict[str, Any], kills: int, draw: random.Random, *engine: str
) -> None:
    """SIGKILL the driver again and again, each time after some progress; finished shards stay as they are."""
    with watched(out) as seen:
        for _ in range(kills):
            before = shards(out)
            driver = start(workload, out, *engine)
            assert wait_for_shards(out, len(before) + draw.randint(1, 4), driver)
            driver.send_signal(signal.SIGKILL)
            driver.communicate()
            assert not (out / "manifest").exists()
            assert {name: shards(out)[name] for name in before} == before
        before = shards(out)
        finish(start(workload, out, *engine))
    assert not seen
    assert {name: shards(out)[name] for name in before} == before
    assert_as_undisturbed(out, undisturbed)


def test_a_killed_local_driver_goes_on_where_it_was(
    workload: Path, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    kill_drivers(workload, tmp_path / "out", undisturbed, 4, random.Random(2), "--engine", "local", "--workers", "2")


def test_a_killed_ray_driver_goes_on_where_it_was(
    workload: Path, tmp_path: Path, undisturbed: dict[str, Any], ray_address: str
) -> None:
    engine = ("--engine", "ray", "--address", ray_address, "--workers", "2")
    kill_drivers(workload, tmp_path / "out", undisturbed, 3, random.Random(3), *engine)


def test_killed_ray_actors_cost_nothing_but_time(
    workload: Path, tmp_path: Path, undisturbed: dict[str, Any], ray_address: str
) -> None:
    out = tmp_path / "out"
    with watched(out) as seen:
        driver = start(workload, out, "--engine", "ray", "--address", ray_address, "--workers", "2")
        assert kill_workers(driver, out, ray_workers, 5, random.Random(4)) >= 4
        finish(driver)
    assert not seen
    assert_as_undisturbed(out, undisturbed)


def test_everything_killed_while_shards_are_written_leaves_no_torn_file(
    workload: Path, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    out = tmp_path / "out"
    draw = random.Random(5)
    for _ in range(3):
        driver = start(workload, out, "--engine", "local", "--workers", "2")
        assert wait_for_shards(out, len(shards(out)) + 1, driver), "the driver ended before it could be killed"
        threading.Event().wait(draw.uniform(0, 0.05))
        workers = local_workers(driver)
        assert workers
        for process in workers:
            process.kill()
        driver.kill()
        driver.communicate()
        assert driver.returncode == -signal.SIGKILL
    for path in (path for folder in ("data", "rejects", "_job") for path in (out / folder).rglob("*.*")):
        if path.suffix == ".parquet":
            assert path.read_bytes()[-4:] == b"PAR1", path
        else:
            assert path.read_bytes().rstrip().endswith(b"}"), path
    finish(start(workload, out, "--engine", "local", "--workers", "2"))
    assert tokenshard_command("clean", str(out), "--yes").returncode == 0
    assert not (out / ".tmp").exists()
    assert_as_undisturbed(out, undisturbed)


def test_the_first_interrupt_lets_running_units_finish(
    workload: Path, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    out = tmp_path / "out"
    driver = start(workload, out, "--engine", "local", "--workers", "2")
    assert wait_for_shards(out, 2, driver)
    driver.send_signal(signal.SIGINT)
    _, errors = driver.communicate(timeout=DEADLINE)
    assert driver.returncode == 130
    assert b"run the same command again" in errors
    receipts = len(list((out / "_job/00000001/receipts").iterdir()))
    assert receipts == len(shards(out)) < UNITS
    finish(start(workload, out, "--engine", "local", "--workers", "2"))
    assert_as_undisturbed(out, undisturbed)
