"""The scheduler's rules, tried on workers that live in memory and follow a script, on a clock of their own."""

from __future__ import annotations

import uuid
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.simulated import ATTEMPTS, NEVER, InMemory, Job, Unit
from tokenshard.engine.scheduler import IN_FLIGHT, SETUP_DEATHS, SETUP_FAILURES, Interrupted
from tokenshard.engine.task import Died, Ready, SetupFailed, Task
from tokenshard.errors import JobError


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


# -- nothing fails ----------------------------------------------------------------------------------------------------


def test_every_unit_is_run_once_and_the_workers_share_them(job: Job) -> None:
    executor = InMemory([Unit()] * 10)
    job.run(executor)
    assert job.rejected() == dict.fromkeys(range(10), 0)
    assert Counter(run.worker for run in executor.runs) == {1: 5, 2: 5}
    assert job.events() == []


def test_a_busy_worker_has_the_next_unit_queued_and_no_more(job: Job) -> None:
    executor = InMemory([Unit()] * 8, size=1)
    job.run(executor)
    assert [run.behind for run in executor.runs] == [1] * 7 + [0]


# -- workers die ------------------------------------------------------------------------------------------------------


def test_a_death_is_blamed_on_the_running_unit_alone(job: Job) -> None:
    executor = InMemory([Unit(deaths=1)] + [Unit()] * 5, size=1)
    job.run(executor)
    assert executor.runs[0].behind == 1
    assert job.events() == [("death", 0)]
    assert job.rejected() == dict.fromkeys(range(6), 0)


def test_a_blamed_unit_runs_again_with_nothing_queued_behind_it(job: Job) -> None:
    executor = InMemory([Unit(deaths=2)] + [Unit()] * 20)
    job.run(executor)
    blamed = [run for run in executor.runs if run.task.place.unit == 0]
    assert [run.died for run in blamed] == [True, True, False]
    assert [run.behind for run in blamed[1:]] == [0, 0]


def test_a_blamed_unit_does_not_wait_for_the_end_of_the_job(job: Job) -> None:
    executor = InMemory([Unit(deaths=1, errors=1)] + [Unit()] * 40)
    job.run(executor)
    assert [run.start < executor.now / 2 for run in executor.runs if run.task.place.unit == 0] == [True] * 3


def test_a_blamed_unit_stays_alone_after_an_exception_and_a_preemption(job: Job) -> None:
    executor = InMemory([Unit(deaths=1, errors=1)] + [Unit()] * 40, kills=[(7.5, True)])
    job.run(executor)
    assert job.events() == [("death", 0), ("error", 0)]
    assert [run.behind for run in executor.runs if run.task.place.unit == 0][1:] == [0, 0]


def test_blameless_deaths_cost_nothing(job: Job) -> None:
    executor = InMemory([Unit(seconds=4)] * 6, kills=[(3.0 * n, True) for n in range(1, 9)])
    job.run(executor)
    assert sum(run.died for run in executor.runs) == 8
    assert job.events() == []
    assert job.rejected() == dict.fromkeys(range(6), 0)


def test_a_unit_that_hangs_loses_its_worker_and_is_run_again(job: Job) -> None:
    executor = InMemory([Unit(), Unit(hangs=1), Unit()], size=1)
    job.run(executor, unit_timeout=30)
    assert job.events() == [("death", 1)]
    assert job.rejected() == {0: 0, 1: 0, 2: 0}
    assert executor.now < 40


@pytest.mark.parametrize("poison", [{0}, {7}, {15}, {2, 9}, {1, 2, 3}])
def test_inputs_that_kill_are_found_and_left_out(job: Job, poison: set[int]) -> None:
    executor = InMemory([Unit(), Unit(rows=16, poison=frozenset(poison)), Unit()])
    job.run(executor)
    assert job.rejected() == {0: 0, 1: len(poison), 2: 0}
    tasks = executor.tasks_of(1)
    assert tasks[-1] == Task(tasks[-1].place, poison=dict.fromkeys(poison, "WorkerDied"))
    assert [task.probe for task in tasks[: ATTEMPTS + 1]] == [None] * ATTEMPTS + [(0, 8)]
    assert all(run.behind == 0 for run in executor.runs if run.task.probe)


def test_a_unit_of_nothing_but_poison_is_quarantined_after_bounded_deaths(job: Job) -> None:
    executor = InMemory([Unit(rows=64, poison=frozenset(range(64))), Unit()])
    job.run(executor)
    assert job.rejected() == {0: 64, 1: 0}
    assert "killed its worker" in (executor.tasks_of(0)[-1].quarantine or "")
    assert job.events()[-1] == ("quarantine", 0)
    assert sum(run.died for run in executor.runs) <= 40


def test_a_unit_that_a_node_has_no_room_for_is_run_on_another(job: Job) -> None:
    tight = [Unit(rows=16, deadly_on="small") for _ in range(6)]
    job.run(InMemory([*tight, *[Unit()] * 20], size=4, nodes=["small", "large"]))
    assert job.rejected() == dict.fromkeys(range(26), 0)
    deaths = Counter(event for event in job.events())
    assert all(count == 1 for count in deaths.values()), "each finds the other node at once"
    assert {event for event, _ in deaths} == {"death"}


# -- units raise ------------------------------------------------------------------------------------------------------


def test_an_exception_is_retried_with_a_growing_delay(job: Job) -> None:
    executor = InMemory([Unit(), Unit(errors=2)])
    job.run(executor)
    first, second, third = (run.start for run in executor.runs if run.task.place.unit == 1)
    assert third - second > second - first > 1
    assert job.events() == [("error", 1)] * 2
    assert job.rejected() == {0: 0, 1: 0}


def test_a_unit_that_always_raises_is_quarantined_with_the_reason(job: Job) -> None:
    executor = InMemory([Unit(), Unit(errors=99), Unit()])
    job.run(executor)
    assert job.rejected() == {0: 0, 1: 4, 2: 0}
    last = executor.tasks_of(1)[-1]
    assert last.quarantine == "failed 3 times, last with ValueError: codes out of range"
    assert len(executor.tasks_of(1)) == ATTEMPTS + 1


def test_a_job_in_which_every_unit_raises_fails_with_the_cause(job: Job) -> None:
    executor = InMemory([Unit(errors=99)] * 50)
    with pytest.raises(JobError, match=r"no unit could be converted.*failed 3 times.*ValueError: codes out of range"):
        job.run(executor)
    assert job.receipts == []
    assert len(executor.runs) < 40


def test_a_single_unit_that_raises_fails_the_job(job: Job) -> None:
    with pytest.raises(JobError, match="no unit could be converted"):
        job.run(InMemory([Unit(errors=99)]))


def test_a_unit_that_raises_before_the_first_slow_one_is_done_does_not_fail_the_job(job: Job) -> None:
    job.run(InMemory([Unit(errors=99), Unit(seconds=60), Unit(seconds=60)]))
    assert job.rejected() == {0: 4, 1: 0, 2: 0}


def test_a_unit_that_raises_is_quarantined_where_an_earlier_run_did_others(job: Job) -> None:
    job.run(InMemory([Unit(errors=99)]), any_done=True)
    assert job.rejected() == {0: 4}


def test_a_failure_of_the_storage_ends_the_job_at_once(job: Job) -> None:
    executor = InMemory([Unit(), Unit(errors=1, fatal=True)] + [Unit()] * 8, size=1)
    with pytest.raises(JobError, match="codes out of range"):
        job.run(executor)
    assert [run.task.place.unit for run in executor.runs] == [0, 1]
    assert job.rejected() == {0: 0}


def test_a_quarantined_unit_whose_worker_is_killed_is_quarantined_all_the_same(job: Job) -> None:
    executor = InMemory([Unit(), Unit(errors=99, deaths=2, seconds=10)], size=1, kills=[(60, False)])
    job.run(executor)
    killed, last = (run for run in executor.runs if run.task.quarantine is not None)
    assert (killed.died, last.died) == (True, False)
    assert executor.runs[-2:] == [killed, last], "its inputs are left alone from then on"
    assert job.rejected() == {0: 0, 1: 4}


# -- workers cannot be set up -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fate", "reason"), [(SetupFailed, "no module named codebook"), (Died, "killed by SIGKILL")])
def test_set_ups_that_fail_in_a_row_fail_the_job(job: Job, fate: type[SetupFailed | Died], reason: str) -> None:
    executor = InMemory([Unit()] * 4, setups=[fate] * 100)
    with pytest.raises(JobError, match=f"no worker could be set up.*{reason}"):
        job.run(executor)
    assert executor.now < 10


def test_set_ups_that_fail_now_and_then_do_not(job: Job) -> None:
    fates = [*[SetupFailed] * (SETUP_FAILURES - 1), *[Died] * (SETUP_DEATHS - 1), Ready] * 5
    executor = InMemory([Unit()] * 20, size=1, setups=fates, kills=[(4.5 + 4 * n, True) for n in range(5)])
    job.run(executor)
    assert job.rejected() == dict.fromkeys(range(20), 0)


def test_a_node_where_no_worker_can_be_set_up_does_not_end_the_job(job: Job) -> None:
    executor = InMemory([Unit(seconds=5)] * 40, setups=[Ready, *[Died, SetupFailed] * 100])
    job.run(executor)
    assert job.rejected() == dict.fromkeys(range(40), 0)
    assert executor.started < 20, "tried less and less often"


def test_workers_that_die_at_once_do_not_end_the_job_while_others_still_start(job: Job) -> None:
    executor = InMemory([Unit()] * 40, size=3, setups=[Ready, Ready, *[Died] * 100], starts=[90, 100, *[0.1] * 100])
    job.run(executor)
    assert job.rejected() == dict.fromkeys(range(40), 0)
    assert executor.started < 3 + SETUP_DEATHS


def test_preemption_during_the_set_up_costs_nothing(job: Job) -> None:
    job.run(InMemory([Unit()] * 4, setups=[None] * 20))
    assert job.rejected() == dict.fromkeys(range(4), 0)


# -- the driver ends, and starts again --------------------------------------------------------------------------------


def test_an_interrupted_job_finishes_what_its_workers_hold_and_starts_nothing(job: Job) -> None:
    executor = InMemory([Unit(seconds=10)] * 20)
    with pytest.raises(Interrupted) as raised:
        job.run(executor, stopping=lambda: executor.now > 5)
    assert raised.value.exit_code == 130
    assert sorted(job.rejected()) == [0, 1, 2, 3]
    assert len(executor.runs) == 2 * IN_FLIGHT


def test_an_interrupted_job_does_not_wait_for_ever(job: Job) -> None:
    executor = InMemory([Unit(seconds=NEVER)] * 4)
    with pytest.raises(Interrupted):
        job.run(executor, stopping=lambda: executor.now > 5, drain_seconds=60)
    assert 60 < executor.now < 70


def test_attempts_survive_the_driver(job: Job) -> None:
    poisoned = [Unit(rows=16, poison=frozenset({3}), seconds=5), Unit(seconds=NEVER)]
    first = InMemory(poisoned, size=3)
    with pytest.raises(Interrupted):
        job.run(first, stopping=lambda: len(job.events()) == ATTEMPTS - 1, drain_seconds=0)
    assert sum(run.died for run in first.runs) == ATTEMPTS - 1
    second = InMemory([poisoned[0], Unit(), Unit()])
    job.run(second)
    tasks, runs = second.tasks_of(0), [run for run in second.runs if run.task.place.unit == 0]
    assert [task.probe for task in tasks[:2]] == [None, (0, 8)], "one more death, and the search begins"
    assert runs[0].behind == 0
    assert job.rejected() == {0: 1, 1: 0, 2: 0}


def test_a_search_goes_on_where_the_driver_left_it(job: Job) -> None:
    poisoned = [Unit(rows=16, poison=frozenset({12}), seconds=5), Unit(seconds=NEVER)]
    first = InMemory(poisoned, size=3)
    with pytest.raises(Interrupted):
        job.run(first, stopping=lambda: ("survived", 0) in job.events(), drain_seconds=0)
    assert [task.probe for task in first.tasks_of(0)] == [None] * ATTEMPTS + [(0, 8)]
    second = InMemory([poisoned[0], Unit()])
    job.run(second)
    assert [task.probe for task in second.tasks_of(0)] == [(8, 12), (12, 14), (12, 13), (12, 13), None]
    assert job.rejected() == {0: 1, 1: 0}


def test_inputs_found_to_kill_stay_left_out_in_the_next_run(job: Job) -> None:
    poisoned = [Unit(rows=16, poison=frozenset({3}), seconds=5), Unit(seconds=NEVER)]
    with pytest.raises(Interrupted):
        job.run(InMemory(poisoned, size=3), stopping=lambda: ("poison", 0) in job.events(), drain_seconds=0)
    second = InMemory([poisoned[0], Unit()])
    job.run(second)
    assert second.tasks_of(0) == [Task(second.tasks_of(0)[0].place, poison={3: "WorkerDied"})], "no second search"
    assert job.rejected() == {0: 1, 1: 0}


# -- whatever happens -------------------------------------------------------------------------------------------------

UNITS = st.builds(
    Unit,
    rows=st.integers(1, 9),
    seconds=st.sampled_from([0.1, 1.0, 20.0]),
    poison=st.frozensets(st.integers(0, 8), max_size=3),
    deaths=st.sampled_from([0, 0, 0, 1, 2, 5, 99]),
    hangs=st.sampled_from([0, 0, 0, 1]),
    errors=st.sampled_from([0, 0, 0, 1, 2, 99]),
)
CLEAN = st.builds(Unit, rows=st.integers(1, 9), seconds=st.sampled_from([0.1, 1.0, 20.0]))


@settings(max_examples=40)
@given(
    units=st.lists(CLEAN | UNITS, min_size=1, max_size=12),
    size=st.integers(1, 4),
    kills=st.lists(st.tuples(st.floats(0, 200), st.just(True)), max_size=10),
    blamed=st.lists(st.tuples(st.floats(0, 200), st.just(False)), max_size=ATTEMPTS - 1),
    setups=st.lists(st.sampled_from([Ready, SetupFailed, Died, None]), max_size=12),
)
def test_every_unit_ends_once_and_clean_ones_lose_nothing_or_the_job_says_why(
    units: list[Unit],
    size: int,
    kills: list[tuple[float, bool]],
    blamed: list[tuple[float, bool]],
    setups: list[type[Ready] | type[SetupFailed] | type[Died] | None],
) -> None:
    job = Job(f"memory://{uuid.uuid4().hex}")
    failure = ""
    try:
        job.run(InMemory(units, size, setups, kills=[*kills, *blamed]), unit_timeout=60)
    except JobError as error:
        failure = str(error)
    if failure:
        assert failure.startswith(("no unit could be converted", "no worker could be set up"))
        return
    rejected = job.rejected()
    assert list(rejected) == list(range(len(units)))
    assert all(rejected[number] == 0 for number, unit in enumerate(units) if unit.clean)
    assert all(receipt.rows + receipt.rejected == units[receipt.unit].rows for receipt in job.receipts)
