"""The pull scheduler: keeps every worker busy with units, and decides what happens when one fails.

Rules. An exception inside a unit is retried with a growing delay, then the unit is quarantined (its inputs become
rejects). A worker that dies puts blame only on the task it was running; the tasks queued behind it go back for free. A
blamed unit runs alone; after ``attempts`` deaths its poison inputs are searched for by halving and left out. Failures
outside the unit (storage) end the job, and so do units that raise while none of the job was ever done: everything
finished stays, and the same command goes on from there.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

from tokenshard.engine.job_folder import Journal, Receipt
from tokenshard.engine.plan import UnitPlace
from tokenshard.engine.poison import PoisonSearch, most_deaths
from tokenshard.engine.task import Died, Done, Event, Executor, Failure, Finished, Ready, SetupFailed, Task
from tokenshard.errors import JobError
from tokenshard.spec.engine import RetrySpec

IN_FLIGHT = 2
"""Tasks a worker holds: one running, one queued, so that it never waits for the driver."""
SETUP_FAILURES = 3
"""Set-ups that may raise in a row before the job is given up."""
SETUP_DEATHS = 10
"""Workers that may die in a row during their set-up: killed from outside, or by a crash that comes every time."""
HOPELESS_UNITS = 3
"""Units that may fail for good before the first one is done."""
BACKOFF = 0.5


class Interrupted(JobError):
    """The user asked to stop; finished units are kept."""

    exit_code = 130


@dataclass
class _Unit:
    """What is known about a unit that failed at least once."""

    rows: int
    attempts: int = 0
    errors: int = 0
    poison: frozenset[int] = frozenset()
    search: PoisonSearch | None = None


@dataclass
class _Worker:
    tasks: deque[Task] = field(default_factory=deque)
    started: float = 0.0
    """when its oldest task began (seconds of the clock)"""
    ready: bool = False
    alone: bool = False
    """runs a suspected task: gets nothing queued behind it"""


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
                    unit.attempts += 1
                case "error":
                    unit.errors += 1
                case "poison":
                    unit.poison |= {event["row"]}

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
        due = [again for when, again in self._later if when <= now]
        self._later = [(when, again) for when, again in self._later if when > now]
        for again in due:
            self._put_back(again)
        for number, worker in self._workers.items():
            if worker.ready and not worker.tasks and self._alone:
                worker.alone = True
                self._submit(number, self._alone.popleft())
        open_to_all = [n for n, worker in self._workers.items() if worker.ready and not worker.alone]
        if self._alone and len(self._workers) > 1:
            del open_to_all[:1]  # runs empty, so that a suspected unit gets a worker to itself
        for depth in range(1, IN_FLIGHT + 1):  # one task for everyone before a second for anyone
            for number in open_to_all:
                if len(self._workers[number].tasks) < depth and (task := self._next()):
                    self._submit(number, task)

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
                return Task(place, poison=unit.poison if unit else frozenset())
            self._suspect(Task(place, poison=unit.poison))  # an earlier run saw it kill a worker
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
                worker.started = self._clock()
                self._executor.kill(number)

    # -- what happened ------------------------------------------------------------------------------------------------

    def _handle(self, event: Event) -> None:
        worker = self._workers.get(event.worker)
        if worker is None:
            return
        match event:
            case Ready():
                worker.ready = True
                self._setup_failures = self._setup_deaths = 0
            case SetupFailed():
                self._worker_lost(event.worker)
                self._setup_failures += 1
                self._check_set_ups(event.failure.message)
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

    def _check_set_ups(self, reason: str) -> None:
        if self._setup_failures >= SETUP_FAILURES or self._setup_deaths >= SETUP_DEATHS:
            in_a_row = self._setup_failures + self._setup_deaths
            raise JobError(f"no worker could be set up ({in_a_row} in a row failed): {reason}")

    def _worker_lost(self, number: int) -> _Worker:
        worker = self._workers.pop(number)
        self._spawn()
        return worker

    def _died(self, event: Died, worker: _Worker) -> None:
        self._worker_lost(event.worker)
        if not worker.ready:
            if not event.blameless:
                self._setup_deaths += 1
                self._check_set_ups(event.reason)
            return
        tasks = list(worker.tasks)
        self._again.extend(tasks[1:])
        if not tasks:
            return
        task = tasks[0]
        if event.blameless:
            self._put_back(task)
            return
        unit = self._known(task)
        unit.attempts += 1
        self._journal.append("death", unit=task.place.unit, rows=unit.rows, attempt=unit.attempts, reason=event.reason)
        if task.probe is not None and unit.search is not None:
            unit.search.record(died=True)
            self._search(task, unit)
        else:
            self._suspect(task)

    def _suspect(self, task: Task) -> None:
        """A unit that killed a worker: alone at first, then looked into."""
        unit = self._known(task)
        if unit.attempts >= most_deaths(unit.rows):
            self._quarantine(task, f"killed its worker {unit.attempts} times")
        elif unit.attempts < self._retry.attempts:
            self._alone.append(task)
        else:
            unit.search = PoisonSearch(unit.rows)
            self._search(task, unit)

    def _search(self, task: Task, unit: _Unit) -> None:
        search = unit.search
        if search is None:
            return
        if unit.attempts >= most_deaths(unit.rows):
            unit.search = None
            self._quarantine(task, f"killed its worker {unit.attempts} times")
        elif search.probe is not None:
            self._alone.append(Task(task.place, probe=search.probe, poison=unit.poison))
        else:
            if search.found is not None:
                unit.poison |= {search.found}
                self._journal.append("poison", unit=task.place.unit, rows=unit.rows, row=search.found)
            unit.search = None
            self._alone.append(Task(task.place, poison=unit.poison))

    def _done(self, task: Task, result: Done) -> None:
        unit = self._units.get(task.place.unit)
        if result.receipt is not None:
            self._units.pop(task.place.unit, None)
            self._any_done |= task.quarantine is None
            self._on_receipt(result.receipt, result)
            while self._any_done and self._hopeless:
                self._quarantine(*self._hopeless.pop())
        elif unit is not None and unit.search is not None:
            unit.search.record(died=False)
            self._search(task, unit)

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
