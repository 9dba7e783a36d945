"""Reading shards: one range read a row group, exact ids back, damage found before it can do harm."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tokenshard.codecs.choose import load_codec
from tokenshard.errors import FormatError
from tokenshard.shards.describe import describe_shard
from tokenshard.shards.reader import ShardReader, arrange
from tokenshard.shards.schema import ShardFooter
from tokenshard.shards.writer import parquet_options
from tokenshard.store import Store


class CountingStore(Store):
    """The real store, which also notes every range it reads."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.reads: list[tuple[str, int, int | None]] = []

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        self.reads.append((name, start, length))
        return super().read(name, start, length)

    def read_into(self, name: str, start: int, out: memoryview) -> int:
        self.reads.append((name, start, len(out)))
        return super().read_into(name, start, out)


def codec(spec):
    return load_codec(spec, None)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_sample_comes_back_exactly(make_rows, make_shard, tmp_path, data) -> None:
    codecs = data.draw(st.lists(st.sampled_from(["pack", "zstd", "context"]), min_size=1, max_size=3))
    rank = data.draw(st.integers(1, 3))
    alphabets = [1, 2, 17, 256] + ([65_536, 65_537, 1 << 20] if "context" not in codecs else [])
    rows = make_rows(
        data.draw(st.integers(1, 200)),
        codecs=codecs,
        alphabet=data.draw(st.sampled_from(alphabets)),
        rank=rank,
        varied=rank < 3 and data.draw(st.booleans()),
        side=data.draw(st.integers(1, 9)),
        group=data.draw(st.sampled_from([1, 16])),
        seed=data.draw(st.integers(0, 1000)),
    )
    reader = ShardReader(Store(tmp_path), make_shard(rows, row_group_bytes=1 << 10), rows.codec)
    expected, start = rows.samples(), 0
    for number, listed in enumerate(reader.entry.row_groups):
        group = reader.read_group(number)
        got = arrange(group.decode(), group.grids, None)
        chosen = np.array(data.draw(st.lists(st.integers(0, listed.rows - 1), max_size=5)), np.int64)
        some = arrange(group.decode(chosen), group.grids[chosen], None)
        part = expected[start : start + listed.rows]
        assert all(map(np.array_equal, got, part))
        assert all(map(np.array_equal, some, (part[row] for row in chosen)))
        assert len(got) == listed.rows
        start += listed.rows
    assert start == len(rows)


def test_a_row_group_costs_exactly_one_range_read(make_rows, make_shard, tmp_path) -> None:
    entry = make_shard(make_rows(600, codecs=("pack", "zstd", "pack"), varied=True), row_group_bytes=8 << 10)
    store = CountingStore(tmp_path)
    reader = ShardReader(store, entry, codec)
    assert len(store.reads) == 1
    for group in range(len(entry.row_groups)):
        store.reads.clear()
        reader.read_group(group).decode()
        assert len(store.reads) == 1


def test_fewer_levels_read_fewer_bytes(make_rows, make_shard, tmp_path) -> None:
    rows = make_rows(300, codecs=("pack",) * 4)
    store = CountingStore(tmp_path)
    reader = ShardReader(store, make_shard(rows), codec)
    store.reads.clear()
    coarse, full = reader.read_group(0, levels=1), reader.read_group(0)
    assert np.array_equal(coarse.decode()[0], full.decode()[0])
    assert store.reads[0][2] < 0.3 * store.reads[1][2]


def test_one_sample_can_be_read_by_code_len_without_parquet_code(make_rows, make_shard, tmp_path) -> None:
    rows = make_rows(1000, varied=True)
    entry = make_shard(rows, row_group_bytes=8 << 10)
    data = (tmp_path / entry.path).read_bytes()
    table = pq.read_table(tmp_path / entry.path)
    lengths, start = table["code_len"].to_numpy(), 0
    for group in entry.row_groups:
        ends = group.codes[0].offset + np.cumsum(lengths[start : start + group.rows])
        for row in range(group.rows):
            stream = data[ends[row] - lengths[start + row] : ends[row]]
            assert stream == table["codes"][start + row].as_py()
        start += group.rows


def test_user_columns_are_projected_and_come_back_as_they_were(make_rows, make_shard, tmp_path) -> None:
    rows = make_rows(200)
    store = CountingStore(tmp_path)
    entry = make_shard(rows)
    reader = ShardReader(store, entry, codec)
    store.reads.clear()
    table = reader.read_columns(0, ["tags", "label", "split", "not there"])
    assert table.column_names == ["label", "split", "tags"]
    assert table["label"].to_pylist() == rows.batch.columns["label"].to_pylist()
    assert table["split"].to_pylist() == rows.batch.columns["split"].to_pylist()
    assert table["tags"].to_pylist() == rows.batch.columns["tags"].to_pylist()
    assert sum(length for _, _, length in store.reads) < entry.bytes / 4
    assert reader.read_columns(0, ["not there"]).num_rows == 200


@pytest.mark.parametrize("codecs", [("pack",), ("zstd",), ("pack", "zstd")])
def test_any_flipped_bit_in_what_is_read_raises_and_names_shard_and_row_group(
    make_rows, make_shard, tmp_path, codecs
) -> None:
    rng = np.random.default_rng(1)
    entry = make_shard(make_rows(300, codecs=codecs), row_group_bytes=8 << 10)
    path = tmp_path / entry.path
    intact = path.read_bytes()
    for group, listed in enumerate(entry.row_groups):
        for chunk in (listed.sizes, *listed.codes):
            for place in rng.integers(chunk.offset, chunk.offset + chunk.length, 20).tolist():
                damaged = bytearray(intact)
                damaged[place] ^= 1 << int(rng.integers(8))
                path.write_bytes(damaged)
                with pytest.raises(FormatError, match=rf"{path}: row group {group} \(rows .*checksum"):
                    ShardReader(Store(tmp_path), entry, codec).read_group(group)


@pytest.mark.parametrize("codecs", [("pack",), ("zstd",)])
def test_a_plain_parquet_reader_finds_1000_flipped_bits_in_the_pages_of_codes_by_their_checksums(
    make_rows, make_shard, tmp_path, codecs
) -> None:
    rng = np.random.default_rng(2)
    entry = make_shard(make_rows(300, codecs=codecs), row_group_bytes=8 << 10)
    [chunk] = entry.row_groups[0].codes
    intact = (tmp_path / entry.path).read_bytes()
    with pq.ParquetFile(pa.BufferReader(intact), page_checksum_verification=True) as file:
        column = file.metadata.row_group(0).column(file.schema_arrow.get_field_index("codes"))
    # a list column begins with the header of its dictionary page, which no checksum covers
    first = chunk.offset if codecs == ("pack",) else column.data_page_offset + 64
    for place in rng.integers(first, chunk.offset + chunk.length, 1000).tolist():
        damaged = bytearray(intact)
        damaged[place] ^= 1 << int(rng.integers(8))
        with (
            pq.ParquetFile(pa.BufferReader(bytes(damaged)), page_checksum_verification=True) as file,
            pytest.raises(OSError, match=r"(?i)crc|checksum"),
        ):
            file.read_row_group(0, columns=["codes"])


def test_a_cut_off_or_missing_shard_is_named(make_rows, make_shard, tmp_path) -> None:
    entry = make_shard(make_rows(300))
    path = tmp_path / entry.path
    reader = ShardReader(Store(tmp_path), entry, codec)
    path.write_bytes(path.read_bytes()[: entry.bytes // 2])
    with pytest.raises(FormatError, match=rf"{path}: row group 0 .*ends before byte"):
        reader.read_group(0)
    with pytest.raises(FormatError, match=rf"{path}: .*ends before byte"):
        ShardReader(Store(tmp_path), entry, codec)
    path.unlink()
    with pytest.raises(FormatError, match=rf"{path}: .*missing"):
        reader.read_group(0)


def rewritten(path: Path, rows, footer: dict[str, str], extra: pa.Array | None = None):
    """The shard written again by plain pyarrow with other footer keys, and perhaps one more column."""
    table = pq.read_table(path)
    if extra is not None:
        table = table.append_column("later_column", extra)
    with pq.ParquetWriter(str(path), table.schema, **parquet_options(table.schema, rows.columns)) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata(footer)
    with open(path, "rb") as file:
        return describe_shard(file, "data/job-000000.parquet")


def test_unknown_footer_keys_and_columns_are_ignored(make_rows, make_shard, tmp_path) -> None:
    rows = make_rows(50)
    path = tmp_path / make_shard(rows).path
    footer = ShardFooter.parse(pq.read_metadata(path).metadata).dump()
    footer["tokenshard.columns"] = footer["tokenshard.columns"].replace("{", '{"later":[1],', 1)
    entry = rewritten(path, rows, {**footer, "tokenshard.later": "x"}, pa.array(range(50)))
    group = ShardReader(Store(tmp_path), entry, codec).read_group(0)
    assert np.array_equal(group.decode()[0], rows.batch.ids[0])


def test_a_shard_for_a_newer_reader_is_refused_with_the_remedy(make_rows, make_shard, tmp_path) -> None:
    rows = make_rows(50)
    path = tmp_path / make_shard(rows).path
    footer = ShardFooter.parse(pq.read_metadata(path).metadata).dump()
    with pytest.raises(FormatError, match=r"job-000000\.parquet: needs .* shard format 4.*pip install --upgrade"):
        rewritten(path, rows, {**footer, "tokenshard.min_reader": "4"})


@pytest.mark.parametrize(
    ("codec_name", "change", "message"),
    [
        ("zstd", lambda ids: ids.cast(pa.list_(pa.int32())), "no list of unsigned ids"),
        ("zstd", lambda ids: pa.array([b"x"] * len(ids)), "not stored as the zstd codec"),
        (
            "pack",
            lambda ids: pa.array([[1]] * len(ids), pa.list_(pa.uint16())),
            "not stored as the pack codec stores it",
        ),
    ],
)
def test_a_code_column_of_another_type_is_refused(make_rows, make_shard, tmp_path, codec_name, change, message) -> None:
    rows = make_rows(50, codecs=(codec_name,))
    entry = make_shard(rows)
    path = tmp_path / entry.path
    footer, table = ShardFooter.parse(pq.read_metadata(path).metadata).dump(), pq.read_table(path)
    place = table.schema.get_field_index("codes")
    table = table.set_column(place, "codes", change(table["codes"].combine_chunks()))
    with pq.ParquetWriter(str(path), table.schema, **parquet_options(table.schema, rows.columns)) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata(footer)
    with pytest.raises(FormatError, match=message), open(path, "rb") as file:
        ShardReader(Store(tmp_path), describe_shard(file, entry.path), codec).read_group(0)


@pytest.mark.parametrize("column", ["num_tokens", "height", "code_len"])
def test_sizes_that_contradict_each_other_are_refused_before_anything_is_decoded(
    make_rows, make_shard, tmp_path, column
) -> None:
    rows = make_rows(50)
    path = tmp_path / make_shard(rows).path
    footer = ShardFooter.parse(pq.read_metadata(path).metadata).dump()
    table = pq.read_table(path)
    values = table[column].to_numpy().copy()
    values[7] = 2**31 - 1 if column != "code_len" else -5
    changed = table.set_column(table.schema.get_field_index(column), table.schema.field(column), pa.array(values))
    with pq.ParquetWriter(str(path), table.schema, **parquet_options(table.schema, rows.columns)) as writer:
        writer.write_table(changed)
        writer.add_key_value_metadata(footer)
    with open(path, "rb") as file:
        entry = describe_shard(file, "data/job-000000.parquet")
    with pytest.raises(FormatError, match="row group 0"):
        ShardReader(Store(tmp_path), entry, codec).read_group(0)
