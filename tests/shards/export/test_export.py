"""What every export promises: an empty destination, the same bytes again, chosen columns and splits, any storage."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from engine.arrays import import_arrays
from tokenshard.cli.exchange import FORMATS
from tokenshard.errors import SpecError
from tokenshard.shards.dataset import Dataset, open_dataset
from tokenshard.shards.export.registry import EXPORTERS, export
from tokenshard.sources.codes.open import FORMATS as IMPORTERS
from tokenshard.store import Store

OWN = ("parquet", "webdataset", "npy", "npz", "hf", "megatron", "seit")
"""Formats that need no library of others."""


@pytest.fixture
def dataset(make_rows: Callable[..., Any], make_dataset: Callable[..., Store]) -> Dataset:
    """80 samples in two shards: 64 of the split train, 16 of the split test."""
    return open_dataset(make_dataset(make_rows(50), make_rows(30, first=50)).root)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_every_format_can_be_exported_imported_and_named_on_the_command_line() -> None:
    assert set(EXPORTERS) == set(IMPORTERS) == set(FORMATS)


@pytest.mark.parametrize("format", OWN)
def test_exporting_twice_gives_the_same_bytes(format: str, dataset: Dataset, tmp_path: Path) -> None:
    first = export(dataset, tmp_path / "a", format)
    export(dataset, tmp_path / "b", format)
    files = files_of(tmp_path / "a")
    assert files == files_of(tmp_path / "b")
    assert (first.files, first.bytes) == (len(files), sum(map(len, files.values())))
    assert dict(first.splits) == {"test": 16, "train": 64}


@pytest.mark.parametrize("format", OWN)
def test_a_destination_that_is_not_empty_is_refused_and_left_alone(
    format: str, dataset: Dataset, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(SpecError, match="is not empty"):
        export(dataset, tmp_path / "out", format)
    assert files_of(tmp_path / "out") == {"mine.txt": b"mine"}


def test_an_unknown_format_option_column_or_split_is_refused_before_anything_is_written(
    dataset: Dataset, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for arguments, message in (
        ({"format": "csv"}, "format 'csv' is unknown; there are parquet"),
        ({"format": "npy", "options": {"shard_bytes": 9}}, "has no option 'shard_bytes'"),
        ({"format": "parquet", "options": {"shard_bytes": "a lot"}}, "'a lot' is no size in bytes"),
        ({"format": "parquet", "options": {"shard_bytes": 0}}, "0 is no size in bytes"),
        ({"format": "parquet", "columns": ["title"]}, "no label or metadata column 'title'; there are label, caption"),
        ({"format": "parquet", "split": "val"}, "no split 'val'; there are test, train"),
    ):
        with pytest.raises(SpecError, match=message):
            export(dataset, out, **arguments)
    assert not out.exists()


def test_chosen_columns_and_one_split_are_exported_alone(dataset: Dataset, tmp_path: Path) -> None:
    done = export(dataset, tmp_path / "out", "parquet", columns=["label"], split="test")
    assert dict(done.splits) == {"test": 16}
    table = pq.read_table(tmp_path / "out" / "test-00000.parquet")
    assert table.column_names == ["key", "codes", "grid_height", "grid_width", "height", "width", "label"]
    keys = [row["key"] for row in dataset.table(["key", "split"]).to_pylist() if row["split"] == "test"]
    assert table["key"].to_pylist() == keys


def test_files_are_cut_at_shard_bytes_and_hold_all_samples_in_order(dataset: Dataset, tmp_path: Path) -> None:
    export(dataset, tmp_path / "out", "parquet", split="train", options={"shard_bytes": "1KiB"})
    names = sorted(path.name for path in (tmp_path / "out").glob("*.parquet"))
    assert names == [f"train-{number:05d}.parquet" for number in range(8)]  # of 8 samples of 128 bytes of ids
    keys = [key for name in names for key in pq.read_table(tmp_path / "out" / name)["key"].to_pylist()]
    assert keys == [row["key"] for row in dataset.table(["key", "split"]).to_pylist() if row["split"] == "train"]


def test_the_description_is_the_last_file_and_names_what_was_exported(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    put = Store.put
    monkeypatch.setattr(Store, "put", lambda self, name, content: (order.append(name), put(self, name, content))[1])
    export(dataset, tmp_path / "out", "webdataset")
    assert order[-1] == "tokenshard.json"
    described = json.loads((tmp_path / "out" / "tokenshard.json").read_text())
    assert (described["exchange"], described["alphabets"], described["grid"]) == ("webdataset", [256], [8, 8])
    assert described["fingerprint"] == dataset.fingerprint


@pytest.mark.integration
@pytest.mark.parametrize("format", ["webdataset", "npz", "seit"])
def test_an_export_to_s3_has_the_bytes_of_a_local_one(
    format: str, dataset: Dataset, tmp_path: Path, s3_url: str
) -> None:
    export(dataset, tmp_path / "out", format)
    export(dataset, s3_url, format)
    remote = Store(s3_url)
    assert {entry.name: remote.read(entry.name) for entry in remote.list()} == files_of(tmp_path / "out")


def test_columns_whose_values_json_cannot_hold_are_refused_where_json_holds_them(tmp_path: Path) -> None:
    import_arrays(tmp_path, [np.zeros((1, 4), np.int32)] * 3)  # has a column of timestamps
    with pytest.raises(SpecError, match=r"'taken'.*cannot be written as JSON; leave it out with --columns"):
        export(open_dataset(tmp_path / "tokens"), tmp_path / "out", "webdataset")
    assert not (tmp_path / "out").exists()
