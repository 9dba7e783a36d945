"""How far a conversion is, from its output alone: works for jobs that run elsewhere, and for dead ones."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from tokenshard.engine.driver import EXPIRY, DriverEntry, latest_driver
from tokenshard.engine.job_folder import JobFolder, Journal
from tokenshard.engine.plan import UnitPlace
from tokenshard.errors import SpecError
from tokenshard.shards.manifest import list_versions
from tokenshard.store import Store

FAILURES = ("death", "error", "poison", "quarantine")
State = Literal["complete", "running", "silent", "stopped", "dead"]


@dataclass(frozen=True)
class JobStatus:
    """One job of an output.

    ``state``: complete (its version is committed), running, silent (a driver on another machine was not heard of for
    longer than it may be), stopped (its driver ended with ``reason``), or dead (its driver was killed).
    ``events`` counts failures by kind: death, error, poison, quarantine; ``deaths`` workers that died, by cause.
    """

    output: str
    version: int
    kind: str
    state: State
    reason: str
    phase: str
    units: int | None
    units_done: int
    inputs: int | None
    inputs_done: int
    rejects: int
    raw_bytes: int
    token_bytes: int
    rate: float
    driver: str
    heard: str
    events: dict[str, int]
    deaths: dict[str, int]
    last_event: str

    def json(self) -> dict[str, Any]:
        return asdict(self)


def job_status(output: Store) -> JobStatus:
    """The newest job of an output. Raises SpecError where none was started there."""
    newest = max(list_versions(output), default=0)
    for version in (newest + 1, newest):
        folder = JobFolder(output, version)
        spec = folder.spec() if version else None
        if spec is not None:
            break
    else:
        raise SpecError(f"{output.root}: no job was started there, or its _job/ folder was cleaned")
    driver = latest_driver(folder)[1]
    state = "complete" if version <= newest else _state(driver)
    plan = folder.plan()
    done = len(folder.finished_units())
    journal = Journal(folder)
    failures = [event for event in journal.events if event["event"] in FAILURES]
    last = failures[-1] if failures else None
    return JobStatus(
        output=output.root,
        version=version,
        kind=spec.kind,
        state=state,
        reason=driver.ended or "" if driver is not None and state == "stopped" else "",
        phase=driver.phase if driver is not None else "",
        units=plan.units if plan else None,
        units_done=done,
        inputs=plan.inputs if plan else None,
        inputs_done=driver.done if driver is not None and driver.phase == "converting" else 0,
        rejects=driver.rejects if driver else 0,
        raw_bytes=driver.raw_bytes if driver else 0,
        token_bytes=driver.token_bytes if driver else 0,
        rate=driver.rate if driver else 0.0,
        driver=driver.name if driver else "",
        heard=driver.at if driver else "",
        events=dict(Counter(event["event"] for event in failures)),
        deaths=journal.deaths,
        last_event="" if last is None else f"{UnitPlace(last['unit'], '', 0)}: {last.get('reason', last['event'])}",
    )


def _state(driver: DriverEntry | None) -> State:
    if driver is None:
        return "dead"
    if driver.ended is not None:
        return "stopped"
    if driver.here:
        return "dead" if driver.gone else "running"
    age = (datetime.now(UTC) - datetime.fromisoformat(driver.at)).total_seconds()
    return "running" if age <= EXPIRY else "silent"
