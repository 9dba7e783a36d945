"""Deletion: the next version of a dataset lists rows that are no longer in it. Compaction: shards without these rows.

A deletion writes nothing but a manifest. Readers see the version before or the version after; bytes stay in the shards
until compaction, which puts new shard files in place of those with deleted rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tokenshard.codecs.base import Codec
from tokenshard.codecs.choose import load_codec
from tokenshard.engine.finalize import totals_of
from tokenshard.engine.job_folder import JobFolder
from tokenshard.engine.rewriting import rows_batch, user_columns
from tokenshard.errors import JobError, ManifestConflict, SpecError
from tokenshard.scratch import scratch_folder
from tokenshard.shards.dataset import Dataset, read_model
from tokenshard.shards.deleted import deleted_rows, live_rows, runs_of
from tokenshard.shards.manifest import commit_manifest, list_versions, manifest_name, read_manifest
from tokenshard.shards.schema import KEY, size_names
from tokenshard.shards.where import Where
from tokenshard.shards.writer import ShardWriter
from tokenshard.spec.base import digest
from tokenshard.spec.codec import CodecSpec
from tokenshard.spec.manifest import Manifest, ShardEntry, needed_reader
from tokenshard.store import Store

ATTEMPTS = 10
"""Versions of others that a deletion is based on anew."""
SPLIT = "split"


@dataclass(frozen=True)
class Deletion:
    """What :func:`delete` did: the version it made (None where no sample matched), and how many samples that lacks."""

    version: int | None
    samples: int


@dataclass(frozen=True)
class Compaction:
    """What :func:`compact` did. ``version`` is None where no row was deleted."""

    version: int | None
    samples: int = 0
    """that were taken out of shards"""
    bytes_before: int = 0
    bytes_after: int = 0
    """of all shard files of the version"""


def delete(store: Store, keys: Collection[str] = (), where: str | None = None) -> Deletion:
    """Commit a version without the samples of these keys, and those a predicate on their columns holds for.

    Raises SpecError where a key is not in the dataset, JobError while a job is not finished.
    """
    for attempt in range(ATTEMPTS):
        manifest = _settled(store)
        dataset = Dataset(store, manifest)
        gone, splits = _found(dataset, frozenset(keys), where)
        count = sum(int(mask.sum()) for mask in gone.values())
        if not count:
            return Deletion(None, 0)
        update = {
            "version": manifest.version + 1,
            "parent": manifest.version,
            "min_reader": needed_reader(manifest.code.columns, deleted=True),
            "shards": tuple(
                _without(shard, gone[place]) if place in gone else shard for place, shard in enumerate(manifest.shards)
            ),
            "splits": {name: left for name, had in manifest.splits.items() if (left := had - splits[name])},
        }
        try:
            return Deletion(commit_manifest(store, manifest.model_copy(update=update)).version, count)
        except ManifestConflict:
            if attempt == ATTEMPTS - 1:
                raise
    raise AssertionError


def _settled(store: Store) -> Manifest:
    manifest = read_manifest(store)
    if JobFolder(store, manifest.version + 1).spec() is not None:
        raise JobError(f"{store.root}: a job was started and is not finished; finish it first, by the same command")
    return manifest


def _found(
    dataset: Dataset, keys: frozenset[str], where: str | None
) -> tuple[dict[int, NDArray[np.bool_]], Counter[str]]:
    """Rows of each shard to delete, and how many of each split they are. Raises SpecError for keys that are nowhere."""
    predicate = None if where is None else Where.parse(where, dataset.schema)
    wanted = pa.array(sorted(keys), pa.string())
    columns = sorted({KEY, *(predicate.columns if predicate else ()), *([SPLIT] if dataset.manifest.splits else [])})
    found, missing, splits, starts = dict[int, NDArray[np.bool_]](), set(keys), Counter[str](), dataset.group_starts
    for place, shard in enumerate(dataset.manifest.shards):
        if predicate is None and not any(shard.min_key <= key <= shard.max_key for key in missing):
            continue
        numbers = dataset.numbers(place)
        rows = np.flatnonzero(numbers >= 0)
        mask = np.zeros(shard.rows, np.bool_)
        for group in np.unique(np.searchsorted(starts, numbers[rows], "right") - 1).tolist():
            table = dataset.group_table(group, columns)
            hit = np.asarray(pc.is_in(table[KEY], wanted))
            missing -= set(table[KEY].filter(pa.array(hit)).to_pylist())
            hit = hit | predicate.mask(table) if predicate is not None else hit
            mask[rows[starts[group] + np.flatnonzero(hit) - numbers[rows[0]]]] = True
            if SPLIT in columns:
                splits.update(table[SPLIT].filter(pa.array(hit)).to_pylist())
        if mask.any():
            found[place] = mask
    if missing:
        listed = ", ".join(sorted(missing)[:5])
        raise SpecError(f"{dataset.store.root}: has no sample {listed}; nothing was deleted")
    return found, splits


def _without(shard: ShardEntry, rows: NDArray[np.bool_]) -> ShardEntry:
    return shard.model_copy(update={"deleted": runs_of(deleted_rows(shard) | rows)})


def compact(store: Store, drop_history: bool = False) -> Compaction:
    """Commit a version whose shards hold no deleted rows. Keys, order and content of the others stay as they are.

    ``drop_history``: then remove the versions before, and the files that only they list. Who still reads these will
    miss them. Raises JobError while a job is not finished.
    """
    manifest = _settled(store)
    removed = sum(shard.num_deleted for shard in manifest.shards)
    if removed:
        name = digest({"compact": manifest.fingerprint})[:8]
        shards = [
            _compacted(store, manifest, place, f"data/{name}-{place:06d}.parquet") if shard.deleted else shard
            for place, shard in enumerate(manifest.shards)
        ]
        kept = tuple(shard for shard in shards if shard is not None)
        update = {
            "version": manifest.version + 1,
            "parent": manifest.version,
            "min_reader": needed_reader(manifest.code.columns),
            "shards": kept,
            "totals": totals_of(kept, manifest.rejects),
            "removed": manifest.removed + removed,
        }
        committed = commit_manifest(store, manifest.model_copy(update=update))
    else:
        committed = manifest
    if drop_history:
        _drop_before(store, committed)
    version = committed.version if removed else None
    return Compaction(version, removed, manifest.totals.token_bytes, committed.totals.token_bytes)


def _compacted(store: Store, manifest: Manifest, place: int, path: str) -> ShardEntry | None:
    """The shard without its deleted rows, put at ``path``; None where none is left."""
    reader = Dataset(store, manifest).reader(place)
    columns, user = reader.columns, user_columns(reader)
    names = [*size_names(columns, reader.schema), KEY, *user.names]

    @cache
    def codec(spec: CodecSpec) -> Codec:
        return load_codec(spec, read_model(store, manifest, spec.model) if spec.model else None)

    with scratch_folder() as scratch:
        file, start = Path(scratch, "compacted.parquet"), 0
        codecs = [codec(spec) for spec in columns.codes]
        with ShardWriter(file, path, columns, codecs, reader.footer.tokenizer, user) as writer:
            for group, live in enumerate(live_rows(reader.entry)):
                count = reader.entry.row_groups[group].rows
                rows = np.arange(count) if live is None else live
                if len(rows):
                    coded = reader.read_group(group)
                    table = reader.read_columns(group, names).take(pa.array(rows))
                    writer.append(rows_batch(reader, table, coded.grids[rows], coded.decode(rows), start + rows))
                start += count
            entry = writer.close(None)
        if entry is not None:
            store.put_if_absent(path, file)
    return entry


def _drop_before(store: Store, newest: Manifest) -> None:
    """Remove all versions but the newest, and files below data/ and rejects/ that it does not list."""
    for version in list_versions(store):
        if version < newest.version:
            store.delete(manifest_name(version))
    listed = {shard.path for shard in newest.shards} | {rejects.path for rejects in newest.rejects}
    for folder in ("data", "rejects"):
        for entry in list(store.list(folder)):
            if entry.name not in listed:
                store.delete(entry.name)
