"""Batches of real shards: right, complete, in the same order for everyone, resumable anywhere."""

from __future__ import annotations

import itertools
import json
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shards.conftest import Rows
from tokenshard.errors import FormatError, SpecError
from tokenshard.loading.loader import TokenLoader
from tokenshard.loading.order import Shuffle
from tokenshard.shards.dataset import Dataset, open_dataset

Make = Callable[..., tuple[Dataset, list[Rows]]]
COUNTS = (300, 7, 500, 193)
KINDS = [
    {},
    {"codecs": ("context",)},
    {"codecs": ("zstd",)},
    {"codecs": ("context",), "group": 16, "side": 4},
    {"codecs": ("pack", "context", "zstd")},
    {"codecs": ("context", "context"), "varied": True},
    {"varied": True},
    {"rank": 1, "varied": True, "codecs": ("pack", "context")},
    {"rank": 3, "codecs": ("context",)},
    {"alphabet": 100_000},
]


def everything(loader: TokenLoader) -> list[dict[str, Any]]:
    """All rows of all batches of the epoch, one dict each, with `codes` as an array of the sample's own shape."""
    return [row for batch in loader for row in unbatched(batch, loader)]


def unbatched(batch: dict[str, Any], loader: TokenLoader) -> list[dict[str, Any]]:
    names = [name for name in batch if name not in ("codes", "grid", "offsets")]
    rows = [{name: batch[name][n] for name in names} for n in range(len(batch[names[0]]))]
    for n, row in enumerate(rows):
        if "offsets" in batch:
            first, last = batch["offsets"][n], batch["offsets"][n + 1]
            codes, grid = batch["codes"][..., first:last], batch["grid"][n].tolist()
            row["codes"] = codes.reshape(*codes.shape[:-1], *grid).numpy()
        elif "codes" in batch:
            row["codes"] = batch["codes"][n].numpy()
    return rows


@pytest.mark.parametrize("options", KINDS, ids=repr)
@pytest.mark.parametrize("shuffle", [False, Shuffle(5, 3)])
def test_an_epoch_is_the_dataset(datasets: Make, options: dict[str, Any], shuffle: bool | Shuffle) -> None:
    dataset, written = datasets(*COUNTS, **options)
    loader = TokenLoader(dataset, 50, shuffle, columns=["codes", "key", "label", "caption", "tags"])
    expected = {
        key: (codes, *values)
        for rows in written
        for key, codes, *values in zip(
            rows.batch.keys,
            rows.samples(),
            *(rows.batch.columns[name].to_pylist() for name in ("label", "caption", "tags")),
            strict=True,
        )
    }
    found = everything(loader)
    assert [row["key"] for row in found if shuffle is False] == (list(expected) if shuffle is False else [])
    assert len(found) == len(expected) == len(loader.dataset)
    for row in found:
        codes, *values = expected.pop(row["key"])
        assert row["codes"].dtype == codes.dtype
        assert np.array_equal(row["codes"], codes)
        assert [row["label"].item(), row["caption"], row["tags"]] == values
    assert loader.epoch == 1


def test_batches_are_contiguous_tensors_of_the_narrow_dtype(datasets: Make) -> None:
    dataset, _ = datasets(*COUNTS)
    batch = next(iter(TokenLoader(dataset, 32, columns=["codes", "label"])))
    assert batch["codes"].dtype == torch.uint16
    assert batch["codes"].shape == (32, 8, 8)
    assert batch["codes"].is_contiguous()
    assert batch["label"].dtype == torch.int64
    wide, _ = datasets(*COUNTS, alphabet=100_000)
    assert next(iter(TokenLoader(wide, 32)))["codes"].dtype == torch.int32


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.integers(1, 120),
    world=st.integers(1, 8),
    threads=st.integers(0, 3),
    memory=st.sampled_from([1, 20_000, 1 << 28]),
    shuffle=st.sampled_from([None, Shuffle(1, 4), Shuffle(4, 1), Shuffle(6, 2)]),
    remainder=st.sampled_from(["short", "drop", "pad", "spill"]),
    epoch=st.integers(0, 2),
)
def test_ranks_threads_and_memory_change_nothing(
    datasets: Make, size: int, world: int, threads: int, memory: int, shuffle: Any, remainder: Any, epoch: int
) -> None:
    dataset, _ = datasets(*COUNTS)
    size = max(size, world)
    options = {"shuffle": shuffle or False, "seed": 3, "columns": ["key"], "global_batch_size": size}
    options |= {"remainder": remainder}
    alone = TokenLoader(dataset, rank=0, world=1, threads=0, **options)
    ranks = [
        TokenLoader(dataset, rank=rank, world=world, threads=threads, prefetch_bytes=memory, **options)
        for rank in range(world)
    ]
    for loader in (alone, *ranks):
        loader.set_epoch(epoch)
    steps = list(zip(*ranks, strict=True))
    whole = list(alone)
    assert len(steps) == len(whole)
    for batch, parts in zip(whole, steps, strict=True):
        assert batch["key"] == [key for part in parts for key in part["key"]]
    keys = [key for batch in whole for key in batch["key"]]
    lengths = {
        "short": len(dataset),
        "drop": len(dataset) // size * size,
        "pad": -(-len(dataset) // size) * size,
        "spill": len(keys),
    }
    assert len(keys) == lengths[remainder]
    if remainder == "short":
        assert len(set(keys)) == len(keys)
    if remainder == "pad":
        valid = [flag for batch in whole for flag in batch["valid"].tolist()]
        once = [key for key, flag in zip(keys, valid, strict=True) if flag]
        assert sorted(once) == sorted(dataset.table(["key"])["key"].to_pylist())
    assert {loader.epoch for loader in (alone, *ranks)} == {epoch + 1}


@pytest.mark.parametrize("remainder", ["short", "drop", "pad"])
def test_a_plan_says_which_rank_gets_which_sample(datasets: Make, remainder: Any) -> None:
    dataset, _ = datasets(*COUNTS)
    options = {"shuffle": Shuffle(4, 2), "columns": ["key"], "remainder": remainder, "global_batch_size": 48}
    ranks = [TokenLoader(dataset, rank=rank, world=3, **options) for rank in range(3)]
    for loader in ranks:
        loader.set_epoch(2)
    plan = ranks[1].plan(2, range(len(ranks[0])))
    keys = np.array(dataset.table(["key"])["key"].to_pylist())[plan["sample"].to_numpy()]
    step, rank = plan["step"].to_numpy(), plan["rank"].to_numpy()
    for number, parts in enumerate(zip(*ranks, strict=True)):
        for place, part in enumerate(parts):
            valid = part["valid"].tolist() if remainder == "pad" else [True] * len(part["key"])
            given = [key for key, flag in zip(part["key"], valid, strict=True) if flag]
            assert keys[(step == number) & (rank == place)].tolist() == given
    with pytest.raises(SpecError, match="epoch 0 has no step 99"):
        ranks[0].plan(0, [99])


def test_spilled_epochs_follow_each_other_without_a_gap(datasets: Make) -> None:
    dataset, _ = datasets(*COUNTS)
    loader = TokenLoader(dataset, 64, Shuffle(4, 2), columns=["key"], remainder="spill")
    seen: Counter[str] = Counter()
    for epoch in range(1, 5):
        batches = len(loader)
        keys = [batch["key"] for batch in loader]
        assert [len(batch) for batch in keys] == [64] * batches
        seen.update(itertools.chain.from_iterable(keys))
        assert len(seen) == len(dataset)
        assert {count - epoch for count in seen.values()} <= {0, 1}
        assert seen.total() - epoch * len(dataset) == loader.position < 64


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    stop=st.integers(1, 40),
    before=st.integers(1, 6),
    after=st.integers(1, 6),
    size=st.integers(6, 60),
    remainder=st.sampled_from(["short", "drop", "spill"]),
)
def test_a_state_goes_on_at_any_other_world_size(
    datasets: Make, stop: int, before: int, after: int, size: int, remainder: Any
) -> None:
    dataset, _ = datasets(*COUNTS)
    options = {"shuffle": True, "seed": 9, "columns": ["key"], "global_batch_size": size, "remainder": remainder}
    options |= {"prefetch_bytes": 40_000}

    def keys(loaders: list[TokenLoader], batches: int) -> list[str]:
        streams = [itertools.chain.from_iterable(itertools.repeat(loader)) for loader in loaders]
        steps = itertools.islice(zip(*streams, strict=True), batches)
        return [key for step in steps for batch in step for key in batch["key"]]

    whole = keys([TokenLoader(dataset, rank=0, world=1, threads=0, **options)], stop + 20)
    first = [TokenLoader(dataset, rank=rank, world=before, **options) for rank in range(before)]
    start = keys(first, stop)
    states = [json.loads(json.dumps(loader.state_dict())) for loader in first]
    assert all(state == states[0] for state in states)
    assert len(json.dumps(states[0])) <= 200
    options["prefetch_bytes"] = 1 << 28
    second = [TokenLoader(dataset, rank=rank, world=after, **options) for rank in range(after)]
    for loader in second:
        loader.load_state_dict(states[0])
    assert start + keys(second, 20) == whole


def test_a_state_of_something_else_is_refused_by_field(datasets: Make) -> None:
    dataset, _ = datasets(*COUNTS)
    other, _ = datasets(100)
    state = TokenLoader(dataset, shuffle=True, seed=1).state_dict()
    for loader, field in (
        (TokenLoader(other, shuffle=True, seed=1), "dataset"),
        (TokenLoader(dataset, shuffle=True, seed=2), "seed"),
        (TokenLoader(dataset, seed=1), "shuffle"),
    ):
        with pytest.raises(SpecError, match=f"loader state: {field} is"):
            loader.load_state_dict(state)
    with pytest.raises(SpecError, match="position 99999 does not lie"):
        TokenLoader(dataset, shuffle=True, seed=1).load_state_dict({**state, "position": 99999})


def test_fewer_levels_read_fewer_bytes(datasets: Make) -> None:
    dataset, written = datasets(*COUNTS, codecs=("pack", "context", "zstd"))
    batch = next(iter(TokenLoader(dataset, 10, levels=1)))
    assert np.array_equal(batch["codes"].numpy(), [sample[0] for sample in written[0].samples()[:10]])


def test_a_damaged_row_group_is_named_or_replaced(datasets: Make, tmp_path: Path) -> None:
    whole, _ = datasets(*COUNTS)
    shutil.copytree(whole.store.root, tmp_path / "set")
    hurt = whole.manifest.shards[2]
    path = tmp_path / "set" / hurt.path
    data = bytearray(path.read_bytes())
    data[hurt.row_groups[3].codes[0].offset + 5] ^= 1
    path.write_bytes(data)
    dataset = open_dataset(tmp_path / "set")
    options: dict[str, Any] = {"shuffle": Shuffle(4, 2), "seed": 2, "columns": ["codes", "key"]}
    with pytest.raises(FormatError, match=r"000002.parquet: row group 3 \(rows 192 to 255\): codes damaged"):
        list(TokenLoader(dataset, 40, **options))
    loader = TokenLoader(dataset, 40, damage="replace", **options)
    lost = 0
    for batch, sound in zip(loader, TokenLoader(whole, 40, **options), strict=True):
        valid = batch["valid"].numpy()
        lost += (~valid).sum()
        assert [key for key, flag in zip(sound["key"], valid, strict=True) if flag] == [
            key for key, flag in zip(batch["key"], valid, strict=True) if flag
        ]
        assert batch["codes"].numpy()[valid].tolist() == sound["codes"].numpy()[valid].tolist()
    assert lost == 64
    assert ["row group 3" in message for message in loader.damaged.values()] == [True]


def test_a_dataset_that_fits_in_memory_is_read_once(datasets: Make, tmp_path: Path) -> None:
    whole, written = datasets(*COUNTS)
    shutil.copytree(whole.store.root, tmp_path / "set")
    loader = TokenLoader(open_dataset(tmp_path / "set"), 64, True, 3, ["codes", "key", "caption"], threads=2)
    first = {row["key"]: row for row in everything(loader)}
    shutil.rmtree(tmp_path / "set" / "data")
    second = everything(loader)
    assert [row["key"] for row in second] != list(first)
    assert len(second) == sum(len(rows.samples()) for rows in written)
    for row in second:
        np.testing.assert_array_equal(row["codes"], first[row["key"]]["codes"])
        assert row["caption"] == first[row["key"]]["caption"]


@pytest.mark.parametrize(("verify", "found"), [("always", [1, 1]), ("first", [1, 0]), ("never", [0, 0])])
def test_checksums_are_compared_as_often_as_asked(
    datasets: Make, tmp_path: Path, verify: Any, found: list[int]
) -> None:
    """Damage in the first epoch, or after it, that no decoder can see."""
    whole, _ = datasets(*COUNTS)
    hurt = whole.manifest.shards[2]
    for epoch, seen in enumerate(found):
        folder = tmp_path / str(epoch)
        shutil.copytree(whole.store.root, folder)
        loader = TokenLoader(open_dataset(folder), 64, verify=verify, damage="replace", prefetch_bytes=1)
        for _ in range(epoch):
            assert len(everything(loader)) == len(whole)
        path = folder / hurt.path
        data = bytearray(path.read_bytes())
        data[hurt.row_groups[3].codes[0].offset + 5] ^= 1
        path.write_bytes(data)
        assert len(everything(loader)) == len(whole)
        assert len(loader.damaged) == seen


def test_breaking_off_leaves_no_thread_behind(datasets: Make) -> None:
    dataset, _ = datasets(*COUNTS)
    before = threading.active_count()
    for _ in range(5):
        loader = TokenLoader(dataset, 16, True, threads=2)
        iterator = iter(loader)
        next(iterator)
        del iterator
    assert threading.active_count() == before
    assert loader.position == 16


def test_options_that_do_not_fit_are_refused(datasets: Make) -> None:
    dataset, _ = datasets(*COUNTS)
    for options, message in (
        ({"columns": ["colour"]}, "no column 'colour'; there are key"),
        ({"drop_last": True, "remainder": "pad"}, "contradict"),
        ({"remainder": "lose"}, "remainder must be one of short, drop, pad, spill"),
        ({"rank": 2, "world": 2}, "rank 2 does not lie in a world of 2"),
        ({"global_batch_size": 2, "rank": 0, "world": 3}, "too small for 3 ranks"),
        ({"levels": 2}, "levels must be from 1 to 1"),
        ({"threads": -1}, "threads must be"),
    ):
        with pytest.raises(SpecError, match=message):
            TokenLoader(dataset, **options)  # type: ignore[arg-type]
