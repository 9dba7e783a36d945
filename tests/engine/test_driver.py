"""The lease of a job: one driver at a time, whatever became of the one before."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tokenshard.engine import driver
from tokenshard.engine.driver import DriverEntry, Lease, latest_driver
from tokenshard.engine.job_folder import JobFolder
from tokenshard.engine.progress import Progress
from tokenshard.errors import JobError
from tokenshard.store import Store


@pytest.fixture
def folder(tmp_path: Path) -> JobFolder:
    return JobFolder(Store(tmp_path), 1)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("BEAT", 0.05), ("EXPIRY", 0.6), ("LOOK", 0.02)):
        monkeypatch.setattr(driver, name, seconds)


class Notes(Progress):
    """Keeps what it would tell the user."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


def write(folder: JobFolder, term: int, **fields: Any) -> DriverEntry:
    """A lease as a driver on another machine has it."""
    facts = {"host": "far", "machine": "far", "pid": 7, "born": "1", "started": "then", "at": "then", **fields}
    entry = DriverEntry.model_validate(facts)
    folder.output.put(folder.name(f"driver/{term:08d}.json"), entry.model_dump_json().encode())
    return entry


def test_the_lease_says_how_far_the_job_is_and_how_it_ended(folder: JobFolder) -> None:
    progress = Progress.silent()
    with Lease.take(folder, progress):
        progress.start("converting", 10)
        progress.advance(4)
        until = time.monotonic() + 5
        while (entry := latest_driver(folder)[1]) is None or entry.done != 4:
            assert time.monotonic() < until
        assert (entry.phase, entry.total, entry.ended, entry.pid) == ("converting", 10, None, os.getpid())
        assert not entry.gone
    ended = latest_driver(folder)[1]
    assert ended is not None
    assert ended.ended == "finished"
    with pytest.raises(JobError, match="no disk"), Lease.take(folder, progress):
        raise JobError("no disk")
    term, entry = latest_driver(folder)
    assert (term, entry and entry.ended) == (2, "no disk")


def test_a_second_driver_here_is_refused_at_once(folder: JobFolder) -> None:
    with Lease.take(folder, Progress.silent()) as lease:
        with pytest.raises(
            JobError, match=f"another job writes there .process {os.getpid()} on .*choose another output"
        ):
            Lease.take(folder, Progress.silent())
        lease.check()


def test_a_driver_elsewhere_that_renews_its_lease_is_alive(folder: JobFolder) -> None:
    notes, over = Notes(), threading.Event()

    def renew() -> None:
        beat = 0
        while not over.wait(0.05):
            beat += 1
            write(folder, 1, beat=beat)

    write(folder, 1)
    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with pytest.raises(JobError, match="process 7 on far, since then"):
            Lease.take(folder, notes)
    finally:
        over.set()
        thread.join()
    assert "waiting up to" in notes.texts[0]


def test_a_driver_elsewhere_that_is_not_heard_of_is_replaced(folder: JobFolder) -> None:
    write(folder, 3)
    started = time.monotonic()
    with Lease.take(folder, Progress.silent()):
        assert time.monotonic() - started >= driver.EXPIRY
        assert latest_driver(folder)[0] == 4


@pytest.mark.parametrize("fields", [{"ended": "finished"}, {"born": "0"}, {"pid": 2**30}], ids=str)
def test_a_driver_that_has_ended_is_not_waited_for(folder: JobFolder, fields: dict[str, Any]) -> None:
    mine = driver._myself()
    write(folder, 1, **{"machine": mine.machine, "pid": mine.pid, "born": mine.born, **fields})
    started = time.monotonic()
    with Lease.take(folder, Progress.silent()):
        assert time.monotonic() - started < driver.EXPIRY


def test_of_drivers_that_begin_together_one_wins(folder: JobFolder) -> None:
    won: list[Lease] = []
    refused: list[str] = []
    gate = threading.Barrier(8)

    def begin() -> None:
        gate.wait()
        try:
            won.append(Lease.take(folder, Progress.silent()))
        except JobError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(refused)) == (1, 7)


@pytest.mark.parametrize("removed", [False, True])
def test_a_driver_that_was_replaced_stops(folder: JobFolder, removed: bool) -> None:
    with Lease.take(folder, Progress.silent()) as lease:
        if removed:
            folder.output.delete(folder.name("driver/00000001.json"))
        else:
            write(folder, 2, beat=5)
        lease._thread.join(5)
        with pytest.raises(JobError, match="files were removed" if removed else "process 7 on far took over"):
            lease.check()
    assert latest_driver(folder)[0] == (0 if removed else 2)
