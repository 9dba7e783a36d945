"""Reads and commits manifests: the numbered documents that make a set of shard files a dataset.

A version is created once and never changed; the highest number wins. Readers check the document against its own
fingerprint before they believe a number in it. Of several writers of one version exactly one succeeds.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from tokenshard.errors import FormatError, ManifestConflict, SpecError
from tokenshard.parquet import open_parquet
from tokenshard.shards.bounds import REMEDY, check_manifest, damage_reported, require
from tokenshard.shards.limits import MAX_CHUNK_BYTES
from tokenshard.shards.schema import check_min_reader
from tokenshard.shards.shard_list import ShardList, canonical_rows
from tokenshard.spec.base import digest, digest_streamed
from tokenshard.spec.manifest import FORMAT, NOT_IN_FINGERPRINT, Manifest, ShardsFile
from tokenshard.store import Store

MAX_JSON_SHARDS = 1_000
"""Longer shard lists go into a Parquet file beside the JSON, which is read in columns."""
LIST_GROUP = 8_192
"""Shards in a row group of that file: what decoding takes beside its result does not grow with their number."""
_NAME = re.compile(r"manifest/(\d{8})\.json")


def manifest_name(version: int) -> str:
    return f"manifest/{version:08d}.json"


def list_versions(store: Store) -> list[int]:
    """Numbers of all committed versions, ascending; empty where there is no dataset."""
    matches = (_NAME.fullmatch(entry.name) for entry in store.list("manifest"))
    return sorted(int(match[1]) for match in matches if match)


def read_manifest(store: Store, version: int | None = None) -> Manifest:
    """The newest manifest, or the given version.

    Raises SpecError when there is no dataset or no such version, FormatError when the manifest is damaged or needs a
    newer tokenshard.
    """
    versions = list_versions(store)
    if not versions:
        raise SpecError(
            f"{store.root}: no token dataset here (no manifest/); give the folder a finished `tokenshard convert` "
            "wrote, or run the conversion again to complete it"
        )
    chosen = versions[-1] if version is None else version
    if chosen not in versions:
        raise SpecError(f"{store.root}: no version {chosen}; there are {', '.join(map(str, versions))}")
    name = manifest_name(chosen)
    with damage_reported(store.url(name)):
        document = _document(store, store.read(name))
        require(document.get("version") == chosen, f"says it is version {document.get('version')}")
        try:
            manifest = Manifest.model_validate(document)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise FormatError(f"{place}: {first['msg']}; {REMEDY}") from error
        check_manifest(manifest)
    return manifest


def commit_manifest(store: Store, manifest: Manifest, max_json_shards: int = MAX_JSON_SHARDS) -> Manifest:
    """Creates ``manifest.version`` and returns it with its fingerprint.

    Raises ManifestConflict when that version exists already: re-read, rebase and commit the next number.
    """
    manifest = manifest.model_copy(update={"shards_file": None})
    check_manifest(manifest)
    manifest = manifest.model_copy(update={"fingerprint": manifest.computed_fingerprint()})
    if len(manifest.shards) > max_json_shards:
        document = manifest.model_copy(update={"shards": ()}).model_dump(mode="json")
        document["shards_file"] = _put_shard_list(store, manifest).model_dump(mode="json")
    else:
        document = manifest.model_dump(mode="json")
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    if not store.put_if_absent(manifest_name(manifest.version), text.encode()):
        raise ManifestConflict(
            f"{store.url(manifest_name(manifest.version))}: version {manifest.version} was committed by another job; "
            "run the command again to add to the newest version"
        )
    return manifest


def _document(store: Store, data: bytes) -> dict[str, Any]:
    """The JSON document with its shard list filled in, checked for format, reader version and fingerprint."""
    try:
        document: dict[str, Any] = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"not valid JSON ({error}); {REMEDY}") from error
    require(isinstance(document, dict) and document.get("format") == FORMAT, "not a tokenshard manifest")
    min_reader = document.get("min_reader")
    if not isinstance(min_reader, int):
        raise FormatError("no min_reader")
    check_min_reader(min_reader)
    stated = document.get("fingerprint")
    # over the document as stored, not as parsed: fields of later versions count although this reader ignores them
    content = {name: value for name, value in document.items() if name not in NOT_IN_FINGERPRINT}
    if document.get("shards_file") is None:
        found = digest(content)
    else:
        table = _read_shard_list(store, ShardsFile.model_validate(document["shards_file"]))
        try:
            found = digest_streamed(content, "shards", canonical_rows(table))
        except TypeError as error:
            raise FormatError(f"its shard list holds values that JSON has not ({error}); {REMEDY}") from error
        document["shards"] = ShardList(table)
    require(found == stated, f"damaged (fingerprint differs); {REMEDY}")
    return document


def _put_shard_list(store: Store, manifest: Manifest) -> ShardsFile:
    file = io.BytesIO()
    table = ShardList.of(manifest.shards).table.combine_chunks()
    pq.write_table(table, file, row_group_size=LIST_GROUP, version="2.6", compression="zstd", write_page_checksum=True)
    data = file.getvalue()
    sha256 = hashlib.sha256(data).hexdigest()
    # named by content: after a crash between the two puts, the same version can be committed with another list
    path = f"manifest/{manifest.version:08d}-{sha256[:16]}.shards.parquet"
    store.put_if_absent(path, data)
    return ShardsFile(path=path, rows=table.num_rows, bytes=len(data), sha256=sha256)


def _read_shard_list(store: Store, listed: ShardsFile) -> pa.Table:
    require(
        re.fullmatch(r"manifest/\d{8}-[0-9a-f]{16}\.shards\.parquet", listed.path, re.ASCII) is not None,
        f"bad shard list path {listed.path!r}",
    )
    with damage_reported(store.url(listed.path)):
        require(listed.bytes <= MAX_CHUNK_BYTES, f"a shard list of {listed.bytes} bytes")
        data = store.read(listed.path, 0, listed.bytes + 1)
        require(hashlib.sha256(data).hexdigest() == listed.sha256, f"damaged (SHA-256 differs); {REMEDY}")
        file = open_parquet(pa.BufferReader(data))
        rows = file.metadata.num_rows
        require(rows == listed.rows, f"{rows} rows instead of {listed.rows}")
        groups = (file.read_row_group(number, use_threads=False) for number in range(file.num_row_groups))
        return pa.concat_tables([file.schema_arrow.empty_table(), *groups])
