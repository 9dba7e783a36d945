"""Parquet files with images inside, as Hugging Face hubs have them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tokenshard.errors import SpecError

Read = Callable[..., Any]
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.fixture
def table(encoded: Callable[..., bytes], picture: Callable[..., Any]) -> pa.Table:
    """Ten rows with images, class labels by `datasets`' metadata, captions, and a second image column."""
    images = [{"bytes": encoded(picture(row)), "path": f"{row}.png"} for row in range(10)]
    features = {
        "img": {"_type": "Image"},
        "fine": {"_type": "ClassLabel", "names": ["ant", "bee"]},
        "caption": {"_type": "Value"},
        "mask": {"_type": "Image"},
    }
    schema = pa.schema(
        [("img", IMAGE), ("fine", pa.int64()), ("caption", pa.large_string()), ("mask", IMAGE)],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    columns = [images, [row % 2 for row in range(10)], [f"row {row}" for row in range(10)], images]
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)


def test_rows_become_samples_with_their_columns_and_class_names(
    table: pa.Table, tmp_path: Path, read_source: Read, picture: Callable[..., Any]
) -> None:
    pq.write_table(table.slice(0, 6), tmp_path / "a.parquet", row_group_size=4)
    pq.write_table(table.slice(6), tmp_path / "b.parquet")
    result = read_source(tmp_path)
    assert (result.form, result.rejects) == ("hf-parquet", {})
    assert list(result.samples) == [
        *(f"a.parquet/{row:08d}" for row in range(6)),
        *(f"b.parquet/{row:08d}" for row in range(4)),
    ]
    for row, sample in enumerate(result.samples.values()):
        np.testing.assert_array_equal(sample.data, picture(row))
        assert sample.columns == {"fine": row % 2, "caption": f"row {row}"}
    assert (result.columns["fine"].role, result.columns["fine"].names) == ("label", ("ant", "bee"))
    assert result.columns["caption"].type == pa.large_string()


def test_any_rows_of_a_file_can_be_read_by_themselves(table: pa.Table, tmp_path: Path) -> None:
    from tokenshard.sources.images.open import open_image_source
    from tokenshard.spec.images import ImageSourceSpec

    pq.write_table(table, tmp_path / "a.parquet", row_group_size=3)
    source = open_image_source(ImageSourceSpec(path=str(tmp_path / "a.parquet")))
    plan = pa.Table.from_batches(list(source.plan()))
    keys = [thunk().key for thunk in source.read(plan.take([0, 5, 9]))]
    assert keys == [f"a.parquet/{row:08d}" for row in (0, 5, 9)]


def test_a_plain_binary_column_and_a_key_column_do_too(table: pa.Table, tmp_path: Path, read_source: Read) -> None:
    images = [value["bytes"] for value in table["img"].to_pylist()]
    pq.write_table(pa.table({"key": [f"k{row}" for row in range(10)], "jpg": images}), tmp_path / "a.parquet")
    result = read_source(tmp_path / "a.parquet")
    assert list(result.samples) == [f"k{row}" for row in range(10)]
    assert not result.columns


def test_images_alone_are_enough(table: pa.Table, tmp_path: Path, read_source: Read) -> None:
    pq.write_table(table.select(["img"]), tmp_path / "a.parquet")
    assert len(read_source(tmp_path / "a.parquet").samples) == 10


def test_the_image_column_can_be_chosen(table: pa.Table, tmp_path: Path, read_source: Read) -> None:
    pq.write_table(table, tmp_path / "a.parquet")
    assert len(read_source(tmp_path / "a.parquet", image_column="mask").samples) == 10
    with pytest.raises(SpecError, match="no column nope; it has img, fine, caption, mask; set image_column"):
        read_source(tmp_path / "a.parquet", image_column="nope", form="hf-parquet")


def test_a_row_without_bytes_reads_its_path_but_never_leaves_the_folder(
    tmp_path: Path, read_source: Read, encoded: Callable[..., bytes], picture: Callable[..., Any]
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/beside.png").write_bytes(encoded(picture(7)))
    (tmp_path / "outside.png").write_bytes(encoded(picture(8)))
    paths = ["beside.png", "../outside.png", f"{tmp_path}/outside.png", "gone.png", None]
    images = [{"bytes": None, "path": path} for path in paths] + [None]
    pq.write_table(pa.table({"image": pa.array(images, IMAGE)}), tmp_path / "in/a.parquet")
    result = read_source(tmp_path / "in/a.parquet")
    assert list(result.samples) == ["a.parquet/00000000"]
    messages = [reject.message.partition(": ")[2] for reject in result.rejects.values()]
    assert messages == [
        *["no bytes in this row, and its path leaves the folder of the Parquet file"] * 2,
        "no such file",
        *["no image in this row"] * 2,
    ]


def test_a_damaged_file_and_one_with_other_columns_are_one_reject_each(
    table: pa.Table, tmp_path: Path, read_source: Read
) -> None:
    pq.write_table(table, tmp_path / "b.parquet")
    (tmp_path / "a.parquet").write_bytes((tmp_path / "b.parquet").read_bytes()[:-20])
    pq.write_table(table.drop_columns(["caption"]), tmp_path / "c.parquet")
    pq.write_table(table.select(["fine", "caption"]), tmp_path / "d.parquet")
    result = read_source(tmp_path)
    assert len(result.samples) == 10
    assert {key: reject.error for key, reject in result.rejects.items()} == {
        "a.parquet": "unreadable Parquet file",
        "c.parquet": "unreadable Parquet file",
        "d.parquet": "unreadable Parquet file",
    }
    assert result.rejects["c.parquet"].message.endswith("no column caption")
    assert str(tmp_path) not in str(result.plan.to_pylist())


def test_a_damaged_row_group_costs_its_own_rows_only(table: pa.Table, tmp_path: Path, read_source: Read) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, row_group_size=5, write_page_checksum=True, compression="none", use_dictionary=False)
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(0)
    data = bytearray(path.read_bytes())
    data[chunk.data_page_offset + chunk.total_compressed_size // 2] ^= 0xFF
    path.write_bytes(data)
    result = read_source(path)
    assert set(result.rejects) == {f"a.parquet/{row:08d}" for row in range(5)}
    assert {reject.stage for reject in result.rejects.values()} == {"fetch"}
    assert len(result.samples) == 5


@pytest.mark.data
def test_the_developer_files_are_read_with_their_class_names(data_dir: Path, read_source: Read) -> None:
    result = read_source(data_dir / "images/formats/hf_parquet")
    assert (len(result.samples), len(result.rejects)) == (400, 0)
    assert result.columns["label"].names[5] == "dog"
    assert result.samples["train-00000-of-00002.parquet/00000000"].columns == {"label": 5}


@pytest.mark.data
def test_null_missing_and_cut_images_are_rejects(data_dir: Path, read_source: Read) -> None:
    result = read_source(data_dir / "bad/shards/*.parquet")
    assert list(result.samples) == ["nulls_and_cut.parquet/00000000"]
    assert {key: reject.stage for key, reject in result.rejects.items()} == {
        "nulls_and_cut.parquet/00000001": "fetch",
        "nulls_and_cut.parquet/00000002": "fetch",
        "nulls_and_cut.parquet/00000003": "decode",
        "truncated.parquet": "plan",
    }
