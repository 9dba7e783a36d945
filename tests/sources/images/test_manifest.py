"""Manifests: one path a row, everything else is carried."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tokenshard.errors import InputError, SpecError
from tokenshard.sources.images.manifest import locate

Read = Callable[..., Any]


@pytest.fixture
def images(tmp_path: Path, encoded: Callable[..., bytes], picture: Callable[..., Any]) -> Path:
    """A folder with `in/a.png`, `in/b.png` and, beside it, `c.png`."""
    (tmp_path / "in").mkdir()
    for seed, name in enumerate(("in/a.png", "in/b.png", "c.png")):
        (tmp_path / name).write_bytes(encoded(picture(seed)))
    return tmp_path


def test_text_labels_become_sorted_classes_and_other_columns_are_carried(images: Path, read_source: Read) -> None:
    (images / "in/m.csv").write_text("path,label,score,note\na.png,dog,0.5,x\nb.png,cat,1,\n../c.png,dog,2,z\n")
    result = read_source(images / "in/m.csv")
    assert result.form == "manifest"
    assert result.columns["label"].names == ("cat", "dog")
    assert {key: dict(sample.columns) for key, sample in result.samples.items()} == {
        "a.png": {"label": 1, "score": 0.5, "note": "x"},
        "b.png": {"label": 0, "score": 1.0, "note": ""},
        "../c.png": {"label": 1, "score": 2.0, "note": "z"},
    }


def test_integer_labels_are_values_and_missing_ones_null(images: Path, read_source: Read) -> None:
    (images / "m.jsonl").write_text('{"file_name": "in/a.png", "label": 7}\n{"file_name": "in/b.png"}\n')
    result = read_source(images / "m.jsonl")
    assert (result.columns["label"].role, result.columns["label"].names) == ("label", None)
    assert [sample.columns["label"] for sample in result.samples.values()] == [7, None]


def test_parquet_columns_keep_their_arrow_types(images: Path, read_source: Read) -> None:
    table = pa.table(
        {
            "image": ["in/a.png", "c.png"],
            "when": pa.array([1_500_000_001, None], pa.timestamp("ns")),
            "price": pa.array(["1.10", "2.20"]).cast(pa.decimal128(9, 2)),
            "tags": pa.array([["a"], []], pa.list_(pa.string())),
            "level": pa.array([1, 2], pa.uint8()),
            "class": pa.array(["x", "y"]).dictionary_encode(),
        }
    )
    pq.write_table(table, images / "m.parquet")
    result = read_source(images / "m.parquet", labels="class")
    samples = result.samples.values()
    assert {name: column.role for name, column in result.columns.items()}["class"] == "label"
    assert [sample.columns["class"] for sample in samples] == [0, 1]
    for name in ("when", "price", "tags", "level"):
        column = result.columns[name]
        assert column.type == table.schema.field(name).type
        values = pa.array([sample.columns[name] for sample in samples], column.type)
        assert values.equals(table[name].combine_chunks())


def test_a_key_column_names_the_samples(images: Path, read_source: Read) -> None:
    (images / "m.csv").write_text("key,path\n17,in/a.png\n18,in/a.png\n")
    result = read_source(images / "m.csv")
    assert list(result.samples) == ["17", "18"]
    assert not result.columns


def test_repeated_keys_and_missing_paths_and_files_are_rejects(images: Path, read_source: Read) -> None:
    (images / "m.csv").write_text("path,n\nin/a.png,1\nin/a.png,2\n,3\ngone.png,4\n")
    result = read_source(images / "m.csv")
    assert list(result.samples) == ["in/a.png"]
    assert {key: (reject.stage, reject.error) for key, reject in result.rejects.items()} == {
        "in/a.png#2": ("plan", "duplicate key"),
        "m.csv:2": ("plan", "no path in this row"),
        "gone.png": ("fetch", "FileNotFoundError"),
    }


def test_absolute_paths_and_file_urls_are_read(images: Path, read_source: Read) -> None:
    (images / "m.csv").write_text(f"path\n{images}/c.png\nfile://{images}/in/a.png\n")
    assert len(read_source(images / "m.csv").samples) == 2


def test_a_fifo_in_a_manifest_does_not_hang(images: Path, read_source: Read) -> None:
    os.mkfifo(images / "pipe.png")
    (images / "m.csv").write_text("path\nin/a.png\npipe.png\n")
    assert read_source(images / "m.csv").rejects["pipe.png"].message == "pipe.png: not a regular file"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"path_column": "nope"}, r"no text column .*\(nope\); it has where, label; set path_column"),
        ({}, "no text column with image paths"),
        ({"path_column": "where", "labels": "kind"}, "no column 'kind' for labels; it has where, label"),
    ],
)
def test_a_wrong_column_is_one_error_that_lists_the_columns(
    fields: dict[str, str], message: str, images: Path, read_source: Read
) -> None:
    (images / "m.csv").write_text("where,label\nin/a.png,x\n")
    with pytest.raises(SpecError, match=message):
        read_source(images / "m.csv", **fields)


@pytest.mark.parametrize(
    ("root", "uri", "place"),
    [
        ("/data/m", "a/b.png", ("/data/m", "a/b.png")),
        ("/data/m", "../x/b.png", ("/data", "x/b.png")),
        ("/data/m", "../../../b.png", None),
        ("/data/m", "/abs/b.png", ("/", "abs/b.png")),
        ("s3://bucket/p/q", "../b.png", ("s3://bucket/p", "b.png")),
        ("s3://bucket/p/q", "a/../../b.png", ("s3://bucket/p", "b.png")),
        ("s3://bucket/p", "../b.png", ("s3://bucket", "b.png")),
        ("s3://bucket/p", "../../other/b.png", None),
        ("/data/m", "s3://bucket/p/b.png", ("s3://bucket", "p/b.png")),
        ("/data/m", "file:///abs/b.png", ("/", "abs/b.png")),
    ],
)
def test_paths_are_located_but_never_beyond_the_storage(root: str, uri: str, place: tuple[str, str] | None) -> None:
    if place is not None:
        assert locate(root, uri) == place
    else:
        with pytest.raises(InputError, match="leaves the storage"):
            locate(root, uri)


@pytest.mark.data
def test_the_developer_manifest_is_read_with_its_labels(data_dir: Path, read_source: Read) -> None:
    result = read_source(data_dir / "images/formats/manifest.csv")
    assert (len(result.samples), len(result.rejects)) == (60, 0)
    names = result.columns["label"].names
    for key, sample in result.samples.items():
        assert names[sample.columns["label"]] == key.split("/")[-2]
