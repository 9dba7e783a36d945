"""Mixtures: exact proportions at every step, streams that go on by themselves, resumable anywhere."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shards.conftest import Rows
from tokenshard.errors import SpecError
from tokenshard.loading.loader import TokenLoader
from tokenshard.loading.mixture import MixtureLoader
from tokenshard.loading.order import Shuffle
from tokenshard.shards.dataset import Dataset

Make = Callable[..., tuple[Dataset, list[Rows]]]
WEIGHTS = {"a": 0.5, "b": 0.3, "c": 0.2}


def streams(datasets: Make, rank: int = 0, world: int = 1, threads: int = 0, lanes: int = 3) -> dict[str, TokenLoader]:
    """Three streams of different grids and sizes."""
    made = {
        "a": datasets(300, 7, 193)[0],
        "b": datasets(200, varied=True)[0],
        "c": datasets(90, codecs=("pack", "context"))[0],
    }
    return {
        name: TokenLoader(dataset, 1, Shuffle(lanes, 2), 4, ["codes", "key"], rank=rank, world=world, threads=threads)
        for name, dataset in made.items()
    }


def keys(mixture: MixtureLoader, steps: int) -> list[dict[str, list[str]]]:
    batches = itertools.islice(mixture, steps)
    return [{name: part["key"] for name, part in batch.items()} for batch in batches]


@pytest.mark.parametrize("per", ["batch", "step"])
def test_shares_are_exact_to_one_sample_or_step_over_ten_thousand_steps(datasets: Make, per: Any) -> None:
    weights = {"a": 3.7, "b": 2.0, "c": 1.0, "d": 0.61, "e": 0.33}
    one = datasets(300, 7, 193)[0]
    mixture = MixtureLoader({name: TokenLoader(one) for name in weights}, weights, 97, per=per)
    shares = {name: Fraction(str(weight)) / Fraction("7.64") for name, weight in weights.items()}
    given: Counter[str] = Counter()
    unit = 97 if per == "step" else 1
    for number, quotas in zip(range(1, 10_001), mixture._steps(), strict=False):
        assert min(quotas.values()) >= 1
        given.update(quotas)
        assert given.total() == 97 * number
        for name, share in shares.items():
            assert abs(given[name] - 97 * number * share) < unit
    assert set(given) == set(weights)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    stop=st.integers(1, 40),
    before=st.integers(1, 5),
    after=st.integers(1, 5),
    per=st.sampled_from(["batch", "step"]),
    size=st.sampled_from([36, 40, 60]),
)
def test_a_mixture_goes_on_at_any_other_world_size(
    datasets: Make, stop: int, before: int, after: int, per: Any, size: int
) -> None:
    def mixtures(world: int, threads: int) -> list[MixtureLoader]:
        return [
            MixtureLoader(streams(datasets, rank, world, threads), WEIGHTS, global_batch_size=size, per=per)
            for rank in range(world)
        ]

    def joined(ranks: list[MixtureLoader], steps: int) -> list[dict[str, list[str]]]:
        parts = zip(*(keys(rank, steps) for rank in ranks), strict=True)
        return [{name: [key for part in step for key in part[name]] for name in step[0]} for step in parts]

    (alone,) = mixtures(1, 0)
    whole = keys(alone, stop + 10)
    first = mixtures(before, 1)
    start = joined(first, stop)
    states = [json.loads(json.dumps(rank.state_dict())) for rank in first]
    assert all(state == states[0] for state in states)
    second = mixtures(after, 0)
    for rank in second:
        rank.load_state_dict(states[0])
    assert start + joined(second, 10) == whole


def test_ranks_get_batches_of_equal_size(datasets: Make) -> None:
    ranks = [MixtureLoader(streams(datasets, rank, 4), WEIGHTS, 15) for rank in range(4)]
    for step in zip(*(keys(rank, 30) for rank in ranks), strict=True):
        assert [sum(map(len, part.values())) for part in step] == [15] * 4


def test_each_stream_goes_through_its_epochs_without_loss(datasets: Make) -> None:
    mixture = MixtureLoader(streams(datasets, lanes=1), WEIGHTS, 40)
    seen: dict[str, list[str]] = {name: [] for name in WEIGHTS}
    for batch in keys(mixture, 60):
        for name, found in batch.items():
            seen[name] += found
    for name, loader in streams(datasets, lanes=1).items():
        expected: list[str] = []
        while len(expected) < len(seen[name]):
            expected += [key for batch in loader for key in batch["key"]]
        assert seen[name] == expected[: len(seen[name])]
        assert len(seen[name]) > len(loader.dataset)


@pytest.mark.parametrize("per", ["batch", "step"])
def test_an_epoch_may_end_with_the_first_stream_that_runs_dry(datasets: Make, per: Any) -> None:
    mixture = MixtureLoader(streams(datasets), WEIGHTS, 20, per=per, end="stop")
    for _ in range(3):
        seen: Counter[str] = Counter()
        for batch in mixture:
            for part in batch.values():
                seen.update(part["key"])
        assert set(seen.values()) <= {1, 2, 3}  # keys are the same in all streams
        assert mixture.state_dict()["given"] == dict.fromkeys(WEIGHTS, 0)
    epochs = {name: state["epoch"] for name, state in mixture.state_dict()["streams"].items()}
    assert epochs == dict.fromkeys(WEIGHTS, 3)


def test_mixtures_that_cannot_be_are_refused(datasets: Make) -> None:
    loaders = streams(datasets)
    for options, message in (
        ({"weights": {"a": 1}}, "a weight for each of its streams: a, b, c"),
        ({"weights": {**WEIGHTS, "b": 0}}, "weight of 'b' must be a number above 0"),
        ({"weights": WEIGHTS, "per": "sample"}, "per must be one of batch, step"),
        ({"weights": {**WEIGHTS, "c": 0.01}, "batch_size": 8}, "stream 'c' may have less than a sample a rank"),
        ({"weights": WEIGHTS, "batch_size": 600}, "stream 'c' has fewer samples than the 120"),
    ):
        with pytest.raises(SpecError, match=message):
            MixtureLoader(loaders, **options)  # type: ignore[arg-type]
    state = MixtureLoader(loaders, WEIGHTS, 40).state_dict()
    with pytest.raises(SpecError, match="mixture state: weights"):
        MixtureLoader(loaders, {**WEIGHTS, "a": 1}, 40).load_state_dict(state)
    with pytest.raises(SpecError, match="mixture state: per"):
        MixtureLoader(loaders, WEIGHTS, 40, per="step").load_state_dict(state)
