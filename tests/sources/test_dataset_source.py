"""A token dataset as a source: what is planned, what is read for it, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from shards.conftest import Rows, token_rows, write_dataset
from tokenshard.errors import FormatError, SpecError
from tokenshard.shards.dataset import open_dataset
from tokenshard.shards.manifest import commit_manifest, read_manifest
from tokenshard.sources.base import PLAN_COLUMNS, Sample
from tokenshard.sources.codes.dataset import DatasetSource, open_dataset_source
from tokenshard.spec.codes import DatasetSourceSpec
from tokenshard.store import Store

Make = Callable[..., Store]


def source_of(store: Store, state: dict[str, Any] | None = None, **options: Any) -> DatasetSource:
    spec = DatasetSourceSpec.model_validate({"path": store.root, **options})
    return open_dataset_source(spec, store.options, state)


def planned(source: DatasetSource) -> pa.Table:
    return pa.Table.from_batches(list(source.plan()))


def samples(source: DatasetSource, inputs: pa.Table) -> list[Sample]:
    read = [thunk() for thunk in source.read(inputs)]
    assert all(isinstance(item, Sample) for item in read)
    return [item for item in read if isinstance(item, Sample)]


@pytest.fixture
def shards() -> list[Rows]:
    """Two shards of 300 and 100 images of many sizes, with codes that 16 rows share."""
    return [
        token_rows(count, codecs=("context",), varied=True, side=4, group=16, first=first)
        for count, first in ((300, 0), (100, 300))
    ]


@pytest.fixture
def dataset(shards: list[Rows], tmp_path: Path) -> Store:
    return write_dataset(tmp_path / "tokens", shards, row_group_bytes=1 << 10)


def test_the_plan_names_every_sample_by_shard_and_row(dataset: Store, shards: list[Rows]) -> None:
    plan = planned(source_of(dataset))
    manifest = read_manifest(dataset)
    assert plan.schema == PLAN_COLUMNS
    assert plan["key"].to_pylist() == [key for rows in shards for key in rows.batch.keys]
    assert plan["uri"].to_pylist() == [shard.path for shard in manifest.shards for _ in range(shard.rows)]
    assert plan["index"].to_pylist() == [*range(300), *range(100)]
    groups = [group for shard in manifest.shards for group in shard.row_groups]
    assert len(groups) >= 4
    assert sum(plan["bytes"].to_pylist()) == sum(group.codes[0].length for group in groups)


@pytest.mark.parametrize("rows", [range(400), [0], [399, 0, 17, 16, 15, 298, 301], range(5, 400, 7)], ids=str)
def test_any_rows_are_read_in_the_order_asked_for(rows: Any, dataset: Store, shards: list[Rows]) -> None:
    source = source_of(dataset)
    inputs = planned(source).take(pa.array(rows, pa.int64()))
    expected = [code for shard in shards for code in shard.samples()]
    sizes = np.concatenate([shard.batch.sizes for shard in shards]).tolist()
    labels = [value for shard in shards for value in shard.batch.columns["label"].to_pylist()]
    found = samples(source, inputs)
    assert [sample.key for sample in found] == inputs["key"].to_pylist()
    for row, sample in zip(rows, found, strict=True):
        assert np.array_equal(sample.data, expected[row][None])
        assert sample.size == tuple(sizes[row])
        assert sample.columns["label"] == labels[row]


def test_the_raw_bytes_of_a_shard_are_shared_out_whole(dataset: Store) -> None:
    source = source_of(dataset)
    shares = [sample.raw_bytes for sample in samples(source, planned(source))]
    assert sum(shares) == read_manifest(dataset).totals.raw_bytes
    assert max(shares) - min(shares) <= 1


def test_only_the_row_groups_of_the_rows_are_read(dataset: Store) -> None:
    source = source_of(dataset)
    inputs = planned(source)
    shard = read_manifest(dataset).shards[0]
    path, first = Path(dataset.url(shard.path)), shard.row_groups[0].rows
    content = bytearray(path.read_bytes())
    for group in shard.row_groups[1:]:
        content[group.codes[0].offset] ^= 1
    path.write_bytes(content)
    assert len(samples(source, inputs.slice(0, first))) == first
    with pytest.raises(FormatError, match=f"{shard.path}: row group 1 .*damaged"):
        samples(source, inputs.slice(first, 1))


def test_stored_ids_become_those_of_the_tokenizer(tmp_path: Path) -> None:
    rows = token_rows(30, alphabet=16)
    store = write_dataset(tmp_path / "tokens", [rows])
    manifest = read_manifest(store)
    remap = tuple(range(255, 239, -1))
    level = manifest.code.levels[0].model_copy(update={"alphabet": 256, "remap": remap})
    code = manifest.code.model_copy(update={"levels": (level,)})
    commit_manifest(store, manifest.model_copy(update={"version": 2, "parent": 1, "code": code}))
    source = source_of(store)
    found = np.stack([sample.data[0] for sample in samples(source, planned(source))])
    assert source.layout().alphabets == (256,)
    assert np.array_equal(found, open_dataset(store.root).codes(range(30)))
    assert np.array_equal(found, 255 - np.stack(rows.samples()))


def test_a_worker_reads_the_version_that_was_planned(dataset: Store) -> None:
    source = source_of(dataset)
    inputs, state = planned(source), source.state()
    manifest = read_manifest(dataset)
    commit_manifest(dataset, manifest.model_copy(update={"version": 2, "parent": 1, "preprocess": {"new": 1}}))
    assert source_of(dataset).layout().preprocess == {"new": 1}
    assert source_of(dataset, state).layout() == source.layout()
    assert len(samples(source_of(dataset, state), inputs)) == 400
    with pytest.raises(SpecError, match="is not the dataset that was planned"):
        source_of(dataset, {**state, "fingerprint": "0" * 64})


def test_a_dataset_without_samples_is_refused(dataset: Store) -> None:
    manifest = read_manifest(dataset)
    totals = manifest.totals.model_copy(update=dict.fromkeys(("samples", "ids", "raw_bytes", "token_bytes"), 0))
    commit_manifest(dataset, manifest.model_copy(update={"version": 2, "totals": totals, "shards": ()}))
    with pytest.raises(SpecError, match="version 2 of the dataset holds no samples"):
        source_of(dataset)


def test_keys_that_are_not_unique_are_refused(tmp_path: Path) -> None:
    store = write_dataset(tmp_path / "tokens", [token_rows(30), token_rows(30)])
    with pytest.raises(SpecError, match=r"'img/000000.jpg' occurs twice in column 'key'"):
        planned(source_of(store))


def test_a_column_with_gaps_gives_no_keys(dataset: Store) -> None:
    with pytest.raises(SpecError, match="column 'caption' is empty in some rows"):
        planned(source_of(dataset, keys="column:caption"))
