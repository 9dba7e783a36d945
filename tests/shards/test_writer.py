"""Shard files: equal rows give equal bytes, row groups have the size the format asks for, overhead stays small."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tokenshard.errors import FormatError, InputError, SpecError
from tokenshard.shards.describe import describe_shard

LAYOUTS = {
    "one level": {"codecs": ("pack",)},
    "ids visible": {"codecs": ("zstd",)},
    "levels of both layouts": {"codecs": ("pack", "zstd", "pack")},
    "varied sizes": {"codecs": ("pack",), "varied": True},
    "grouped short samples": {"codecs": ("context",), "rank": 1, "varied": True, "group": 16},
    "large alphabet": {"codecs": ("pack", "zstd"), "alphabet": 100_000},
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, 400), max_size=6))
def test_bytes_do_not_depend_on_how_rows_are_cut_into_batches(make_rows, make_shard, tmp_path, layout, cuts) -> None:
    rows = make_rows(400, **layout)
    whole, cut = tmp_path / "whole.parquet", tmp_path / "cut.parquet"
    first = make_shard(rows, path=whole, row_group_bytes=2 << 10)
    second = make_shard(rows, path=cut, row_group_bytes=2 << 10, cuts=cuts)
    assert whole.read_bytes() == cut.read_bytes()
    assert first == second
    assert len(first.row_groups) > 1


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.integers(1, 700), side=st.integers(1, 24), target=st.sampled_from([1 << 10, 1 << 14, 1 << 20]))
def test_row_groups_are_powers_of_two_nearest_the_byte_target(make_rows, make_shard, rows, side, target) -> None:
    entry = make_shard(make_rows(rows, side=side), row_group_bytes=target)
    full = [group.rows for group in entry.row_groups[:-1]]
    row_bytes = sum(group.codes[0].length for group in entry.row_groups) / rows
    assert sum(full) + entry.row_groups[-1].rows == rows
    assert len(set(full)) <= 1
    for count in full:
        assert count & (count - 1) == 0
        assert count == 64 or 0.7 < count * row_bytes / target < 1.42


def test_streams_beside_the_ids_are_stored_as_they_are_and_count_for_row_groups(
    make_rows, make_shard, tmp_path
) -> None:
    rows = make_rows(400, stream=100)
    entry = make_shard(rows, row_group_bytes=16 << 10)
    file = pq.ParquetFile(tmp_path / entry.path)
    chunks = [file.metadata.row_group(0).column(place) for place in range(file.metadata.num_columns)]
    chunk = next(chunk for chunk in chunks if chunk.path_in_schema == "residual")
    assert (chunk.compression, chunk.has_dictionary_page) == ("UNCOMPRESSED", False)
    assert "DELTA_LENGTH_BYTE_ARRAY" in chunk.encodings
    assert not chunk.is_stats_set
    assert entry.row_groups[0].rows == 128  # 164 bytes a row with the codes, 64 without
    assert file.read(["residual"])["residual"].equals(rows.batch.columns["residual"])


def test_a_row_group_never_splits_a_group_of_short_samples(make_rows, make_shard, tmp_path) -> None:
    entry = make_shard(make_rows(1000, codecs=("context",), rank=1, side=4, group=16), row_group_bytes=300)
    lengths = pq.read_table(tmp_path / entry.path, columns=["code_len"])["code_len"].to_numpy()
    assert len(entry.row_groups) > 2
    start = 0
    for group in entry.row_groups:
        part = lengths[start : start + group.rows]
        assert (np.flatnonzero(part) % 16 == 0).all()
        assert part.sum() == group.codes[0].length
        start += group.rows


def test_the_entry_can_be_rebuilt_from_the_file_alone(make_rows, make_shard, tmp_path) -> None:
    entry = make_shard(make_rows(500, codecs=("pack", "zstd"), varied=True), row_group_bytes=4 << 10)
    with open(tmp_path / entry.path, "rb") as file:
        assert describe_shard(file, entry.path) == entry
    assert entry.raw_bytes == 500_000
    assert (entry.min_key, entry.max_key) == ("img/000000.jpg", "img/000499.jpg")


@pytest.mark.parametrize("cut", [0, 3, 11, 2000, -1, -9, -400])
def test_a_cut_off_file_is_refused_with_its_name(make_rows, make_shard, tmp_path, cut) -> None:
    path = tmp_path / make_shard(make_rows(500)).path
    path.write_bytes(path.read_bytes()[:cut])
    with open(path, "rb") as file, pytest.raises(FormatError, match=r"data/job-000000\.parquet"):
        describe_shard(file, "data/job-000000.parquet")


def test_a_plain_parquet_file_is_not_a_shard(tmp_path: Path) -> None:
    pq.write_table(pa.table({"key": ["a"]}), tmp_path / "a.parquet")
    with open(tmp_path / "a.parquet", "rb") as file, pytest.raises(FormatError, match="not a token shard"):
        describe_shard(file, "a.parquet")


def test_overhead_is_at_most_four_and_a_half_bytes_a_sample_at_1024_rows_a_group(
    make_rows, make_shard, tmp_path
) -> None:
    rows = make_rows(8192, side=32, alphabet=1024)
    entry = make_shard(rows, row_group_bytes=1280 << 10)
    assert {group.rows for group in entry.row_groups} == {1024}
    metadata = pq.read_metadata(tmp_path / entry.path)
    chunks = [metadata.row_group(g).column(c) for g in range(8) for c in range(metadata.num_columns)]
    format_columns = {"num_tokens", "height", "width", "code_len", "codes"}
    users = sum(c.total_compressed_size for c in chunks if c.path_in_schema not in format_columns)
    streams = sum(group.codes[0].length for group in entry.row_groups)
    assert streams == 8192 * 1280
    assert (entry.bytes - streams - users) / len(rows) <= 4.5


def test_the_footer_takes_at_most_700_bytes_a_row_group_of_labelled_images(make_rows, make_shard) -> None:
    rows = make_rows(8192, side=8, alphabet=1024)
    labelled = dataclasses.replace(rows.batch, columns=rows.batch.columns.select(["label"]))
    rows = dataclasses.replace(rows, batch=labelled, user=pa.schema([rows.user.field("label")]))
    entry = make_shard(rows, row_group_bytes=80 << 10)
    assert [group.rows for group in entry.row_groups] == [1024] * 8
    assert entry.footer.length / 8 <= 700


def test_only_key_and_user_columns_carry_statistics_and_every_page_has_a_checksum(
    make_rows, make_shard, tmp_path
) -> None:
    entry = make_shard(make_rows(300))
    metadata = pq.read_metadata(tmp_path / entry.path)
    chunks = {c.path_in_schema: c for c in map(metadata.row_group(0).column, range(metadata.num_columns))}
    assert {name for name, chunk in chunks.items() if not chunk.is_stats_set} == {
        "num_tokens", "height", "width", "code_len", "codes"
    }  # fmt: skip
    assert chunks["codes"].compression == "UNCOMPRESSED"
    assert set(chunks["codes"].encodings) == {"RLE", "DELTA_LENGTH_BYTE_ARRAY"}
    assert "DELTA_BINARY_PACKED" in chunks["code_len"].encodings
    assert "DELTA_BYTE_ARRAY" in chunks["key"].encodings
    assert chunks["label"].compression == "ZSTD"


def test_listed_ids_have_a_dictionary_where_it_saves_bytes(make_rows, make_shard, tmp_path) -> None:
    rows = make_rows(320, codecs=("zstd", "zstd"))
    rows.batch.ids[1].reshape(-1, 512)[:] = rows.batch.ids[1][:512]  # comes again and again, like a phrase
    entry = make_shard(rows)
    group = pq.read_metadata(tmp_path / entry.path).row_group(0)
    chunks = {c.path_in_schema.split(".")[0]: c for c in map(group.column, range(group.num_columns))}
    assert chunks["codes_0"].has_dictionary_page
    assert not chunks["codes_1"].has_dictionary_page


def test_a_user_column_with_a_name_of_the_format_is_refused(make_rows, make_shard) -> None:
    rows = make_rows(10)
    bad = type(rows)(rows.columns, rows.batch, rows.user.append(pa.field("codes", pa.int32())))
    with pytest.raises(SpecError, match=r"'codes'.*rename or drop"):
        make_shard(bad)


@pytest.mark.parametrize("codec", ["pack", "zstd"])
def test_ids_outside_the_alphabet_are_refused_and_leave_no_file(make_rows, make_shard, tmp_path, codec) -> None:
    rows = make_rows(10, codecs=(codec,), alphabet=200)
    rows.batch.ids[0][17] = 200
    with pytest.raises(InputError, match="200"):
        make_shard(rows)
    assert not list(tmp_path.rglob("*.parquet"))


def test_a_shard_without_rows_is_no_file(make_rows, make_shard, tmp_path) -> None:
    rows = make_rows(0)
    assert make_shard(rows) is None
    assert not list(tmp_path.rglob("*.parquet"))


def test_batches_that_do_not_fit_the_shard_are_refused(make_rows, make_shard) -> None:
    rows = make_rows(10, rank=3)
    bad = type(rows)(rows.columns, rows.batch, rows.user.remove(0))
    with pytest.raises(SpecError, match="user columns"):
        make_shard(bad)
    fewer = dataclasses.replace(rows.batch, ids=(rows.batch.ids[0][:-1],))
    with pytest.raises(SpecError, match="do not fill"):
        make_shard(dataclasses.replace(rows, batch=fewer))
    rows.batch.sizes[3] = [8, 2, 8]
    with pytest.raises(SpecError, match="another grid"):
        make_shard(rows)
