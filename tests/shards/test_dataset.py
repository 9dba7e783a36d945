"""A dataset as users see it: by number, slice and key, from several threads, over several shards and versions."""

from __future__ import annotations

import dataclasses
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest

from tokenshard.errors import FormatError, ManifestConflict, SpecError
from tokenshard.shards.dataset import open_dataset
from tokenshard.shards.manifest import commit_manifest, read_manifest
from tokenshard.shards.rejects import read_rejects
from tokenshard.shards.stats import dataset_stats
from tokenshard.shards.verify import verify
from tokenshard.spec.manifest import ColumnEntry, Manifest, ShardEntry, Totals
from tokenshard.store import Store


def test_samples_come_back_by_number_from_the_front_and_the_back(make_rows, make_dataset) -> None:
    parts = [make_rows(90, first=0), make_rows(50, first=90)]
    ds = open_dataset(make_dataset(*parts, row_group_bytes=2 << 10).root)
    samples = [sample for rows in parts for sample in rows.samples()]
    assert len(ds) == 140
    for number in (0, 1, 89, 90, 139, -1, -140):
        got = ds[number]
        assert got["key"] == f"img/{number % 140:06d}.jpg"
        assert np.array_equal(got["codes"], samples[number])
        assert got["codes"].dtype == np.uint16
    rows = parts[1]
    assert ds[95]["label"] == rows.batch.columns["label"][5].as_py()
    assert ds[95]["tags"] == rows.batch.columns["tags"][5].as_py()
    assert (ds[95]["height"], ds[95]["width"]) == (32, 32)
    for number in (140, -141):
        with pytest.raises(IndexError, match="0 to 139"):
            ds[number]


@pytest.mark.parametrize("codecs", [("pack",), ("zstd",), ("context",), ("pack", "context", "zstd")])
def test_codes_of_a_fixed_grid_are_one_array_in_the_order_asked_for(make_rows, make_dataset, codecs) -> None:
    rows = make_rows(300, codecs=codecs)
    ds = open_dataset(make_dataset(rows, row_group_bytes=4 << 10).root)
    expected = np.stack(rows.samples())
    assert np.array_equal(ds.codes(range(300)), expected)
    wanted = np.random.default_rng(0).integers(-300, 300, 77)
    assert np.array_equal(ds.codes(wanted), expected[wanted])
    assert np.array_equal(np.concatenate(list(ds.iter_codes())), expected)
    assert ds.codes([]).shape == (0, *expected.shape[1:])
    assert np.array_equal(ds[7:11]["codes"], expected[7:11])
    assert ds[[5, 3]]["key"] == [rows.batch.keys[5], rows.batch.keys[3]]


@pytest.mark.parametrize("codecs", [("pack",), ("context", "zstd")])
def test_codes_of_varied_grids_are_a_list_of_arrays(make_rows, make_dataset, codecs) -> None:
    rows = make_rows(200, codecs=codecs, varied=True)
    ds = open_dataset(make_dataset(rows, row_group_bytes=4 << 10).root)
    expected = rows.samples()
    wanted = [150, 3, 3, 199, 0]
    assert all(map(np.array_equal, ds.codes(wanted), (expected[n] for n in wanted)))
    assert all(map(np.array_equal, (s for part in ds.iter_codes() for s in part), expected))


def test_short_samples_that_share_streams_decode_alone(make_rows, make_dataset) -> None:
    rows = make_rows(333, codecs=("context",), rank=1, varied=True, side=5, group=16)
    ds = open_dataset(make_dataset(rows, row_group_bytes=300).root)
    assert ds.num_row_groups > 2
    for number in (0, 15, 16, 200, 332):
        assert np.array_equal(ds[number]["codes"], rows.samples()[number])


def test_alphabets_above_65536_come_as_int32(make_rows, make_dataset) -> None:
    rows = make_rows(30, codecs=("pack", "zstd"), alphabet=200_000)
    codes = open_dataset(make_dataset(rows).root).codes(range(30))
    assert codes.dtype == np.int32
    assert np.array_equal(codes, np.stack(rows.samples()))


def test_a_key_leads_to_its_number(make_rows, make_dataset) -> None:
    ds = open_dataset(make_dataset(make_rows(90), make_rows(50, first=90), row_group_bytes=2 << 10).root)
    assert [ds.index(f"img/{n:06d}.jpg") for n in (0, 64, 89, 90, 139)] == [0, 64, 89, 90, 139]
    for missing in ("img/000140.jpg", "img/000050", ""):
        with pytest.raises(KeyError):
            ds.index(missing)


def test_the_table_has_every_column_but_the_codes_with_types_as_they_came(make_rows, make_dataset) -> None:
    rows = make_rows(90)
    ds = open_dataset(make_dataset(rows).root)
    table = ds.table()
    assert table.schema == ds.schema
    assert table.column_names == ["key", "num_tokens", "height", "width", "label", "caption", "split", "tags"]
    assert table.schema.field("split").type == pa.string()
    for name in ("label", "caption", "tags"):
        assert table[name].to_pylist() == rows.batch.columns[name].to_pylist()
        assert table.schema.field(name).type == rows.batch.columns.schema.field(name).type
    assert ds.table(["label", "key"]).column_names == ["label", "key"]
    with pytest.raises(SpecError, match="no column 'lable'; there are key, "):
        ds.table(["lable"])


def test_threads_and_pickled_copies_read_the_same(make_rows, make_dataset) -> None:
    rows = make_rows(400)
    ds = open_dataset(make_dataset(rows, row_group_bytes=4 << 10).root)
    copy = pickle.loads(pickle.dumps(ds))
    expected = np.stack(rows.samples())
    orders = [np.random.default_rng(n).permutation(400) for n in range(12)]
    with ThreadPoolExecutor(6) as threads:
        for order, got in zip(orders, threads.map(copy.codes, orders), strict=True):
            assert np.array_equal(got, expected[order])
    assert copy.fingerprint == ds.fingerprint


def test_stored_ids_are_mapped_back_to_tokenizer_ids(make_rows, make_dataset) -> None:
    rows = make_rows(40, alphabet=16)
    store = make_dataset(rows)
    manifest = read_manifest(store)
    remap = tuple(range(1000, 1016))
    level = manifest.code.levels[0].model_copy(update={"alphabet": 1024, "remap": remap})
    code = manifest.code.model_copy(update={"levels": (level,)})
    commit_manifest(store, manifest.model_copy(update={"version": 2, "code": code}))
    assert np.array_equal(open_dataset(store.root).codes([7])[0], rows.samples()[7] + 1000)


def test_the_tokenizer_in_the_dataset_is_checked_by_hash(make_rows, make_dataset) -> None:
    store = make_dataset(make_rows(5))
    ds = open_dataset(store.root)
    spec, weights = ds.tokenizer_files()
    assert spec.fingerprint == ds.manifest.tokenizer.fingerprint
    name = f"tokenizer/{spec.fingerprint}/model.safetensors"
    store.put(name, weights[:-1] + b"x")
    with pytest.raises(FormatError, match=rf"{spec.fingerprint}: weights differ"):
        ds.tokenizer_files()


def test_a_wrong_codec_model_is_refused(make_rows, make_dataset) -> None:
    store = make_dataset(make_rows(100, codecs=("context",)))
    [(sha256, size)] = read_manifest(store).models.items()
    data = bytearray(store.read(f"models/{sha256}.tsm"))
    assert len(data) == size
    data[-1] ^= 1
    store.put(f"models/{sha256}.tsm", bytes(data))
    with pytest.raises(FormatError, match=rf"models/{sha256}\.tsm: damaged"):
        open_dataset(store.root).codes([0])


def test_rejects_are_read_back(make_rows, make_dataset) -> None:
    store = make_dataset(make_rows(5), rejects=3)
    table = read_rejects(store, read_manifest(store))
    assert table["key"].to_pylist() == ["bad0", "bad1", "bad2"]
    assert table["error"].to_pylist() == ["OSError"] * 3


def test_a_dataset_in_memory_storage_works_alike(make_rows, make_dataset) -> None:
    works_alike("memory://shards-dataset-test", make_rows(60, codecs=("pack", "zstd")), make_dataset)


@pytest.mark.integration
def test_a_dataset_on_s3_works_alike(make_rows, make_dataset, s3_url) -> None:
    works_alike(s3_url, make_rows(60, codecs=("pack", "zstd")), make_dataset)


def works_alike(url: str, rows, make_dataset) -> None:
    local, remote = make_dataset(rows), Store(url)
    for entry in list(local.list()):
        remote.put(entry.name, local.read(entry.name))
    ds = open_dataset(url)
    assert np.array_equal(ds.codes(range(60)), np.stack(rows.samples()))
    assert ds.table() == open_dataset(local.root).table()
    assert ds.fingerprint == read_manifest(local).fingerprint
    assert verify(remote, deep=True).errors == ()
    with pytest.raises(ManifestConflict):
        commit_manifest(remote, ds.manifest)


def test_an_appended_shard_may_bring_a_new_column_that_is_null_for_older_rows(
    make_rows, make_dataset, make_shard, tmp_path
) -> None:
    rows, more = make_rows(30), make_rows(20, first=30)
    store = make_dataset(rows)
    wider = more.batch.columns.append_column("score", pa.array(np.arange(20.0)))
    more = dataclasses.replace(more, batch=dataclasses.replace(more.batch, columns=wider), user=wider.schema)
    entry = make_shard(more, path=tmp_path / "more.parquet", name="data/job2-000000.parquet")
    store.put(entry.path, tmp_path / "more.parquet")
    commit_manifest(
        store, appended(read_manifest(store), entry, ColumnEntry(name="score", type="double", role="metadata"))
    )
    ds = open_dataset(store.root)
    assert ds.table(["score"])["score"].to_pylist() == [None] * 30 + list(range(20))
    assert ds.table().num_rows == 50
    assert ds.schema == ds.table().schema
    assert pa.concat_tables(ds.iter_tables()) == ds.table()
    assert [table.num_rows for table in ds.iter_tables(["score"])] == [30, 20]
    with pytest.raises(SpecError, match="no column 'codes'; there are key, num_tokens"):
        next(ds.iter_tables(["codes"]))
    assert (ds[29]["score"], ds[35]["score"]) == (None, 5.0)
    assert [sample["score"] for sample in (ds[n] for n in (0, 49))] == [None, 19.0]
    assert verify(store).errors == ()


def appended(manifest: Manifest, entry: ShardEntry, column: ColumnEntry) -> Manifest:
    totals = manifest.totals
    sums = {
        "samples": totals.samples + entry.rows,
        "ids": totals.ids + entry.ids,
        "raw_bytes": totals.raw_bytes + entry.raw_bytes,
        "token_bytes": totals.token_bytes + entry.bytes,
    }
    job = manifest.jobs[0].model_copy(update={"id": "job2", "inputs": entry.rows})
    return manifest.model_copy(
        update={
            "version": 2,
            "parent": 1,
            "totals": totals.model_copy(update=sums),
            "shards": (*manifest.shards, entry),
            "jobs": (*manifest.jobs, job),
            "columns": (*manifest.columns, column),
        }
    )


def test_a_dataset_whose_inputs_were_all_rejected_is_empty_not_broken(make_rows, make_dataset) -> None:
    store = make_dataset(make_rows(5), rejects=2)
    manifest = read_manifest(store)
    totals = Totals(samples=0, ids=0, raw_bytes=0, token_bytes=0, rejects=2)
    jobs = (manifest.jobs[0].model_copy(update={"inputs": 2}),)
    commit_manifest(store, manifest.model_copy(update={"version": 2, "totals": totals, "shards": (), "jobs": jobs}))
    ds = open_dataset(store.root)
    assert len(ds) == 0
    assert ds.table().num_rows == 0
    assert len(ds.codes([])) == 0
    assert list(ds.iter_codes()) == []
    assert dataset_stats(ds)["num_samples"] == 0
    with pytest.raises(IndexError, match="empty"):
        ds[0]
    assert verify(store).ok


def test_the_first_batch_waits_for_no_library_that_reading_does_not_need(make_rows, make_dataset) -> None:
    store = make_dataset(make_rows(100), make_rows(20, first=100))
    program = (
        "import sys, tokenshard as ts; ts.open(sys.argv[1]).codes([0, 110]);"
        "print([m for m in ('pandas', 'torch', 'ray', 'faiss', 'sklearn') if m in sys.modules])"
    )
    command = [sys.executable, "-c", program, store.root]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"
