"""Sequence mode: nothing lost or doubled, nearly full sequences, resumable inside a pool."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shards.conftest import Rows
from tokenshard.errors import SpecError
from tokenshard.loading.loader import TokenLoader
from tokenshard.loading.order import Shuffle
from tokenshard.loading.packing import pack
from tokenshard.loading.sequences import SequenceLoader
from tokenshard.shards.dataset import Dataset

Make = Callable[..., tuple[Dataset, list[Rows]]]
COUNTS = (300, 7, 193)
START, END, PAD = 0, 1, 2
OFFSET = 3
KINDS = [
    {"varied": True},
    {"codecs": ("context", "context"), "varied": True},
    {"rank": 1, "varied": True, "codecs": ("pack", "context")},
    {"codecs": ("pack", "context")},
]


def make(dataset: Dataset, length: int = 70, pool: int = 60, rank: int = 0, world: int = 1, **options: Any) -> Any:
    loader = TokenLoader(dataset, 1, Shuffle(3, 2), 4, rank=rank, world=world, threads=options.pop("threads", 0))
    frame = {"separator": END, "pad": PAD, "start": START, "offset": OFFSET}
    return SequenceLoader(loader, length, pool=pool, **{**frame, **options})


@given(st.lists(st.integers(1, 300), max_size=80), st.integers(1, 100), st.integers(0, 9))
def test_every_part_of_every_sample_lies_in_one_bin(lengths: list[int], capacity: int, seed: int) -> None:
    packed = pack(np.array(lengths, np.int64), capacity, np.random.default_rng(seed))
    parts = sorted(zip(packed.sample.tolist(), packed.start.tolist(), packed.length.tolist(), strict=True))
    places = [(sample, place) for sample, start, length in parts for place in range(start, start + length)]
    assert places == [(sample, place) for sample, length in enumerate(lengths) for place in range(length)]
    used = np.bincount(packed.bin, packed.length, packed.bins)
    assert packed.bins == 0 or (used.max() <= capacity and used.min() > 0)
    assert (np.diff(packed.bin) >= 0).all()
    whole = [sample for sample, length in enumerate(lengths) if length <= capacity]
    assert all(np.count_nonzero(packed.sample == sample) == 1 for sample in whole)


def test_sequences_are_full_to_97_percent_for_log_normal_lengths() -> None:
    draw = np.random.default_rng(0)
    lengths = np.clip(np.exp(draw.normal(6, 1, 20_000)), 1, None).astype(np.int64)
    for capacity in (2048, 4096):
        bins = sum(pack(part, capacity, draw).bins for part in np.split(lengths, range(4096, 20_000, 4096)))
        assert lengths.sum() / (bins * capacity) >= 0.97


@pytest.mark.parametrize("options", KINDS, ids=repr)
@pytest.mark.parametrize("length", [70, 9000])
def test_an_epoch_holds_every_sample_once(datasets: Make, options: dict[str, Any], length: int) -> None:
    dataset, written = datasets(*COUNTS, **options)
    expected: Counter[tuple[int, ...]] = Counter()
    for rows in written:
        for sample in rows.samples():
            levels = sample.astype(int) if len(rows.batch.ids) > 1 else sample[None].astype(int)
            shifted = [level.ravel() + OFFSET + 256 * number for number, level in enumerate(levels)]
            expected[(START, *np.concatenate(shifted).tolist(), END)] += 1
    loader = make(dataset, length)
    found: Counter[tuple[int, ...]] = Counter()
    whole: dict[int, list[int]] = {}
    batches = list(loader)
    assert all(batch["ids"].shape == (8, length) and batch["ids"].dtype == torch.int32 for batch in batches)
    assert loader.epoch == 1
    assert len(make(dataset, length)) == len(batches)
    cut = 0
    for ids, sample, position in ((row[n] for row in batch.values()) for batch in batches for n in range(8)):
        assert ids[sample < 0].tolist() == [PAD] * int((sample < 0).sum())
        for number in range(int(sample.max()) + 1):
            piece, places = ids[sample == number].tolist(), position[sample == number].tolist()
            assert places == list(range(places[0], places[0] + len(places)))
            if piece[0] == START and piece[-1] == END:
                found[tuple(piece)] += 1
            else:  # a part of a sample that is longer than a sequence
                cut += len(piece)
                whole.setdefault(len(whole), piece)
    missing = expected - found
    assert found - expected == Counter()
    assert cut == sum(len(sample) * count for sample, count in missing.items())
    assert Counter(itertools.chain(*whole.values())) == Counter(
        itertools.chain(*(sample for sample, count in missing.items() for _ in range(count)))
    )
    assert bool(missing) == (length == 70 and any(len(sample) > 70 for sample in expected))


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    stop=st.integers(1, 40),
    before=st.integers(1, 4),
    after=st.integers(1, 4),
    size=st.sampled_from([4, 9, 24]),
    pool=st.sampled_from([20, 77, 1000]),
)
def test_sequences_go_on_inside_a_pool_at_any_other_world_size(
    datasets: Make, stop: int, before: int, after: int, size: int, pool: int
) -> None:
    dataset, _ = datasets(*COUNTS, varied=True)

    def ranks(world: int, threads: int) -> list[SequenceLoader]:
        options = {"pool": pool, "world": world, "threads": threads, "global_batch_size": size}
        return [make(dataset, rank=rank, **options) for rank in range(world)]

    def sequences(loaders: list[SequenceLoader], batches: int) -> list[Any]:
        streams = [itertools.chain.from_iterable(itertools.repeat(loader)) for loader in loaders]
        steps = itertools.islice(zip(*streams, strict=True), batches)
        return [torch.cat([part["ids"] for part in step]).tolist() for step in steps]

    whole = sequences(ranks(1, 0), stop + 8)
    first = ranks(before, 1)
    start = sequences(first, stop)
    states = [json.loads(json.dumps(loader.state_dict())) for loader in first]
    assert all(state == states[0] for state in states)
    second = ranks(after, 0)
    for loader in second:
        loader.load_state_dict(states[0])
    assert start + sequences(second, 8) == whole


def test_values_that_do_not_fit_are_refused(datasets: Make) -> None:
    dataset, _ = datasets(*COUNTS, varied=True)
    for options, message in (
        ({"length": 2}, "no room for a sample"),
        ({"separator": 3}, "separator=3 is no id of its own: the codes are 3 to 258"),
        ({"pad": -1}, "pad=-1 is no id of its own"),
        ({"pool": 0}, "a pool needs a sample"),
        ({"offset": 2**31 - 2}, "more than 31 bits"),
    ):
        with pytest.raises(SpecError, match=message):
            make(dataset, **options)
    state = make(dataset).state_dict()
    for options, field in (({"length": 80}, "length"), ({"pool": 9}, "pool_size"), ({"start": None}, "frame")):
        with pytest.raises(SpecError, match=f"sequence state: {field} is"):
            make(dataset, **options).load_state_dict(state)
    with pytest.raises(SpecError, match="damage='replace'"):
        SequenceLoader(TokenLoader(dataset, damage="replace"), 70, separator=1000, pad=1001)
