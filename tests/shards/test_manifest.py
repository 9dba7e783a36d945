"""Manifests: one winner a version, believed only when intact, readable by older and newer programs."""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tokenshard.errors import FormatError, ManifestConflict, SpecError
from tokenshard.shards.bounds import check_manifest
from tokenshard.shards.dataset import Dataset
from tokenshard.shards.manifest import (
    MAX_JSON_SHARDS,
    commit_manifest,
    list_versions,
    read_manifest,
)
from tokenshard.shards.shard_list import (
    DELETED,
    SHARD_LIST,
    ShardList,
    chunk_lengths,
    distinct_paths,
    group_counts,
    group_rows,
    holding,
    numbers,
    with_deleted,
)
from tokenshard.spec.base import digest
from tokenshard.spec.manifest import NOT_IN_FINGERPRINT, Manifest, ShardEntry, canonical_shards
from tokenshard.store import Store


def test_a_committed_manifest_is_read_back_with_its_fingerprint(make_rows, make_dataset) -> None:
    store = make_dataset(make_rows(20), make_rows(30, first=20), rejects=2)
    manifest = read_manifest(store)
    assert manifest.totals.samples == 50
    assert manifest.fingerprint == manifest.computed_fingerprint()
    assert list_versions(store) == [1]


def test_the_fingerprint_ignores_where_the_inputs_came_from_and_nothing_else(make_rows, make_dataset) -> None:
    manifest = read_manifest(make_dataset(make_rows(20)))
    other = {"source": {"root": "elsewhere"}, "fingerprint": ""}
    assert manifest.model_copy(update=other).computed_fingerprint() == manifest.fingerprint
    for change in ({"preprocess": {"resize": 64}}, {"kind": "video"}, {"parent": 7}, {"shards": ()}):
        assert manifest.model_copy(update=change).computed_fingerprint() != manifest.fingerprint


def test_no_dataset_and_no_such_version_are_explained(make_rows, make_dataset, tmp_path) -> None:
    with pytest.raises(SpecError, match=rf"{tmp_path}/nothing: no token dataset here.*tokenshard convert"):
        read_manifest(Store(tmp_path / "nothing"))
    with pytest.raises(SpecError, match="no version 9; there are 1"):
        read_manifest(make_dataset(make_rows(5)), version=9)


def test_the_highest_version_wins_and_older_ones_stay_readable(make_rows, make_dataset) -> None:
    store = make_dataset(make_rows(20))
    first = read_manifest(store)
    second = commit_manifest(store, first.model_copy(update={"version": 2, "parent": 1, "kind": "generic"}))
    assert read_manifest(store) == second
    assert read_manifest(store, version=1) == first


def test_a_version_is_committed_once_and_the_loser_is_told(make_rows, make_dataset) -> None:
    store = make_dataset(make_rows(20))
    manifest = read_manifest(store)
    with pytest.raises(ManifestConflict, match=r"00000001\.json: version 1 was committed by another job"):
        commit_manifest(store, manifest.model_copy(update={"kind": "video"}))
    assert read_manifest(store) == manifest


def _race(root: str, versions: int, me: int, barrier, wins) -> None:
    store = Store(root)
    manifest = read_manifest(store, version=1)
    for version in range(2, versions + 2):
        barrier.wait()
        try:
            commit_manifest(store, manifest.model_copy(update={"version": version, "source": {"writer": me}}))
            wins.put((version, me))
        except ManifestConflict:
            pass


def test_of_eight_racing_processes_exactly_one_commits_each_version(make_rows, make_dataset) -> None:
    store, versions = make_dataset(make_rows(20)), 200
    context = multiprocessing.get_context("fork")
    barrier, wins = context.Barrier(8), context.Queue()
    writers = [context.Process(target=_race, args=(store.root, versions, me, barrier, wins)) for me in range(8)]
    for writer in writers:
        writer.start()
    won = dict(wins.get(timeout=60) for _ in range(versions))
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    assert wins.empty()
    assert sorted(won) == list(range(2, versions + 2))
    for version, me in won.items():
        assert read_manifest(store, version).source == {"writer": me}


def test_a_manifest_for_a_newer_reader_is_refused_with_the_remedy(make_rows, make_dataset, change_manifest) -> None:
    store = make_dataset(make_rows(20))
    change_manifest(store, lambda document: document.update(min_reader=4, unheard_of={"a": 1}))
    with pytest.raises(FormatError, match=r"00000001\.json: needs .* shard format 4, .* up to 3; upgrade"):
        read_manifest(store)


def test_fields_of_later_minor_versions_are_ignored_but_still_protected(
    make_rows, make_dataset, change_manifest
) -> None:
    store = make_dataset(make_rows(20))

    def add(document: dict) -> None:
        document["later"] = [1, 2]
        document["shards"][0]["later"] = "x"
        document["code"]["columns"][0]["later"] = None

    change_manifest(store, add)
    assert read_manifest(store).totals.samples == 20
    document = json.loads(store.read("manifest/00000001.json"))
    document["later"] = [1, 3]
    store.put("manifest/00000001.json", json.dumps(document).encode())
    with pytest.raises(FormatError, match="fingerprint"):
        read_manifest(store)


def _listed(**change: object) -> Callable[[dict], None]:
    """A shard list in a file of its own."""
    listed = {"path": f"manifest/00000001-{16 * '0'}.shards.parquet", "rows": 1, "bytes": 1, "sha256": "0"}
    return lambda document: document.update(shards_file=listed | change)


def _many_ids(document: dict) -> None:
    """2^30 ids a sample, as all numbers of the manifest say."""
    ids = document["totals"]["samples"] << 30
    for part in (document["code"], document["shards"][0]):
        part["grid"] = [1 << 15, 1 << 15]
    document["totals"]["ids"] = document["shards"][0]["ids"] = ids


def _far_apart(document: dict) -> None:
    """Ranges of a file that claims to be huge, with most of it between them."""
    shard = document["shards"][0]
    shard["row_groups"][0]["codes"][0]["offset"] += 1 << 40
    shard["footer"]["offset"] += 1 << 41
    shard["bytes"] += 1 << 41


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["shards"][0].update(path="data/../../etc/passwd"), "not below data/"),
        (lambda d: d["shards"][0].update(path="/etc/passwd"), "not below data/"),
        (lambda d: d["totals"].update(samples=21), "totals.samples is 21"),
        (lambda d: d["shards"][0].update(rows=-1), "shards.0.rows"),
        (lambda d: d["shards"][0]["row_groups"][0].update(rows=1 << 40), "rows do not add up"),
        (lambda d: d["shards"][0]["row_groups"][0]["codes"][0].update(length=1 << 50), "chunk of"),
        (lambda d: d["shards"][0]["row_groups"][0]["codes"][0].update(offset=0), "out of order"),
        (lambda d: d["shards"][0]["row_groups"][0]["sizes"].update(offset=-(1 << 40)), "offset"),
        (lambda d: d["shards"].append(d["shards"][0]), "listed twice"),
        (lambda d: d["code"].update(grid=[8, 8, 8, 8]), "4 axes"),
        (lambda d: d["code"].update(grid=[8, 1 << 53]), "impossible size"),
        (lambda d: d["code"].update(grid=[8, 9]), "grid differs from the dataset's"),
        (lambda d: [part.update(grid=[8, 9]) for part in (d["code"], d["shards"][0])], "1280 ids are not those of"),
        (_many_ids, "ids a level in a row group"),
        (lambda d: d["code"]["levels"][0].update(alphabet=300), "differs from that of its level"),
        (lambda d: d["code"]["levels"][0].update(remap=[0] * 255), "255 remapped ids for an alphabet of 256"),
        (lambda d: d["code"]["levels"][0].update(remap=[-1] * 256), "outside its level's alphabet"),
        (lambda d: d["code"]["levels"][0].update(remap=[256] * 256), "outside its level's alphabet"),
        (lambda d: d["code"]["levels"][0].update(alphabet=1 << 40, remap=[0] * 256), "tokenizer ids"),
        (_far_apart, "row group of"),
        (lambda d: d["shards"][0].update(bytes=1 << 63), "a shard of 9223372036854775808 bytes"),
        (lambda d: d["rejects"][0].update(bytes=1 << 64), "a rejects file of 18446744073709551616 bytes"),
        (_listed(bytes=1 << 64), "a shard list of"),
        (
            lambda d: d.update(shards_file={"path": "manifest/..", "rows": 1, "bytes": 1, "sha256": ""}),
            "bad shard list",
        ),
        (lambda d: d["models"].update({"../../x": 5}), "not a SHA-256"),
        (lambda d: d["models"].update({"a" * 64: 1 << 40}), "at most"),
        (lambda d: d["tokenizer"].update(fingerprint="../x"), "fingerprint"),
        (lambda d: d.pop("shards"), "shards: Field required"),
        (lambda d: d.update(version=2), "says it is version 2"),
        (lambda d: d.update(format="other"), "not a tokenshard manifest"),
    ],
)
def test_a_manifest_that_contradicts_itself_or_the_limits_is_refused(
    make_rows, make_dataset, change_manifest, change, message
) -> None:
    store = make_dataset(make_rows(20), rejects=1)
    change_manifest(store, change)
    with pytest.raises(FormatError, match=f"00000001.*: .*{message}"):
        read_manifest(store)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"format": NaN}'])
def test_a_manifest_that_is_no_json_is_refused(make_rows, make_dataset, text) -> None:
    store = make_dataset(make_rows(5))
    store.put("manifest/00000001.json", text)
    with pytest.raises(FormatError, match=r"00000001\.json: "):
        read_manifest(store)


def test_a_long_shard_list_lies_in_a_parquet_file_with_the_same_fingerprint(make_rows, make_dataset, tmp_path) -> None:
    parts = [make_rows(40, first=40 * n, codecs=("pack", "zstd"), varied=True) for n in range(3)]
    manifest = read_manifest(make_dataset(*parts, row_group_bytes=1 << 10))
    assert MAX_JSON_SHARDS == 1_000
    store = Store(tmp_path / "long")
    committed = commit_manifest(store, manifest, max_json_shards=2)
    document = json.loads(store.read("manifest/00000001.json"))
    assert document["shards"] == []
    again = read_manifest(store)
    assert again.shards_file is not None
    assert again.model_copy(update={"shards_file": None}) == committed == manifest
    listed = store.read(again.shards_file.path)
    store.put(again.shards_file.path, listed[:-20])
    with pytest.raises(FormatError, match=r"shards\.parquet: damaged"):
        read_manifest(store)


def test_a_shard_list_with_values_that_json_has_not_is_refused(
    make_rows, make_dataset, change_manifest, tmp_path
) -> None:
    manifest = read_manifest(make_dataset(make_rows(40)))
    store = Store(tmp_path / "long")
    commit_manifest(store, manifest, max_json_shards=0)
    listed = json.loads(store.read("manifest/00000001.json"))["shards_file"]
    table = pq.read_table(io.BytesIO(store.read(listed["path"])))
    place = table.schema.get_field_index("sha256")
    file = io.BytesIO()
    pq.write_table(table.set_column(place, "sha256", table["sha256"].cast(pa.binary())), file)
    data = file.getvalue()
    store.put(listed["path"], data)
    sums = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    change_manifest(store, lambda document: document["shards_file"].update(sums))
    with pytest.raises(FormatError, match=r"00000001\.json: its shard list holds values that JSON has not"):
        read_manifest(store)


def test_the_parquet_shard_list_has_every_field_of_an_entry() -> None:
    assert [*SHARD_LIST.names, DELETED.name] == list(ShardEntry.model_fields)


def test_a_crash_before_the_manifest_leaves_no_dataset(make_rows, make_dataset, tmp_path: Path) -> None:
    store = make_dataset(make_rows(20))
    store.delete("manifest/00000001.json")
    with pytest.raises(SpecError, match="no token dataset here"):
        read_manifest(store)


# -- shard lists in columns ------------------------------------------------------------------------------------------


@pytest.fixture
def listed(make_rows, make_dataset, tmp_path) -> Store:
    """A dataset whose shard list is a Parquet file."""
    parts = [make_rows(40, first=40 * n, codecs=("pack", "pack")) for n in range(4)]
    store = make_dataset(*parts, row_group_bytes=1 << 10)
    manifest = read_manifest(store)
    store.delete("manifest/00000001.json")
    commit_manifest(store, manifest, max_json_shards=2)
    return store


def test_a_listed_manifest_says_of_its_shards_what_the_json_says(listed: Store, tmp_path) -> None:
    manifest = read_manifest(listed)
    shards = manifest.shards
    assert isinstance(shards, ShardList)
    entries = tuple(shards)
    assert (len(shards), shards[1], shards[-1], shards[1:3]) == (4, entries[1], entries[3], entries[1:3])
    assert ShardList.of(entries) == shards == pickle.loads(pickle.dumps(shards)) == entries
    plain = manifest.model_copy(update={"shards": entries, "shards_file": None})
    assert plain.computed_fingerprint() == manifest.computed_fingerprint() == manifest.fingerprint
    assert Manifest.model_validate_json(manifest.model_dump_json()).shards == entries
    for bulk in (group_counts, group_rows, distinct_paths, lambda s: numbers(s, "ids"), lambda s: chunk_lengths(s, 2)):
        assert np.array_equal(bulk(shards), bulk(entries))
    for key in ("", entries[2].min_key, entries[2].max_key, "~"):
        assert holding(shards, key) == holding(entries, key)
    with pytest.raises(IndexError):
        shards[4]


def test_a_listed_dataset_gives_the_same_samples(listed: Store) -> None:
    manifest = read_manifest(listed)
    one, other = Dataset(listed, manifest), Dataset(listed, manifest.model_copy(update={"shards": (*manifest.shards,)}))
    assert len(one) == len(other) == 160
    key = one.table(["key"])["key"][90].as_py()
    assert one.index(key) == other.index(key) == 90
    assert np.array_equal(one.codes(range(160)), other.codes(range(160)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(path="data/../../etc/passwd"), "not below data/"),
        (lambda s: s.update(path="/etc/passwd"), "not below data/"),
        (lambda s: s.update(path="data/x\\..\\y"), "not below data/"),
        (lambda s: s.update(rows=-1), "rows"),
        (lambda s: s.update(rows=41), "rows do not add up"),
        (lambda s: s.update(ids=s["ids"] + 1), "ids are not those of"),
        (lambda s: s.update(raw_bytes=-1), "raw_bytes"),
        (lambda s: s.update(grid=[8]), "1 axes instead of 2"),
        (lambda s: s.update(grid=[8, 9]), "grid differs from the dataset's"),
        (lambda s: s["footer"].update(length=1 << 40), "footer of"),
        (lambda s: s["footer"].update(offset=(1 << 63) - 1), "footer is not at the end"),
        (lambda s: s["row_groups"][0].update(rows=1 << 40), "rows do not add up"),
        (lambda s: s["row_groups"][0]["codes"].pop(), "1 code chunks for 2 levels"),
        (lambda s: s["row_groups"][0]["codes"][0].update(length=1 << 50), "chunk of"),
        (lambda s: s["row_groups"][0]["codes"][1].update(offset=0), "out of order"),
        (lambda s: s["row_groups"][0]["sizes"].update(offset=-(1 << 40)), "offset"),
        (lambda s: s["row_groups"][0]["sizes"].update(offset=(1 << 63) - 1), "out of order"),
        (lambda s: s["row_groups"][0]["sizes"].update(xxh64=None), "xxh64"),
        (lambda s: s.update(path="data/" + s["path"].split("/")[1].replace("2", "1")), "listed twice"),
    ],
)
def test_a_listed_shard_that_breaks_a_rule_is_refused_as_in_json(listed: Store, change, message) -> None:
    manifest = read_manifest(listed)
    rows = [shard.model_dump(mode="json") for shard in manifest.shards]
    change(rows[2])
    shards = ShardList(pa.Table.from_pylist(rows, schema=SHARD_LIST))
    with pytest.raises((FormatError, ValueError), match=message):
        check_manifest(manifest.model_copy(update={"shards": shards}))
    check_manifest(manifest)


def test_what_later_versions_add_to_a_shard_list_is_left_out_but_protected(listed: Store, change_manifest) -> None:
    before = read_manifest(listed)
    document = json.loads(listed.read("manifest/00000001.json"))
    rows = pq.read_table(io.BytesIO(listed.read(document["shards_file"]["path"]))).to_pylist()
    for number, row in enumerate(rows):
        row |= {"later": [number, None], "note": 'a "quoted"\n'}
        row["footer"]["later"] = {"b": True, "a": number / 3}
        row["row_groups"][0]["codes"][0]["later"] = "ü"
    content = {name: value for name, value in document.items() if name not in NOT_IN_FINGERPRINT}
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file)
    stored = pq.read_table(io.BytesIO(file.getvalue())).to_pylist()
    listed.put(path := document["shards_file"]["path"], file.getvalue())
    document["shards_file"] |= {"bytes": len(file.getvalue()), "sha256": hashlib.sha256(file.getvalue()).hexdigest()}
    document["fingerprint"] = digest(content | {"shards": stored})
    listed.put("manifest/00000001.json", json.dumps(document).encode())
    assert read_manifest(listed).shards == before.shards
    assert path == before.shards_file.path
    document["fingerprint"] = digest(content | {"shards": stored[::-1]})
    listed.put("manifest/00000001.json", json.dumps(document).encode())
    with pytest.raises(FormatError, match="fingerprint"):
        read_manifest(listed)


def test_deleted_rows_of_a_listed_shard_are_those_of_its_entry(listed: Store, tmp_path: Path) -> None:
    manifest = read_manifest(listed)
    entries = list(manifest.shards)
    assert ShardList.of(entries).table.schema == SHARD_LIST
    entries[2] = entries[2].model_copy(update={"deleted": ((0, 3), (5, 6))})
    some = ShardList.of(entries)
    assert [some[number] for number in range(4)] == list(some) == entries
    assert (some.num_deleted, with_deleted(some), with_deleted(entries)) == (4, [2], [2])
    assert some != manifest.shards
    assert b"".join(some.canonical_json()) == b"".join(canonical_shards(entries))
    changed = manifest.model_copy(update={"version": 2, "min_reader": 2, "shards": tuple(entries), "shards_file": None})
    commit_manifest(listed, changed, max_json_shards=2)
    reread = read_manifest(listed)
    assert isinstance(reread.shards, ShardList)
    assert (reread.shards, reread.num_samples, len(Dataset(listed, reread))) == (some, 156, 156)
    entries[2] = entries[2].model_copy(update={"deleted": ((0, 41),)})
    with pytest.raises(FormatError, match="deleted rows out of order"):
        check_manifest(manifest.model_copy(update={"shards": ShardList.of(entries)}))
