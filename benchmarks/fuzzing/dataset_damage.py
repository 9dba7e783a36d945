"""Damages the files of a dataset: as they lie there, or with every checksum made to fit again."""

from __future__ import annotations

import copy
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from fuzzing.mutated import change_value, mutated
from tokenshard.shards.describe import describe_shard
from tokenshard.shards.schema import ShardFooter
from tokenshard.shards.writer import parquet_options
from tokenshard.spec.base import digest


class Copy:
    """A dataset that may be damaged, and can be restored."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.intact = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
        self._changed: set[Path] = set()
        manifests = [path for path in self.intact if path.parent.name == "manifest" and path.suffix == ".json"]
        self.manifest = manifests[-1]
        self.read_files = [path for path in self.intact if path not in manifests[:-1]]
        """all but older versions"""
        self._document: dict[str, Any] = json.loads(self.intact[self.manifest])
        if listed := self._document["shards_file"]:
            self._document |= {"shards": pq.read_table(folder / listed["path"]).to_pylist(), "shards_file": None}

    @property
    def has_list(self) -> bool:
        """Whether :func:`damage_list` finds something."""
        stored = json.loads(self.intact[self.manifest])
        return bool(stored["shards_file"] or stored["rejects"])

    def document(self) -> dict[str, Any]:
        """The newest manifest, its shard list filled in."""
        return copy.deepcopy(self._document)

    def write(self, path: Path, data: bytes | None) -> None:
        """Changes a file, or removes it."""
        self._changed.add(path)
        if data is None:
            path.unlink()
        else:
            path.write_bytes(data)

    def write_manifest(self, document: dict[str, Any]) -> None:
        """With a fingerprint that fits."""
        content = {k: v for k, v in document.items() if k not in ("source", "shards_file", "fingerprint")}
        if document.get("shards_file"):
            content["shards"] = self._document["shards"]
        self.write(self.manifest, json.dumps(document | {"fingerprint": digest(content)}).encode())

    def write_shard(self, document: dict[str, Any], shard: dict[str, Any], data: bytes) -> None:
        """With checksums in its manifest entry that fit."""
        self.write(self.folder / shard["path"], data)
        shard["sha256"] = hashlib.sha256(data).hexdigest()
        groups = shard["row_groups"]
        for span in (shard["footer"], *(span for group in groups for span in (group["sizes"], *group["codes"]))):
            span["xxh64"] = xxhash.xxh64(data[span["offset"] : span["offset"] + span["length"]]).hexdigest()
        self.write_manifest(document)

    def restore(self) -> None:
        for path in self._changed:
            path.write_bytes(self.intact[path])
        self._changed.clear()


def damage_file(rng: np.random.Generator, files: Copy) -> None:
    """Changes a file, or removes one that is not the newest manifest: without it the version before is the dataset."""
    path = files.read_files[rng.integers(len(files.read_files))]
    removed = path != files.manifest and rng.random() < 0.02
    files.write(path, None if removed else mutated(files.intact[path], rng))


def damage_manifest(rng: np.random.Generator, files: Copy) -> None:
    document = files.document()
    for _ in range(rng.integers(1, 3)):
        change_value(rng, document)
    files.write_manifest(document)


def damage_footer(rng: np.random.Generator, files: Copy) -> None:
    document, shard, data = _pick_shard(rng, files)
    start = shard["footer"]["offset"]
    footer = data[start:-8]
    if rng.random() < 0.4:
        footer = _other_key_values(rng, footer)
    else:
        footer = mutated(footer, rng, keep_length=bool(rng.random() < 0.7))
    changed = data[:start] + footer + len(footer).to_bytes(4, "little") + b"PAR1"
    document["totals"]["token_bytes"] += len(changed) - len(data)
    shard["bytes"], shard["footer"]["length"] = len(changed), len(footer) + 8
    files.write_shard(document, shard, changed)


def damage_columns(rng: np.random.Generator, files: Copy) -> None:
    """Sizes, or anything before the footer: keys, user columns, page headers, page index."""
    document, shard, data = _pick_shard(rng, files)
    sizes = _pick_group(rng, shard)["sizes"]
    start, end = sizes["offset"], sizes["offset"] + sizes["length"]
    if rng.random() < 0.4:
        start, end = 4, shard["footer"]["offset"]
    files.write_shard(document, shard, data[:start] + mutated(data[start:end], rng, True) + data[end:])


def damage_stored_stream(rng: np.random.Generator, files: Copy) -> None:
    document, shard, data = _pick_shard(rng, files)
    codes = _pick_group(rng, shard)["codes"]
    span = codes[rng.integers(len(codes))]
    start, end = span["offset"], span["offset"] + span["length"]
    files.write_shard(document, shard, data[:start] + mutated(data[start:end], rng, True) + data[end:])


def damage_values(rng: np.random.Generator, files: Copy) -> None:
    """Numbers, streams or lists of ids that a wrong writer would write, in a shard that is right in all else."""
    document, shard, data = _pick_shard(rng, files)
    table, stored = pq.read_table(io.BytesIO(data)), pq.read_metadata(io.BytesIO(data)).metadata
    columns = ShardFooter.parse(stored).columns
    last = table.schema.get_field_index(columns.codes[-1].column)
    for _ in range(rng.integers(1, 3)):
        place = int(rng.integers(1, last + 1))
        field, values = table.schema.field(place), table.column(place).to_pylist()
        row = int(rng.integers(len(values)))
        values[row] = _other_value(rng, values[row], field.type)
        table = table.set_column(place, field, pa.array(values, field.type))
        if pa.types.is_binary(field.type) and rng.random() < 0.8:  # the length then fits, the stream alone is wrong
            place = table.schema.get_field_index(field.name.replace("codes", "code_len"))
            lengths = pa.array([len(stream) for stream in values], pa.int32())
            table = table.set_column(place, table.schema.field(place), lengths)
    file, path = io.BytesIO(), files.folder / shard["path"]
    with pq.ParquetWriter(file, table.schema, **parquet_options(table.schema, columns)) as writer:
        first = 0
        for group in shard["row_groups"]:
            writer.write_table(table.slice(first, group["rows"]), row_group_size=group["rows"])
            first += group["rows"]
        writer.add_key_value_metadata({k: v for k, v in stored.items() if k.startswith(b"tokenshard.")})
    entry = describe_shard(file, str(path)).model_dump(mode="json")
    document["totals"]["token_bytes"] += entry["bytes"] - shard["bytes"]
    shard |= entry | {"path": shard["path"]}
    files.write_shard(document, shard, file.getvalue())


def damage_list(rng: np.random.Generator, files: Copy) -> None:
    """The Parquet file that lists the shards of a long manifest, or one of the rejects."""
    document = json.loads(files.intact[files.manifest])
    listed = document["shards_file"] or document["rejects"][0]
    data = mutated(files.intact[files.folder / listed["path"]], rng)
    files.write(files.folder / listed["path"], data)
    listed |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    files.write_manifest(document)


def _other_value(rng: np.random.Generator, value: Any, kind: pa.DataType) -> Any:
    if pa.types.is_binary(kind):
        return mutated(value, rng)
    if pa.types.is_integer(kind):
        return min(int(rng.choice([-1, 0, 1, value + 1, value + 2, 65_536, 2**31 - 1])), 2**31 - 1)
    limit = 2**kind.value_type.bit_width - 1
    ids = [*value, int(rng.choice([0, 1, limit]))] if rng.random() < 0.5 else value[:-1]
    return [limit if rng.random() < 0.05 else i for i in ids]


def _other_key_values(rng: np.random.Generator, footer: bytes) -> bytes:
    """One of the JSON key-values changed where it lies, filled up with spaces to its length."""
    places = [at for key in (b"columns", b"tokenizer", b"totals") if (at := footer.find(b"tokenshard." + key)) >= 0]
    start = footer.index(b"{", places[rng.integers(len(places))])
    document, length = json.JSONDecoder().raw_decode(footer[start:].decode(errors="replace"))
    change_value(rng, document)
    changed = json.dumps(document, separators=(",", ":")).encode()
    return footer[:start] + changed.ljust(length) + footer[start + length :] if len(changed) <= length else footer


DAMAGES: dict[str, Callable[[np.random.Generator, Copy], None]] = {
    "file": damage_file,
    "manifest": damage_manifest,
    "footer": damage_footer,
    "columns": damage_columns,
    "values": damage_values,
    "stored stream": damage_stored_stream,
    "list": damage_list,
}


def _pick_shard(rng: np.random.Generator, files: Copy) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """(document, the entry in it of one of its shards, the content of that shard)"""
    document = files.document()
    shard = document["shards"][rng.integers(len(document["shards"]))]
    return document, shard, files.intact[files.folder / shard["path"]]


def _pick_group(rng: np.random.Generator, shard: dict[str, Any]) -> dict[str, Any]:
    group: dict[str, Any] = shard["row_groups"][rng.integers(len(shard["row_groups"]))]
    return group
