"""Deleted samples are in the files, and nowhere else: no reader gives them out, and compaction takes them out."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference_reader import read_dataset
from shards.conftest import Rows
from tokenshard.engine.delete import compact, delete
from tokenshard.errors import FormatError, SpecError
from tokenshard.loading.loader import TokenLoader
from tokenshard.shards import manifest as manifests
from tokenshard.shards.dataset import Dataset, open_dataset
from tokenshard.shards.deleted import runs_of
from tokenshard.shards.manifest import commit_manifest, read_manifest
from tokenshard.shards.verify import verify
from tokenshard.sources.codes.dataset import DatasetSource
from tokenshard.spec.codes import DatasetSourceSpec
from tokenshard.store import Store

Make = Callable[..., Any]
KINDS: dict[str, dict[str, Any]] = {
    "pack": {"codecs": ("pack",)},
    "lists": {"codecs": ("zstd",)},
    "shared streams": {"codecs": ("context",), "group": 16, "side": 4},
    "ragged": {"codecs": ("pack",), "rank": 1, "varied": True, "stream": 5},
    "levels": {"codecs": ("pack", "context", "zstd")},
}


def of(make_dataset: Make, make_rows: Make, **kind: Any) -> tuple[Store, list[Rows]]:
    shards = [make_rows(count, first=1000 * number, **kind) for number, count in enumerate((90, 40))]
    return make_dataset(*shards, row_group_bytes=1), shards


def chosen(shards: list[Rows]) -> list[str]:
    """A run at the start, one in the middle, a row alone, and the last row."""
    keys = [key for rows in shards for key in rows.batch.keys]
    return [*keys[:3], *keys[60:67], keys[95], keys[-1]]


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_readers_see_what_is_left_before_and_after_compaction(
    make_dataset: Make, make_rows: Make, kind: dict[str, Any]
) -> None:
    store, shards = of(make_dataset, make_rows, **kind)
    gone = chosen(shards)
    left = [
        (key, codes)
        for rows in shards
        for key, codes in zip(rows.batch.keys, rows.samples(), strict=True)
        if key not in gone
    ]
    assert delete(store, gone).samples == len(gone)
    assert read_manifest(store).min_reader == 2
    for version in (2, 3):
        if version == 3:
            done = compact(store)
            assert (done.version, done.samples) == (3, len(gone))
            assert done.bytes_after < done.bytes_before
        dataset = open_dataset(store.root)
        assert len(dataset) == len(left)
        assert dataset.table(["key"])["key"].to_pylist() == [key for key, _ in left]
        for ours, (_, codes) in zip(dataset.codes(range(len(dataset))), left, strict=True):
            np.testing.assert_array_equal(ours, codes)
        for number in (0, 57, len(left) - 1):
            assert dataset[number]["key"] == left[number][0]
            np.testing.assert_array_equal(dataset[number]["codes"], left[number][1])
            assert dataset.index(left[number][0]) == number
        with pytest.raises(KeyError):
            dataset.index(gone[4])
        loader = TokenLoader(dataset, batch_size=16, shuffle=True, columns=["key"], drop_last=False)
        assert sorted(key for batch in loader for key in batch["key"]) == sorted(key for key, _ in left)
        planned = DatasetSource(DatasetSourceSpec(path=store.root), store).plan()
        assert [key for batch in planned for key in batch["key"].to_pylist()] == [key for key, _ in left]
        _, samples = read_dataset(Path(store.root))
        assert [sample.key for sample in samples] == [key for key, _ in left]
        report = verify(store, deep=True)
        assert report.ok, report.errors
    assert read_manifest(store).min_reader == 1
    assert compact(store).version is None


def test_predicates_look_at_what_is_left(make_dataset: Make, make_rows: Make) -> None:
    store, shards = of(make_dataset, make_rows)
    labels = np.concatenate([rows.batch.columns["label"].to_numpy() for rows in shards])
    assert delete(store, where="label == 3").samples == int((labels == 3).sum())
    assert delete(store, where="label == 3").version is None
    dataset = open_dataset(store.root)
    assert 3 not in dataset.table(["label"])["label"].to_pylist()
    splits = dataset.table(["split"])["split"].to_pylist()
    loader = TokenLoader(dataset, batch_size=4, where="split == 'test'", columns=["key"], drop_last=False)
    assert sum(len(batch["key"]) for batch in loader) == splits.count("test")


def test_a_shard_of_which_nothing_is_left_goes_with_compaction(make_dataset: Make, make_rows: Make) -> None:
    store, shards = of(make_dataset, make_rows)
    delete(store, shards[0].batch.keys)
    assert open_dataset(store.root).table(["key"])["key"].to_pylist() == shards[1].batch.keys
    compact(store, drop_history=True)
    manifest = read_manifest(store)
    assert [shard.rows for shard in manifest.shards] == [40]
    assert [entry.name for entry in store.list("data")] == [manifest.shards[0].path]
    assert verify(store).ok


def test_long_shard_lists_hold_deleted_rows(
    make_dataset: Make, make_rows: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifests.commit_manifest, "__defaults__", (1,))
    store, shards = of(make_dataset, make_rows)
    delete(store, shards[1].batch.keys[:2])
    manifest = read_manifest(store)
    assert manifest.shards_file is not None
    assert [shard.deleted for shard in manifest.shards] == [(), ((0, 2),)]
    assert len(read_dataset(Path(store.root))[1]) == 128


def test_deletions_at_the_same_time_all_take_place(make_dataset: Make, make_rows: Make) -> None:
    store, shards = of(make_dataset, make_rows)
    keys, seen = shards[0].batch.keys[:8], set[int]()
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            dataset = open_dataset(store.root)
            assert len(dataset.table(["key"])) == len(dataset)
            seen.add(len(dataset))

    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=delete, args=(store, [key])) for key in keys]
    reader.start()
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    done.set()
    reader.join()
    assert seen <= set(range(122, 131))
    assert len(open_dataset(store.root)) == 122
    assert read_manifest(store).version == 9


@pytest.mark.parametrize("runs", [((5, 3),), ((0, 4), (2, 6)), ((80, 91),), ((-1, 2),)])
def test_runs_that_cannot_be_are_refused(make_dataset: Make, make_rows: Make, runs: Any) -> None:
    store, _ = of(make_dataset, make_rows)
    manifest = read_manifest(store)
    shard = manifest.shards[0].model_copy(update={"deleted": runs})
    with pytest.raises(FormatError, match="deleted rows out of order"):
        commit_manifest(store, manifest.model_copy(update={"version": 2, "shards": (shard, *manifest.shards[1:])}))


def test_what_is_not_there_cannot_be_deleted(make_dataset: Make, make_rows: Make) -> None:
    store, shards = of(make_dataset, make_rows)
    delete(store, shards[0].batch.keys[:1])
    with pytest.raises(SpecError, match="has no sample"):
        delete(store, shards[0].batch.keys[:2])
    assert len(Dataset(store, read_manifest(store))) == 129


@given(st.lists(st.booleans(), max_size=40))
def test_runs_are_those_of_the_mask(mask: list[bool]) -> None:
    runs = runs_of(np.array(mask, np.bool_))
    assert [n for start, end in runs for n in range(start, end)] == [n for n, marked in enumerate(mask) if marked]
    assert all(before[1] < after[0] for before, after in pairwise(runs))
