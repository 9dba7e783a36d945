"""The pull scheduler: keeps every worker busy with units, and decides what happens when one fails.

Rules. An exception inside a unit is retried with a growing delay, then the unit is quarantined (its inputs become
rejects). A worker that dies puts blame only on the task it was running; the tasks queued behind it go back for free. A
blamed unit runs alone, and on a node where it has killed none while there is one: the fault may be the node's. After
``attempts`` deaths its poison inputs are searched for by halving and left out; a driver that starts again goes on with
the search where it was. Failures outside the unit (storage) end the job, and so do units that raise while none of the
job was ever done: everything finished stays, and the same command goes on from there.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

from pydantic import JsonValue

from tokenshard.engine.job_folder import Journal, Receipt
from tokenshard.engine.plan import UnitPlace
from tokenshard.engine.poison import PoisonSearch, most_deaths
from tokenshard.engine.task import Cause, Died, Done, Event, Executor, Failure, Finished, Ready, SetupFailed, Task
from tokenshard.errors import JobError
from tokenshard.spec.engine import RetrySpec

logger = logging.getLogger("tokenshard.engine")

IN_FLIGHT = 2
"""Tasks a worker holds: one running, one queued, so that it never waits for the driver."""
SETUP_FAILURES = 3
"""Set-ups that may raise in a row, while there is no worker, before the job is given up."""
SETUP_DEATHS = 10
"""Workers that may die like that during their set-up: killed from outside, or by a crash that comes every time."""
HOPELESS_UNITS = 3
"""Units that may fail for good before the first one is done."""
BACKOFF = 0.5
LONGEST_BACKOFF = 60.0
"""Seconds before a set-up that failed is tried again while there are other workers."""


class Interrupted(JobError):
    """The user asked to stop; finished units are kept."""

    exit_code = 130


@dataclass
class _Unit:
    """What is known about a unit that failed at least once."""

    rows: int
    attempts: int = 0
    errors: int = 0
    poison: dict[int, Cause] = field(default_factory=dict)
    search: PoisonSearch | None = None
    settled: bool = False
    """its last search found something, and it killed none since"""
    cause: Cause = "WorkerDied"
    """of its last death"""
    nodes: set[str] = field(default_factory=set)
    """where it killed a worker"""

    def task(self, place: UnitPlace) -> Task:
        return Task(place, poison=dict(self.poison))

    def probed(self, probe: tuple[int, int], died: bool) -> None:
        """Outcome of a probe of the search, which begins with it where there is none."""
        self.search = self.search or PoisonSearch(self.rows)
        if self.search.probe == probe:
            self.search.record(died)

    def killed(self, cause: Cause, node: str, probe: tuple[int, int] | None) -> None:
        self.attempts += 1
        self.cause = cause
        self.nodes.add(node)
        self.settled = False
        if probe is not None:
            self.probed(probe, died=True)
        else:
            self.search = None

    def convict(self, row: int, cause: Cause) -> None:
        self.poison[row] = cause
        self.search, self.settled = None, True


@dataclass
class _Worker:
    tasks: deque[Task] = field(default_factory=deque)
    started: float = 0.0
    """when its oldest task began (seconds of the clock)"""
    ready: bool = False
    node: str = ""
    alone: bool = False
    """runs a suspected task: gets nothing queued behind it"""
    late: bool = False
    """was killed because its task took too long"""


class Scheduler:
    """Runs units to the end of ``places``. Events of failures go to the journal, receipts to ``on_receipt``.

    ``any_done``: whether earlier runs of the job finished a unit. ``on_pool`` gets in every round the workers that are
    ready, those that start, and the tasks they hold. ``clock`` counts seconds.
    """

    def __init__(
        self,
        executor: Executor,
        places: Iterable[UnitPlace],
        journal: Journal,
        retry: RetrySpec,
        rows_of: Callable[[UnitPlace], int],
        on_receipt: Callable[[Receipt, Done], None],
        stopping: Callable[[], bool] = lambda: False,
        any_done: bool = False,
        on_pool: Callable[[int, int, int], None] = lambda ready, starting, queued: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._executor = executor
        self._places: Iterator[UnitPlace] = iter(places)
        self._journal = journal
        self._retry = retry
        self._rows_of = rows_of
        self._on_receipt = on_receipt
        self._stopping = stopping
        self._any_done = any_done
        self._on_pool = on_pool
        self._clock = clock
        self._workers: dict[int, _Worker] = {}
        self._missing: list[float] = []
        """when workers whose set-up failed are started anew"""
        self._again: deque[Task] = deque()
        self._alone: deque[Task] = deque()
        self._later: list[tuple[float, Task]] = []
        self._units: dict[int, _Unit] = {}
        self._setup_failures = self._setup_deaths = 0
        self._hopeless: list[tuple[Task, str]] = []
        self._exhausted = False
        self._recall()

    def _recall(self) -> None:
        """Attempts and findings of earlier runs of this job."""
        for event in self._journal.events:
            unit = self._units.setdefault(event["unit"], _Unit(event["rows"]))
            match event["event"]:
                case "death":
                    probe = event.get("probe")
                    unit.killed(event.get("cause", "WorkerDied"), event.get("node", ""), probe and tuple(probe))
                case "survived":
                    unit.probed(tuple(event["probe"]), died=False)
                case "error":
                    unit.errors, unit.search = unit.errors + 1, None
                case "poison":
                    unit.convict(event["row"], event.get("cause", "WorkerDied"))

    # -- the loop -----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Returns when every unit has a receipt; raises JobError or Interrupted otherwise."""
        for _ in range(self._executor.size):
            self._spawn()
        drain_until: float | None = None
        while True:
            if drain_until is None and self._stopping():
                drain_until = self._clock() + self._retry.drain_seconds
            if drain_until is None:
                self._fill()
                if self._exhausted and not self._waiting() and not self._running():
                    if self._hopeless:
                        self._give_up()
                    return
            elif not self._running() or self._clock() > drain_until:
                raise Interrupted("stopped; run the same command again to go on from here")
            for event in self._executor.wait(0.2):
                self._handle(event)
            self._kill_stragglers()
            ready = sum(worker.ready for worker in self._workers.values())
            queued = sum(len(worker.tasks) for worker in self._workers.values())
            self._on_pool(ready, len(self._workers) - ready, queued)

    def _running(self) -> bool:
        return any(worker.tasks for worker in self._workers.values())

    def _waiting(self) -> bool:
        return bool(self._again or self._alone or self._later)

    def _spawn(self) -> None:
        self._workers[self._executor.spawn()] = _Worker()

    def _fill(self) -> None:
        now = self._clock()
        for when in [when for when in self._missing if when <= now]:
            self._missing.remove(when)
            self._spawn()
        due = [again for when, again in self._later if when <= now]
        self._later = [(when, again) for when, again in self._later if when > now]
        for again in due:
            self._put_back(again)
        self._fill_alone()
        open_to_all = [n for n, worker in self._workers.items() if worker.ready and not worker.alone]
        if self._alone and len(self._workers) > 1:  # one runs empty, so that a suspected unit gets a worker to itself
            nodes = self._nodes_for(self._alone[0])
            kept = [n for n in open_to_all if self._workers[n].node in nodes][:1]
            open_to_all = [n for n in open_to_all if n not in kept]
        for depth in range(1, IN_FLIGHT + 1):  # one task for everyone before a second for anyone
            for number in open_to_all:
                if len(self._workers[number].tasks) < depth and (task := self._next()):
                    self._submit(number, task)

    def _fill_alone(self) -> None:
        """Suspected tasks to workers that do nothing, on nodes where their units killed none if there are such."""
        empty = [n for n, worker in self._workers.items() if worker.ready and not worker.tasks]
        for task in list(self._alone):
            if not empty:
                return
            nodes = self._nodes_for(task)
            if (number := next((n for n in empty if self._workers[n].node in nodes), None)) is not None:
                empty.remove(number)
                self._alone.remove(task)
                self._workers[number].alone = True
                self._submit(number, task)

    def _nodes_for(self, task: Task) -> set[str]:
        nodes = {worker.node for worker in self._workers.values() if worker.ready}
        unit = self._units.get(task.place.unit)
        return nodes - unit.nodes or nodes if unit is not None else nodes

    def _put_back(self, task: Task) -> None:
        """A task to be run again, alone if its unit was seen to kill a worker."""
        unit = self._units.get(task.place.unit)
        blamed = unit is not None and unit.attempts > 0 and task.quarantine is None
        (self._alone if blamed else self._again).append(task)

    def _next(self) -> Task | None:
        if self._again:
            return self._again.popleft()
        for place in self._places:
            unit = self._units.get(place.unit)
            if unit is None or unit.attempts == 0:
                return unit.task(place) if unit else Task(place)
            self._suspect(unit.task(place))  # an earlier run saw it kill a worker
        self._exhausted = True
        return None

    def _submit(self, number: int, task: Task) -> None:
        worker = self._workers[number]
        if not worker.tasks:
            worker.started = self._clock()
        worker.tasks.append(task)
        self._executor.submit(number, task)

    def _kill_stragglers(self) -> None:
        limit = self._retry.unit_timeout
        for number, worker in self._workers.items():
            if limit is not None and worker.tasks and self._clock() - worker.started > limit:
                worker.started, worker.late = self._clock(), True
                self._executor.kill(number)

    # -- what happened ------------------------------------------------------------------------------------------------

    def _handle(self, event: Event) -> None:
        worker = self._workers.get(event.worker)
        if worker is None:
            return
        match event:
            case Ready():
                worker.ready, worker.node = True, event.node
                self._setup_failures = self._setup_deaths = 0
            case SetupFailed():
                self._setup_failures += 1
                self._set_up_lost(event.worker, event.failure.message)
            case Died():
                self._died(event, worker)
            case Finished():
                task = worker.tasks.popleft()
                worker.started = self._clock()
                worker.alone = False
                if isinstance(event.result, Done):
                    self._done(task, event.result)
                else:
                    self._failed(task, event.result)

    def _set_up_lost(self, number: int, reason: str) -> None:
        """A worker that could not be set up: while there are others it is tried again, less and less often."""
        del self._workers[number]
        in_a_row = self._setup_failures + self._setup_deaths
        given_up = self._setup_failures >= SETUP_FAILURES or self._setup_deaths >= SETUP_DEATHS
        if given_up and not any(worker.ready for worker in self._workers.values()):
            raise JobError(f"no worker could be set up ({in_a_row} in a row failed): {reason}")
        if not self._workers:
            self._spawn()
            return
        logger.warning("a worker could not be set up (%d in a row): %s", in_a_row, reason)
        self._missing.append(self._clock() + min(LONGEST_BACKOFF, BACKOFF * 2**in_a_row))

    def _died(self, event: Died, worker: _Worker) -> None:
        if not worker.ready and not event.blameless:
            self._setup_deaths += 1
            self._set_up_lost(event.worker, event.reason)
            return
        del self._workers[event.worker]
        self._spawn()
        if worker.ready:
            self._setup_failures = self._setup_deaths = 0
        tasks = list(worker.tasks)
        self._again.extend(tasks[1:])
        if not tasks:
            return
        task = tasks[0]
        if event.blameless:
            self._put_back(task)
            return
        unit = self._known(task)
        cause: Cause = "TimedOut" if worker.late else event.cause
        unit.killed(cause, worker.node, task.probe)
        more: dict[str, JsonValue] = {"node": worker.node} if worker.node else {}
        if task.probe is not None:
            more["probe"] = list(task.probe)
        reason = "took longer than retry.unit_timeout" if worker.late else event.reason
        self._journal.append(
            "death", unit=task.place.unit, rows=unit.rows, attempt=unit.attempts, reason=reason, cause=cause, **more
        )
        self._suspect(task)

    def _suspect(self, task: Task) -> None:
        """A unit that killed a worker: alone at first, then looked into."""
        unit = self._known(task)
        if unit.attempts >= most_deaths(unit.rows):
            unit.search = None
            self._quarantine(task, f"killed its worker {unit.attempts} times, last: {unit.cause}")
        elif task.quarantine is not None:
            self._alone.append(task)
        elif unit.settled or (unit.search is None and unit.attempts < self._retry.attempts):
            self._alone.append(unit.task(task.place))
        else:
            self._search(task.place, unit, unit.search or PoisonSearch(unit.rows))

    def _search(self, place: UnitPlace, unit: _Unit, search: PoisonSearch) -> None:
        """The next step of a search for what kills its worker; at its end the unit is run without it."""
        unit.search = search
        if search.probe is not None:
            self._alone.append(replace(unit.task(place), probe=search.probe))
            return
        if search.found is not None:
            unit.convict(search.found, unit.cause)
            self._journal.append("poison", unit=place.unit, rows=unit.rows, row=search.found, cause=unit.cause)
        unit.search = None
        self._alone.append(unit.task(place))

    def _done(self, task: Task, result: Done) -> None:
        unit = self._units.get(task.place.unit)
        if result.receipt is not None:
            self._units.pop(task.place.unit, None)
            self._any_done |= task.quarantine is None
            self._on_receipt(result.receipt, result)
            while self._any_done and self._hopeless:
                self._quarantine(*self._hopeless.pop())
        elif unit is not None and unit.search is not None and task.probe is not None:
            unit.probed(task.probe, died=False)
            self._journal.append("survived", unit=task.place.unit, rows=unit.rows, probe=list(task.probe))
            self._search(task.place, unit, unit.search)

    def _failed(self, task: Task, failure: Failure) -> None:
        if failure.fatal:
            raise JobError(failure.message)
        unit = self._known(task)
        unit.errors += 1
        unit.search = None
        reason = f"{failure.error}: {failure.message}"
        self._journal.append("error", unit=task.place.unit, rows=unit.rows, attempt=unit.errors, reason=reason)
        if unit.errors < self._retry.attempts:
            self._later.append((self._clock() + BACKOFF * 2**unit.errors, replace(task, probe=None)))
            return
        reason = f"failed {unit.errors} times, last with {reason}"
        if self._any_done or task.quarantine is not None:
            self._quarantine(task, reason)
            return
        self._hopeless.append((task, reason))
        if len(self._hopeless) >= HOPELESS_UNITS:
            self._give_up()

    def _give_up(self) -> None:
        task, reason = self._hopeless[0]
        raise JobError(f"no unit could be converted; {task.place} {reason}")

    def _quarantine(self, task: Task, reason: str) -> None:
        if task.quarantine is not None:
            raise JobError(f"{task.place}: cannot even be written down as rejects: {reason}")
        self._journal.append("quarantine", unit=task.place.unit, rows=self._known(task).rows, reason=reason)
        self._again.append(Task(task.place, quarantine=reason))

    def _known(self, task: Task) -> _Unit:
        place = task.place
        if place.unit not in self._units:
            self._units[place.unit] = _Unit(self._rows_of(place))
        return self._units[place.unit]
