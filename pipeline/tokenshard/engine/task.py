"""What passes between the scheduler and the workers: small, picklable descriptions. No pixels, no ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from tokenshard.engine.job_folder import Receipt
from tokenshard.engine.plan import UnitPlace
from tokenshard.engine.stages import Stages

Cause = Literal["WorkerDied", "OutOfMemory", "TimedOut"]
"""How a worker ended that did not end by itself."""


@dataclass(frozen=True)
class Task:
    """One run of one unit."""

    place: UnitPlace
    poison: Mapping[int, Cause] = field(default_factory=dict)
    """rows of the unit that kill a worker, and how: not touched, written down as rejects"""
    probe: tuple[int, int] | None = None
    """decode and encode rows [first, last) and commit nothing: part of the search for poison"""
    quarantine: str | None = None
    """do not touch the inputs; reject all of them with this reason"""


@dataclass(frozen=True)
class Done:
    """A task that ran to its end. ``receipt`` is None for a probe."""

    receipt: Receipt | None
    seconds: float
    stages: Mapping[str, float] = field(default_factory=dict)
    """seconds of each stage"""


@dataclass(frozen=True)
class Failure:
    """A task that raised. ``fatal``: the cause lies outside the unit (storage, damaged job folder)."""

    error: str
    message: str
    fatal: bool
    traceback: str = ""


@dataclass(frozen=True)
class Ready:
    """A worker finished its set-up and takes tasks. ``node``: the machine it is on; empty where there is one."""

    worker: int
    node: str = ""


@dataclass(frozen=True)
class Finished:
    """The oldest task of a worker ended."""

    worker: int
    result: Done | Failure


@dataclass(frozen=True)
class Died:
    """A worker is gone. ``blameless``: preempted or its node was lost, so no task of it is suspected."""

    worker: int
    reason: str
    blameless: bool = False
    cause: Cause = "WorkerDied"


@dataclass(frozen=True)
class SetupFailed:
    """A worker raised during its set-up."""

    worker: int
    failure: Failure


Event = Ready | Finished | Died | SetupFailed


@dataclass(frozen=True)
class WorkerAddress:
    """All a worker needs to set itself up, on any machine: the rest it reads from the job folder."""

    output: str
    version: int
    options: Mapping[str, object] = field(default_factory=dict)
    role: Literal["pilot", "units"] = "units"


class Runner(Protocol):
    """What a worker does with its tasks: converts units, or runs the pilot."""

    stages: Stages
    """of the last task"""

    def run(self, task: Task) -> Receipt | None:
        """The receipt of the task (None for a probe). Raises whatever goes wrong."""
        ...


class Executor(Protocol):
    """Runs tasks on workers. A worker runs its tasks one after another, in the order they were submitted."""

    size: int
    """workers it should have"""

    def spawn(self) -> int:
        """Start one more worker; its id. Ready, SetupFailed or Died follows."""
        ...

    def submit(self, worker: int, task: Task) -> None: ...

    def wait(self, timeout: float) -> list[Event]:
        """Events since the last call; waits up to ``timeout`` seconds for the first."""
        ...

    def kill(self, worker: int) -> None:
        """End a worker at once; Died follows."""
        ...

    def close(self) -> None:
        """End all workers."""
        ...
