"""`verify` finds every kind of damage, names it, and never falls over."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tokenshard.shards.manifest import read_manifest
from tokenshard.shards.verify import verify
from tokenshard.store import Store

SHARD = "data/job-000000.parquet"


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("codecs", [("pack",), ("context", "zstd")])
def test_an_intact_dataset_is_ok_and_the_counts_say_what_was_checked(make_rows, make_dataset, codecs, deep) -> None:
    parts = [make_rows(100, codecs=codecs, varied=True, first=first) for first in (0, 100)]
    report = verify(make_dataset(*parts, rejects=3, row_group_bytes=2 << 10), deep=deep)
    assert report.errors == ()
    assert report.notes == ()
    assert report.ok
    assert (report.shards, report.samples, report.rejects) == (2, 200, 3)
    assert report.row_groups >= 2
    assert report.ids == sum(ids.size for rows in parts for ids in rows.batch.ids)


def test_every_flipped_bit_of_a_shard_is_reported(make_rows, make_dataset) -> None:
    store = make_dataset(make_rows(120, codecs=("pack", "zstd")), row_group_bytes=4 << 10)
    intact = store.read(SHARD)
    rng = np.random.default_rng(5)
    for place in rng.integers(0, len(intact), 150).tolist():
        damaged = bytearray(intact)
        damaged[place] ^= 1 << int(rng.integers(8))
        store.put(SHARD, bytes(damaged))
        report = verify(store, threads=1)
        assert not report.ok
        assert any(error.startswith(f"{store.url(SHARD)}: content differs") for error in report.errors)


def test_damaged_codes_are_named_by_file_row_group_and_rows(make_rows, make_dataset) -> None:
    store = make_dataset(make_rows(300), row_group_bytes=4 << 10)
    group = read_manifest(store).shards[0].row_groups[2]
    damaged = bytearray(store.read(SHARD))
    damaged[group.codes[0].offset + 5] ^= 4
    store.put(SHARD, bytes(damaged))
    report = verify(store)
    assert f"{store.url(SHARD)}: row group 2 (rows 128 to 191): codes damaged (checksum differs)" in report.errors
    assert len(report.errors) == 2


@pytest.mark.parametrize("length", [0, 4, 100, 5000, -1, -8])
def test_a_cut_off_shard_is_reported(make_rows, make_dataset, length) -> None:
    store = make_dataset(make_rows(300))
    store.put(SHARD, store.read(SHARD)[:length])
    report = verify(store)
    assert any(re.search(r"job-000000\.parquet: \d+ bytes instead of \d+", error) for error in report.errors)


def test_missing_files_are_reported_by_name(make_rows, make_dataset) -> None:
    store = make_dataset(make_rows(30, codecs=("context",)), rejects=1)
    manifest = read_manifest(store)
    [model] = manifest.models
    names = [SHARD, "rejects/job-000000.parquet", f"models/{model}.tsm"]
    for name in names:
        store.delete(name)
    report = verify(store)
    for name in names:
        assert any(error.startswith(f"{store.url(name)}: the file is missing") for error in report.errors), name


def test_a_key_that_occurs_twice_is_reported(make_rows, make_dataset) -> None:
    report = verify(make_dataset(make_rows(50), make_rows(50, first=49)))
    [error] = report.errors
    assert re.search(r"job-000001\.parquet: key 'img/000049.jpg' \(row 0\) occurs twice", error)


def test_rows_and_rejects_must_add_up_to_the_inputs(make_rows, make_dataset, change_manifest) -> None:
    store = make_dataset(make_rows(50), rejects=2)
    change_manifest(store, lambda document: document["jobs"][0].update(inputs=53))
    [error] = verify(store).errors
    assert "50 samples and 2 rejects from 53 inputs" in error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: [part.update(grid=[8, None]) for part in (d["code"], d["shards"][0])], "grid of the footer differs"),
        (lambda d: d["code"].update(grid=[8, 9]), "grid differs from the dataset's"),
        (lambda d: d["code"]["columns"][0].update(group=2), "code columns of the footer differ"),
        (lambda d: d["shards"][0].update(min_key="a"), "smallest and largest key differ"),
        (lambda d: d["tokenizer"].update(numerics="bf16"), "another tokenizer"),
        (lambda d: d["columns"].pop(), "column 'tags' is not in the manifest"),
        (lambda d: d["shards"][0]["row_groups"][0]["sizes"].update(length=10), "sizes damaged|byte ranges"),
    ],
)
def test_a_manifest_that_does_not_fit_the_files_is_reported(
    make_rows, make_dataset, change_manifest, change, message
) -> None:
    store = make_dataset(make_rows(50))
    change_manifest(store, change)
    report = verify(store)
    assert not report.ok
    assert any(re.search(message, error) for error in report.errors), report.errors


def test_files_no_manifest_lists_are_notes_not_errors(make_rows, make_dataset) -> None:
    store = make_dataset(make_rows(50))
    store.put("data/left-over.parquet", b"x")
    report = verify(store)
    assert report.ok
    assert report.notes == (
        f"{store.url('data/left-over.parquet')}: not part of this version (left by a stopped or another job)",
    )


def test_only_deep_verification_decodes_and_finds_streams_no_codec_accepts(
    make_rows, make_dataset, change_manifest
) -> None:
    rows = make_rows(64, alphabet=200)
    rows.batch.ids[0][:] = 199
    store = make_dataset(rows)
    before = store.read(SHARD)
    _replace_streams(store, change_manifest, b"\xff")
    assert store.read(SHARD) != before
    assert not any("alphabet" in error for error in verify(store).errors)
    assert any("row group 0 (rows 0 to 63)" in e and "alphabet" in e for e in verify(store, deep=True).errors)


def _replace_streams(store: Store, change_manifest, byte: bytes) -> None:
    """Overwrites all streams and makes every checksum of the manifest fit, as a buggy writer could."""
    import hashlib

    import xxhash

    chunk = read_manifest(store).shards[0].row_groups[0].codes[0]
    data = bytearray(store.read(SHARD))
    data[chunk.offset : chunk.offset + chunk.length] = byte * chunk.length
    store.put(SHARD, bytes(data))

    def fit(document: dict) -> None:
        shard = document["shards"][0]
        shard["sha256"] = hashlib.sha256(data).hexdigest()
        shard["row_groups"][0]["codes"][0]["xxh64"] = xxhash.xxh64(byte * chunk.length).hexdigest()

    change_manifest(store, fit)


def test_a_folder_without_a_dataset_is_a_report_not_an_exception(tmp_path) -> None:
    report = verify(Store(tmp_path))
    assert not report.ok
    assert "no token dataset here" in report.errors[0]
