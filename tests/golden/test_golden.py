"""Golden datasets: every version of the package reads them exactly, and writes the same ids to the same bytes.

Bytes of a Parquet file also depend on the release of Arrow (its name in `created_by`, its zstd). So what this package
decides, streams, lengths, row groups, encodings and footer keys, is compared whatever that release is; whole files and
fingerprints are compared under the release that wrote the sets, which is the pinned one.
"""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pds
import pyarrow.parquet as pq
import pytest
from definitions import SETS
from make import ROW_GROUP_BYTES, make

from reference_reader import read_dataset
from tokenshard.codecs.choose import load_codec
from tokenshard.codecs.model import ContextModel
from tokenshard.shards.dataset import Dataset, open_dataset
from tokenshard.shards.describe import describe_shard
from tokenshard.shards.manifest import commit_manifest
from tokenshard.shards.reader import ShardReader
from tokenshard.shards.schema import KEY, code_names, length_name, size_names
from tokenshard.shards.verify import verify
from tokenshard.shards.writer import ShardWriter, TokenBatch
from tokenshard.spec.manifest import ShardEntry
from tokenshard.store import Store

HERE = Path(__file__).parent
FINGERPRINTS: dict[str, list[str]] = json.loads((HERE / "expected.json").read_text())
NAMES = sorted(FINGERPRINTS)
VERSIONS = [(name, number) for name in NAMES for number in range(1, len(FINGERPRINTS[name]) + 1)]
FULL = [name for name in NAMES if name != "empty"]


def expected(name: str) -> dict[str, np.ndarray]:
    with np.load(HERE / "expected" / f"{name}.npz", allow_pickle=False) as saved:
        return dict(saved)


def samples_of(arrays: dict[str, np.ndarray]) -> list[np.ndarray]:
    """[levels, *grid] of each row."""
    levels = [arrays[f"codes_{level}"] for level in range(len(arrays) - 3)]
    ends = np.cumsum(arrays["grids"].prod(axis=1))[:-1] if len(arrays["grids"]) else []
    pieces = zip(*(np.split(level, ends) for level in levels), strict=True)
    return [np.stack(piece).reshape(len(levels), *grid) for piece, grid in zip(pieces, arrays["grids"], strict=True)]


def open_version(name: str, number: int | None = None) -> Dataset:
    return open_dataset(HERE / "sets" / name, version=number)


def shards(name: str) -> list[tuple[ShardEntry, Path]]:
    return [(entry, HERE / "sets" / name / entry.path) for entry in open_version(name).manifest.shards]


def test_every_set_is_here_and_all_together_are_small() -> None:
    assert sorted(golden.name for golden in SETS) == NAMES
    assert {path.name for path in (HERE / "sets").iterdir()} == set(NAMES)
    assert sum(path.stat().st_size for path in HERE.rglob("*") if path.is_file() and path.suffix != ".pyc") < 430_000


@pytest.mark.parametrize(("name", "number"), VERSIONS)
def test_fingerprint_keys_labels_and_ids_are_read_as_they_were_written(name: str, number: int) -> None:
    ds = open_version(name, number)
    assert ds.fingerprint == FINGERPRINTS[name][number - 1]
    if name == "empty":
        assert (len(ds), ds.manifest.totals.rejects) == (0, 3)
        assert expected(name) == {}
        return
    arrays = expected(name)
    wanted = samples_of(arrays)[: len(ds)]
    if number == len(FINGERPRINTS[name]):
        assert len(ds) == len(arrays["keys"])
    codes = ds.codes(range(len(ds)))
    assert all(
        np.array_equal(got if len(wanted[0]) > 1 else got[None], want) for got, want in zip(codes, wanted, strict=True)
    )
    assert ds.table(["key"])["key"].to_pylist() == arrays["keys"][: len(ds)].tolist()
    assert ds.table(["label"])["label"].to_pylist() == arrays["labels"][: len(ds)].tolist()
    order = np.random.default_rng(0).permutation(len(ds))[:20]
    assert all(np.array_equal(ds[int(n)]["codes"], codes[n]) for n in order)
    assert [ds.index(key) for key in arrays["keys"][order]] == order.tolist()


@pytest.mark.parametrize("name", NAMES)
def test_every_set_passes_deep_verification(name: str) -> None:
    report = verify(Store(HERE / "sets" / name), deep=True)
    assert report.errors == report.notes == ()


def stored_batch(name: str, entry: ShardEntry, reader: ShardReader) -> TokenBatch:
    """The rows of a shard: ids from the expected arrays, sizes and user columns from the file."""
    arrays = expected(name)
    mine = np.isin(arrays["keys"], pq.read_table(reader.url, columns=[KEY])[KEY].to_pylist())
    ids = []
    for level, described in enumerate(open_version(name).manifest.code.levels):
        flat = arrays[f"codes_{level}"][np.repeat(mine, arrays["grids"].prod(axis=1))]
        flat = flat if described.remap is None else np.searchsorted(described.remap, flat)
        ids.append(flat.astype(np.uint16 if reader.columns.codes[level].alphabet <= 1 << 16 else np.int32))
    table = pa.concat_tables([reader.read_columns(g, reader.schema.names) for g in range(len(entry.row_groups))])
    coded = {KEY, *size_names(reader.columns, reader.schema), *(spec.column for spec in reader.columns.codes)}
    sizes = [table[extent].to_numpy() for extent in reader.columns.extents]
    return TokenBatch(
        keys=table[KEY].to_pylist(),
        sizes=np.stack(sizes, axis=1) if sizes else arrays["grids"][mine],
        ids=tuple(ids),
        raw_bytes=entry.raw_bytes,
        columns=table.select([column for column in table.column_names if column not in coded]),
    )


def decided(path: Path, entry: ShardEntry) -> dict[str, Any]:
    """What of a shard does not depend on the release of Arrow."""
    data, metadata = path.read_bytes(), pq.read_metadata(path)
    keys = {key: value for key, value in metadata.metadata.items() if key.startswith(b"tokenshard.")}
    lists = {spec["column"] for spec in json.loads(keys[b"tokenshard.columns"])["codes"] if spec["codec"] == "zstd"}
    names = code_names(len(entry.row_groups[0].codes))
    groups = []
    for number, group in enumerate(entry.row_groups):
        spans = [span for name, span in zip(names, group.codes, strict=True) if name not in lists]
        chunks = [metadata.row_group(number).column(place) for place in range(metadata.num_columns)]
        layout = [(c.path_in_schema, c.compression, set(c.encodings), c.is_stats_set) for c in chunks]
        groups.append((group.rows, [data[span.offset : span.offset + span.length] for span in spans], layout))
    return {"keys": keys, "groups": groups, "table": pq.read_table(path), "pages": metadata.format_version}


@pytest.mark.parametrize("name", FULL)
def test_the_same_ids_and_models_give_the_same_bytes(name: str, tmp_path: Path) -> None:
    ds, rewritten = open_version(name), []
    for number, (entry, path) in enumerate(shards(name)):
        reader = ds.reader(number)
        models = {sha256: (HERE / "sets" / name / f"models/{sha256}.tsm").read_bytes() for sha256 in ds.manifest.models}
        codecs = [load_codec(spec, models.get(spec.model or "")) for spec in reader.columns.codes]
        batch, copy = stored_batch(name, entry, reader), tmp_path / path.name
        assert batch.columns is not None
        writer = ShardWriter(
            copy, entry.path, reader.columns, codecs, reader.footer.tokenizer, batch.columns.schema, ROW_GROUP_BYTES
        )
        writer.append(batch)
        rewritten.append(writer.close())
        assert decided(copy, rewritten[-1]) == decided(path, entry)
        if pq.read_metadata(copy).created_by == pq.read_metadata(path).created_by:
            assert copy.read_bytes() == path.read_bytes()
            assert rewritten[-1] == entry
    if tuple(rewritten) == ds.manifest.shards:
        again = commit_manifest(Store(tmp_path), ds.manifest.model_copy(update={"shards": tuple(rewritten)}))
        assert again.fingerprint == FINGERPRINTS[name][-1]


def test_the_pinned_release_of_arrow_is_the_one_that_wrote_the_sets() -> None:
    """With another one the test above compares less: then add sets that this release wrote, and keep the old ones."""
    pinned = (HERE.parents[1] / "constraints.txt").read_text().split("pyarrow==")[1].split()[0]
    assert {pq.read_metadata(path).created_by for name in FULL for _, path in shards(name)} == {
        f"parquet-cpp-arrow version {pinned}"
    }


@pytest.mark.parametrize("name", NAMES)
def test_models_are_written_as_they_were_read(name: str) -> None:
    for path in (HERE / "sets" / name / "models").glob("*.tsm"):
        model = ContextModel.from_bytes(path.read_bytes())
        assert ContextModel.from_bytes(model.to_bytes()).header == model.header
        assert payload(model.to_bytes()) == payload(path.read_bytes())


def payload(model: bytes) -> tuple[bytes, bytes]:
    """Header and arrays of a model file: zstd may compress them otherwise one day."""
    import zstandard

    end = 16 + int.from_bytes(model[12:16], "little")
    return model[:end], zstandard.decompress(model[end:-32])


@pytest.mark.parametrize("name", FULL)
def test_entries_of_the_manifest_follow_from_the_shards(name: str) -> None:
    for entry, path in shards(name):
        with open(path, "rb") as file:
            assert describe_shard(file, entry.path) == entry


@pytest.mark.parametrize(("name", "number"), VERSIONS)
def test_the_reference_reader_gives_the_same_ids(name: str, number: int) -> None:
    manifest, samples = read_dataset(HERE / "sets" / name, number)
    assert manifest["fingerprint"] == FINGERPRINTS[name][number - 1]
    arrays = expected(name)
    wanted = samples_of(arrays)[: len(samples)] if arrays else []
    assert all(np.array_equal(sample.codes, want) for sample, want in zip(samples, wanted, strict=True))
    assert [sample.key for sample in samples] == arrays.get("keys", np.zeros(0))[: len(samples)].tolist()


def test_the_reference_reader_shares_nothing_with_the_package() -> None:
    for module in ("reference_reader", "reference_decoder"):
        tree = ast.parse((HERE.parent / f"{module}.py").read_text())
        imports = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        imports += [name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names]
        assert imports
        assert not any((name or "").startswith("tokenshard") for name in imports)


@pytest.mark.parametrize("name", ["levels-earlier", "grouped", "shard-list", "zstd"])
def test_the_reference_reader_finds_damage(name: str, tmp_path: Path) -> None:
    shutil.copytree(HERE / "sets" / name, tmp_path / name)
    for path in [path for folder in ("data", "models", "manifest") for path in (tmp_path / name).glob(f"{folder}/*")]:
        intact = path.read_bytes()
        path.write_bytes(intact[:-20] + bytes([intact[-20] ^ 1]) + intact[-19:])
        with pytest.raises((AssertionError, ValueError)):
            read_dataset(tmp_path / name)
        path.write_bytes(intact)
    read_dataset(tmp_path / name)


def read_duckdb(paths: list[str]) -> list[dict]:
    table = duckdb.sql(f"select * from read_parquet({paths}, union_by_name = true)")
    return [dict(zip(table.columns, row, strict=True)) for row in table.fetchall()]


def read_pandas(paths: list[str]) -> list[dict]:
    return pd.concat([pd.read_parquet(path) for path in paths]).to_dict("records")


def read_polars(paths: list[str]) -> list[dict]:
    return pl.concat([pl.read_parquet(path) for path in paths], how="diagonal").to_dicts()


def read_arrow(paths: list[str]) -> list[dict]:
    return pds.dataset(paths).to_table().to_pylist()


@pytest.mark.parametrize("read", [read_duckdb, read_pandas, read_polars, read_arrow])
@pytest.mark.parametrize("name", FULL)
def test_foreign_readers_see_counts_keys_labels_and_the_bytes_of_the_streams(name: str, read: Any) -> None:
    listed, arrays = shards(name), expected(name)
    found = {row["key"]: row for row in read([str(path) for _, path in listed])}
    rows = [found[key] for key in arrays["keys"].tolist()]
    assert len(rows) == len(found)
    sizes = arrays["grids"].prod(axis=1)
    assert [row["num_tokens"] for row in rows] == sizes.tolist()
    assert [row["label"] for row in rows] == arrays["labels"].tolist()
    manifest = open_version(name).manifest
    for level, spec in enumerate(manifest.code.columns):
        if spec.codec == "zstd":
            ids = np.split(arrays[f"codes_{level}"], np.cumsum(sizes)[:-1])
            assert [list(row[spec.column]) for row in rows] == [sample.tolist() for sample in ids]
            continue
        streams = b"".join(_listed_bytes(entry, path, level) for entry, path in listed)
        assert b"".join(bytes(row[spec.column]) for row in rows) == streams
        assert [len(row[spec.column]) for row in rows] == [row[length_name(spec)] for row in rows]


def _listed_bytes(entry: ShardEntry, path: Path, level: int) -> bytes:
    """The streams of a level as the manifest names them."""
    spans = [group.codes[level] for group in entry.row_groups]
    return b"".join(path.read_bytes()[span.offset : span.offset + span.length] for span in spans)


@pytest.mark.parametrize("name", FULL)
def test_sql_counts_sums_and_filters(name: str) -> None:
    paths, arrays = [str(path) for _, path in shards(name)], expected(name)
    label = int(arrays["labels"][0])
    sql = f"select count(*), sum(num_tokens), count(*) filter (label = {label}) from read_parquet({paths})"
    assert duckdb.sql(sql).fetchall() == [
        (len(arrays["keys"]), arrays["grids"].prod(axis=1).sum(), (arrays["labels"] == label).sum())
    ]


def test_user_columns_of_many_types_come_back_with_their_types() -> None:
    table = open_version("pack").table()
    types = {field.name: str(field.type) for field in table.schema}
    assert types | {
        "price": "decimal128(10, 2)", "time": "timestamp[us, tz=UTC]", "fixed": "fixed_size_binary[4]",
        "large": "uint64", "seen": "bool", "split": "string", "small": "int8", "day": "date32[day]",
    } == types  # fmt: skip
    some = table["caption"].to_pylist()
    assert None in some
    assert any(isinstance(text, str) and text.endswith("🖼") for text in some)
    assert pc.all(pc.equal(pc.is_valid(table["box"]), pc.is_valid(table["caption"]))).as_py()
    assert all(box["y"] == [box["x"], box["x"] + 1] for box in table["box"].to_pylist() if box is not None)


def test_rows_before_an_append_have_no_value_in_a_later_column() -> None:
    scores = open_version("appended").table(["score"])["score"].to_pylist()
    assert scores[:30] == [None] * 30
    assert None not in scores[30:]
    assert "score" not in open_version("appended", 1).schema.names


@pytest.mark.parametrize("name", ["pack", "zstd", "alphabet-65536", "rejects", "empty", "shard-list"])
def test_the_script_makes_the_sets_without_a_fitted_model_again(name: str, tmp_path: Path) -> None:
    [golden] = [golden for golden in SETS if golden.name == name]
    fingerprints, arrays = make(golden, tmp_path)
    saved = expected(name)
    assert all(np.array_equal(arrays[column], saved[column]) for column in saved)
    files = [path for path in (HERE / "sets" / name).rglob("*.parquet") if path.parent.name == "data"]
    made = {pq.read_metadata(path).created_by for path in tmp_path.rglob("data/*.parquet")}
    if made == {pq.read_metadata(path).created_by for path in files}:
        assert fingerprints == FINGERPRINTS[name]
