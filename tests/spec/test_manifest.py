"""The manifest's fingerprint: the same wherever a dataset lies and came from, another for any other content."""

from __future__ import annotations

from typing import Any

import pytest

from tokenshard.spec.codec import CodecSpec
from tokenshard.spec.manifest import (
    NOT_IN_FINGERPRINT,
    ChunkEntry,
    CodeEntry,
    ColumnEntry,
    JobEntry,
    LevelEntry,
    Manifest,
    RejectsEntry,
    RowGroupEntry,
    ShardEntry,
    ShardsFile,
    TokenizerEntry,
    Totals,
)

CHUNK = ChunkEntry(offset=4, length=40, xxh64="0" * 16)
SHARD = ShardEntry(
    path="data/j-00000000.parquet",
    rows=2,
    ids=32,
    bytes=900,
    raw_bytes=1000,
    sha256="5" * 64,
    min_key="a",
    max_key="b",
    grid=(4, 4),
    footer=CHUNK,
    row_groups=(RowGroupEntry(rows=2, sizes=CHUNK, codes=(CHUNK,)),),
)
MANIFEST = Manifest(
    version=1,
    kind="image",
    totals=Totals(samples=2, ids=32, raw_bytes=1000, token_bytes=900, rejects=1),
    code=CodeEntry(
        levels=(LevelEntry(alphabet=256, used=9),),
        grid=(4, 4),
        columns=(CodecSpec(column="codes", codec="pack", alphabet=256),),
    ),
    tokenizer=TokenizerEntry(fingerprint="f" * 16, numerics="integer"),
    columns=(ColumnEntry(name="key", type="string", role="key"),),
    source={"path": "/home/me/photos"},
    jobs=(JobEntry(id="j", spec_sha256="1" * 64, plan_sha256="2" * 64, units=1, inputs=3),),
    shards=(SHARD,),
    rejects=(RejectsEntry(path="rejects/j-00000000.parquet", rows=1, bytes=100, sha256="6" * 64),),
)
CHANGES: dict[str, Any] = {
    "format_version": 2,
    "min_reader": 2,
    "version": 2,
    "parent": 1,
    "kind": "generic",
    "totals": MANIFEST.totals.model_copy(update={"samples": 3}),
    "code": MANIFEST.code.model_copy(update={"neighbours": ("left",)}),
    "tokenizer": TokenizerEntry(fingerprint="f" * 16, numerics="bf16"),
    "models": {"7" * 64: 1000},
    "tables": {"6" * 64: 1000},
    "sidecars": {"grids/" + "7" * 64 + ".parquet": 1000},
    "columns": (),
    "preprocess": {"fit": "pad"},
    "jobs": (),
    "splits": {"train": 2},
    "shards": (SHARD.model_copy(update={"sha256": "8" * 64}),),
    "rejects": (),
    "removed": 4,
}
ELSEWHERE: dict[str, Any] = {
    "source": {"path": "s3://bucket/photos", "storage": {"endpoint_url": "http://host:9000"}},
    "shards_file": ShardsFile(path="manifest/00000001.parquet", rows=1, bytes=1, sha256="9" * 64),
    "fingerprint": "anything",
}


@pytest.mark.parametrize("field", CHANGES)
def test_the_fingerprint_changes_with_what_the_dataset_holds(field: str) -> None:
    changed = MANIFEST.model_copy(update={field: CHANGES[field]})
    assert changed.computed_fingerprint() != MANIFEST.computed_fingerprint()


@pytest.mark.parametrize("field", ELSEWHERE)
def test_the_fingerprint_ignores_where_the_dataset_came_from_and_how_its_list_is_stored(field: str) -> None:
    moved = MANIFEST.model_copy(update={field: ELSEWHERE[field]})
    assert moved != MANIFEST
    assert moved.computed_fingerprint() == MANIFEST.computed_fingerprint()


def test_every_field_is_either_in_the_fingerprint_or_not() -> None:
    assert set(ELSEWHERE) == set(NOT_IN_FINGERPRINT)
    assert set(CHANGES) | set(ELSEWHERE) | {"format"} == set(Manifest.model_fields)


def test_a_manifest_read_back_from_json_has_the_same_fingerprint() -> None:
    assert Manifest.model_validate_json(MANIFEST.model_dump_json()).computed_fingerprint() == (
        MANIFEST.computed_fingerprint()
    )


def test_fields_of_a_later_version_are_ignored() -> None:
    later = {**MANIFEST.model_dump(mode="json"), "colour": "blue"}
    assert Manifest.model_validate(later) == MANIFEST
