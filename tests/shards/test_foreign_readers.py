"""Any Parquet reader opens a shard: keys, labels and lengths as plain columns, streams as bytes, lists as ids."""

from __future__ import annotations

import duckdb
import pandas as pd
import polars as pl
import pyarrow.dataset as pds
import pytest


def read_duckdb(folder: str) -> list[dict]:
    table = duckdb.sql(f"select * from read_parquet('{folder}/*.parquet') order by key")
    return [dict(zip(table.columns, row, strict=True)) for row in table.fetchall()]


def read_pandas(folder: str) -> list[dict]:
    return pd.read_parquet(folder).sort_values("key").to_dict("records")


def read_polars(folder: str) -> list[dict]:
    return pl.read_parquet(f"{folder}/*.parquet").sort("key").to_dicts()


def read_arrow_dataset(folder: str) -> list[dict]:
    return pds.dataset(folder).to_table().sort_by("key").to_pylist()


READERS = [read_duckdb, read_pandas, read_polars, read_arrow_dataset]


@pytest.mark.parametrize("read", READERS)
def test_foreign_readers_see_keys_labels_sizes_streams_and_ids(make_rows, make_dataset, read) -> None:
    parts = [make_rows(150, codecs=("pack", "zstd"), varied=True, first=first) for first in (0, 150)]
    store = make_dataset(*parts, row_group_bytes=4 << 10)
    got = read(store.url("data"))
    assert len(got) == 300
    for rows, found in zip(parts, (got[:150], got[150:]), strict=True):
        assert [row["key"] for row in found] == rows.batch.keys
        assert [row["label"] for row in found] == rows.batch.columns["label"].to_pylist()
        assert [row["height"] for row in found] == rows.batch.sizes[:, 0].tolist()
        assert [row["num_tokens"] for row in found] == rows.grids.prod(axis=1).tolist()
        assert [len(row["codes_0"]) for row in found] == [row["code_len_0"] for row in found]
        assert [list(row["codes_1"]) for row in found] == [sample[1].ravel().tolist() for sample in rows.samples()]
        assert b"".join(bytes(row["codes_0"]) for row in found) == streams(rows)


def streams(rows) -> bytes:
    """What the codec of the first level makes of the rows."""
    data, _ = rows.codec(rows.columns.codes[0]).encode(rows.batch.ids[0], rows.grids)
    return data.tobytes()


def test_sql_filters_by_label_without_touching_the_codes(make_rows, make_dataset) -> None:
    rows = make_rows(300)
    store = make_dataset(rows)
    count = duckdb.sql(f"select count(*) from read_parquet('{store.url('data')}/*.parquet') where label = 3").fetchall()
    assert count == [(rows.batch.columns["label"].to_pylist().count(3),)]
