"""Thousands of mutated footers, manifests and size columns: an error each time, never a crash, never a wrong id."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import xxhash

from tokenshard.errors import FormatError
from tokenshard.shards.dataset import open_dataset
from tokenshard.shards.manifest import read_manifest
from tokenshard.shards.reader import ShardReader
from tokenshard.store import Store

SHARD = "data/job-000000.parquet"
SEED = int(os.environ.get("TOKENSHARD_FUZZ_SEED", "13"))
HOSTILE = 300
"""Mutations a hostile part; raise both for a longer search."""


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """One of: flipped bits, overwritten bytes, a removed or repeated piece, a cut-off end."""
    out = bytearray(data)
    place, kind = int(rng.integers(len(out))), rng.integers(5)
    if kind == 0:
        for flip in rng.integers(0, len(out), rng.integers(1, 4)).tolist():
            out[flip] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        size = int(rng.integers(1, 9))
        out[place : place + size] = rng.bytes(size)
    elif kind == 2:
        del out[place : place + int(rng.integers(1, 20))]
    elif kind == 3:
        out[place:place] = out[place : place + int(rng.integers(1, 20))]
    else:
        del out[place:]
    return bytes(out)


def test_a_mutated_manifest_is_refused_or_means_the_same(make_rows, make_dataset) -> None:
    store = make_dataset(make_rows(40, codecs=("pack", "zstd")))
    intact, manifest = store.read("manifest/00000001.json"), read_manifest(store)
    expected = open_dataset(store.root).codes(range(40))
    rng, accepted = np.random.default_rng(11), 0
    for _ in range(1500):
        _overwrite(store, "manifest/00000001.json", mutated(intact, rng))
        try:
            found = read_manifest(store)
        except FormatError:
            continue
        accepted += 1
        assert found.model_copy(update={"source": manifest.source}) == manifest
    assert accepted < 300
    _overwrite(store, "manifest/00000001.json", intact)
    assert np.array_equal(open_dataset(store.root).codes(range(40)), expected)


def test_a_mutated_shard_never_gives_wrong_ids(make_rows, make_dataset) -> None:
    rows = make_rows(40, codecs=("pack", "zstd"), varied=True)
    store = make_dataset(rows)
    intact, entry = store.read(SHARD), read_manifest(store).shards[0]
    rng, refused = np.random.default_rng(12), 0
    for _ in range(1500):
        _overwrite(store, SHARD, mutated(intact, rng))
        try:
            got = ShardReader(store, entry, rows.codec).read_group(0).decode()
        except FormatError as error:
            refused += str(error).startswith(store.url(SHARD))
            continue
        assert all(map(np.array_equal, got, rows.batch.ids))
    assert refused > 700


def test_hostile_footers_with_fitting_checksums_are_errors_not_crashes(make_rows, make_dataset) -> None:
    rows = make_rows(40)
    store = make_dataset(rows)
    entry = read_manifest(store).shards[0]
    intact = store.read(SHARD)
    _survives(store, rows.codec, entry, intact, entry.footer.offset, len(intact) - 8, lambda chunk: {"footer": chunk})


def test_hostile_size_columns_with_fitting_checksums_are_errors_not_crashes(make_rows, make_dataset) -> None:
    rows = make_rows(40, varied=True)
    store = make_dataset(rows)
    entry = read_manifest(store).shards[0]
    [group] = entry.row_groups
    _survives(
        store,
        rows.codec,
        entry,
        store.read(SHARD),
        group.sizes.offset,
        group.sizes.offset + group.sizes.length,
        lambda chunk: {"row_groups": (group.model_copy(update={"sizes": chunk}),)},
    )


def _survives(store: Store, codec: Callable, entry, intact: bytes, start: int, end: int, change: Callable) -> None:
    """Mutates bytes [start, end) in place, refits the checksum in the entry, and reads everything."""
    rng = np.random.default_rng(SEED)
    listed = next(c for c in (entry.footer, entry.row_groups[0].sizes) if c.offset == start)
    for _ in range(HOSTILE):
        piece = mutated(intact[start:end], rng)[: end - start].ljust(end - start, b"\0")
        data = intact[:start] + piece + intact[end:]
        _overwrite(store, SHARD, data)
        checksum = xxhash.xxh64(data[listed.offset : listed.offset + listed.length]).hexdigest()
        fitting = entry.model_copy(
            update={
                **change(listed.model_copy(update={"xxh64": checksum})),
                "sha256": hashlib.sha256(data).hexdigest(),
            }
        )
        with contextlib.suppress(FormatError):
            reader = ShardReader(store, fitting, codec)
            assert len(reader.chunks) == 1
            reader.read_columns(0, reader.schema.names)
            assert len(reader.read_group(0).decode()[0]) <= fitting.ids


def _overwrite(store: Store, name: str, data: bytes) -> None:
    """Without the store's fsync: thousands of them would only test the disk."""
    with open(store.url(name), "wb") as file:
        file.write(data)


FUZZ = Path(__file__).parents[2] / "benchmarks" / "fuzz.py"


def fuzz(*arguments: str) -> tuple[int, dict]:
    command = [sys.executable, str(FUZZ), "--json", "--workers", "2", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_2000_mutations_of_golden_datasets_are_errors_or_change_nothing() -> None:
    """The first of the 100,000 that benchmarks/fuzz.py runs."""
    code, figures = fuzz("--mutations", "2000", "--seed", str(SEED))
    assert figures["violations"] == []
    assert code == 0
    assert figures["mutations"] == 2000
    assert set(figures["counts"]["file"]) == {"refused", "same"}
    assert all(counts["refused"] > sum(counts.values()) / 2 for counts in figures["counts"].values())


def test_a_worker_that_ends_is_a_violation(tmp_path: Path) -> None:
    code, figures = fuzz("--mutations", "2", "--sets", str(tmp_path / "none"))
    assert code == 1
    assert [reason for *_, reason in figures["violations"]] == ["the worker ended early with exit code 1"] * 2
