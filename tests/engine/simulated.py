"""Workers that live in memory and follow a script, on a clock of their own, and the jobs they are given."""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

from tokenshard.engine.job_folder import JobFolder, Journal, Receipt
from tokenshard.engine.plan import UnitPlace
from tokenshard.engine.scheduler import IN_FLIGHT, Scheduler
from tokenshard.engine.task import Died, Done, Event, Failure, Finished, Ready, SetupFailed, Task
from tokenshard.spec.engine import RetrySpec
from tokenshard.store import Store

NEVER = 1e9
ATTEMPTS = 3


@dataclass
class Unit:
    """What happens to whoever runs this unit."""

    rows: int = 4
    seconds: float = 1.0
    poison: frozenset[int] = frozenset()
    """rows that kill the worker"""
    deaths: int = 0
    """so many runs kill the worker, whatever the rows"""
    hangs: int = 0
    """so many runs never end"""
    errors: int = 0
    """so many runs raise"""
    fatal: bool = False
    """what they raise comes from the storage"""
    deadly_on: str = ""
    """a node where every run kills the worker"""

    @property
    def clean(self) -> bool:
        return not (self.poison or self.deaths or self.hangs or self.errors or self.deadly_on)


@dataclass(frozen=True)
class Run:
    """One task that a worker began: ``behind`` tasks were queued behind it when it ended."""

    worker: int
    task: Task
    start: float
    behind: int
    died: bool


@dataclass
class InMemory:
    """An executor without processes. ``setups``: what becomes of the first workers that are started (default: ready),
    and ``starts``: after how many seconds (default: 1).

    ``kills``: (time, blameless): a worker dies from outside. ``nodes``: where workers are, each on the emptiest node.
    """

    units: Sequence[Unit]
    size: int = 2
    setups: Sequence[type[Ready] | type[SetupFailed] | type[Died] | None] = ()
    starts: Sequence[float] = ()
    kills: Sequence[tuple[float, bool]] = ()
    nodes: Sequence[str] = ("",)
    now: float = 0.0
    runs: list[Run] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.units = [replace(unit) for unit in self.units]
        self._queues: dict[int, deque[Task]] = {}
        self._since: dict[int, float] = {}
        self._node_of: dict[int, str] = {}
        self._alive: set[int] = set()
        self._spawned = 0
        self._order = count()
        self._agenda: list[tuple[float, int, Callable[[], list[Event]]]] = []
        for when, blameless in self.kills:
            self._at(when, lambda blameless=blameless: self._kill_any(blameless))

    def _at(self, when: float, action: Callable[[], list[Event]]) -> None:
        heapq.heappush(self._agenda, (when, next(self._order), action))

    def spawn(self) -> int:
        self._spawned += 1
        worker = self._spawned
        fate = self.setups[worker - 1] if worker <= len(self.setups) else Ready
        living = Counter(self._node_of[other] for other in self._node_of.keys() & self._alive)
        self._alive.add(worker)
        self._node_of[worker] = min(self.nodes, key=lambda node: living[node])
        seconds = self.starts[worker - 1] if worker <= len(self.starts) else 1
        self._at(self.now + seconds, lambda: self._set_up(worker, fate))
        return worker

    def _set_up(self, worker: int, fate: type[Event] | None) -> list[Event]:
        if fate is not Ready:
            self._alive.discard(worker)
        if fate is SetupFailed:
            return [SetupFailed(worker, Failure("ImportError", "no module named codebook", fatal=False))]
        if fate is not Ready:
            return [Died(worker, "killed by SIGKILL", blameless=fate is None)]
        self._queues[worker] = deque()
        return [Ready(worker, self._node_of[worker])]

    def submit(self, worker: int, task: Task) -> None:
        queue = self._queues.get(worker)
        if queue is None:
            return  # it died; the scheduler does not know yet
        queue.append(task)
        assert len(queue) <= IN_FLIGHT
        if len(queue) == 1:
            self._begin(worker)

    def _begin(self, worker: int) -> None:
        task = self._queues[worker][0]
        self._since[worker] = self.now
        unit = self.units[task.place.unit]
        rows = range(*task.probe) if task.probe else range(unit.rows)
        result: Done | Failure | None = Done(None, unit.seconds)
        seconds = unit.seconds
        if task.quarantine is not None and task.probe is None:
            result = Done(Receipt(unit=task.place.unit, rows=0, rejected=unit.rows), seconds)
        elif unit.hangs:
            unit.hangs, seconds = unit.hangs - 1, NEVER
        elif self._node_of[worker] == unit.deadly_on != "":
            result = None
        elif unit.deaths or unit.poison.intersection(rows) - set(task.poison):
            unit.deaths, result = max(0, unit.deaths - 1), None
        elif unit.errors:
            unit.errors, result = unit.errors - 1, Failure("ValueError", "codes out of range", unit.fatal)
        elif task.probe is None:
            left_out = len(task.poison)
            result = Done(Receipt(unit=task.place.unit, rows=unit.rows - left_out, rejected=left_out), seconds)
        self._at(self.now + seconds, lambda: self._end(worker, task, result))

    def _end(self, worker: int, task: Task, result: Done | Failure | None) -> list[Event]:
        queue = self._queues.get(worker)
        if queue is None or not queue or queue[0] is not task:
            return []  # it was killed in the meantime
        if result is None:
            return self._die(worker, "killed by SIGSEGV", blameless=False)
        queue.popleft()
        self.runs.append(Run(worker, task, self._since[worker], len(queue), died=False))
        if queue:
            self._begin(worker)
        return [Finished(worker, result)]

    def _die(self, worker: int, reason: str, blameless: bool) -> list[Event]:
        queue = self._queues.pop(worker)
        self._alive.discard(worker)
        if queue:
            self.runs.append(Run(worker, queue[0], self._since[worker], len(queue) - 1, died=True))
        return [Died(worker, reason, blameless)]

    def _kill_any(self, blameless: bool) -> list[Event]:
        busy = [worker for worker, queue in self._queues.items() if queue]
        return self._die(busy[0], "killed by SIGKILL", blameless) if busy else []

    def wait(self, timeout: float) -> list[Event]:
        until = self.now + timeout
        while self._agenda and self._agenda[0][0] <= until:
            when, _, action = heapq.heappop(self._agenda)
            self.now = max(self.now, when)
            if events := action():
                return events
        self.now = until
        return []

    def kill(self, worker: int) -> None:
        self._at(self.now, lambda: self._die(worker, "took too long", False) if worker in self._queues else [])

    def close(self) -> None:
        self._queues.clear()

    @property
    def started(self) -> int:
        """Workers, in all."""
        return self._spawned

    def tasks_of(self, unit: int) -> list[Task]:
        return [run.task for run in self.runs if run.task.place.unit == unit]


@dataclass
class Job:
    """A job in a folder; each :meth:`run` is a driver that starts anew with what the folder holds."""

    root: Path | str
    receipts: list[Receipt] = field(default_factory=list)

    def run(
        self,
        executor: InMemory,
        stopping: Callable[[], bool] = lambda: False,
        any_done: bool = False,
        **retry: float,
    ) -> None:
        done = {receipt.unit for receipt in self.receipts}
        places = [UnitPlace(unit, "plan.parquet", unit) for unit in range(len(executor.units)) if unit not in done]
        Scheduler(
            executor,
            places,
            self.journal(),
            RetrySpec.model_validate({"attempts": ATTEMPTS, **retry}),
            lambda place: executor.units[place.unit].rows,
            lambda receipt, seconds: self.receipts.append(receipt),
            stopping,
            any_done,
            clock=lambda: executor.now,
        ).run()

    def journal(self) -> Journal:
        return Journal(JobFolder(Store(self.root), 1))

    def events(self) -> list[tuple[str, int]]:
        return [(event["event"], event["unit"]) for event in self.journal().events]

    def rejected(self) -> dict[int, int]:
        assert len({receipt.unit for receipt in self.receipts}) == len(self.receipts)
        return {receipt.unit: receipt.rejected for receipt in sorted(self.receipts, key=lambda r: r.unit)}
