"""Checks a whole dataset: structure and checksums, and with ``deep`` that every stream decodes to valid ids.

Never raises on a damaged dataset; every finding is one line that names the file, the row group and its rows.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache

import pyarrow as pa
import pyarrow.compute as pc

from tokenshard.codecs.base import Codec, sample_sizes
from tokenshard.codecs.choose import load_codec
from tokenshard.errors import TokenshardError
from tokenshard.readable import counted
from tokenshard.shards.bounds import damage_reported, require
from tokenshard.shards.dataset import Dataset, read_model, read_sidecar
from tokenshard.shards.deleted import live_rows
from tokenshard.shards.describe import group_spans
from tokenshard.shards.drift import alarms
from tokenshard.shards.keys import KeySet
from tokenshard.shards.manifest import read_manifest
from tokenshard.shards.reader import CodecLoader, RowGroup, ShardReader
from tokenshard.shards.rejects import read_rejects_file
from tokenshard.shards.schema import KEY, length_name, size_names
from tokenshard.spec.codec import CodecSpec
from tokenshard.spec.manifest import Manifest, ShardEntry
from tokenshard.store import Store

THREADS = 4
BLOCK = 4 << 20
REPEATS_SHOWN = 3


@dataclass(frozen=True)
class VerifyReport:
    """Outcome of :func:`verify`; the counts say how much was checked."""

    ok: bool
    errors: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """oddities that do not harm readers, e.g. files in data/ that no manifest lists"""
    deep: bool = False
    shards: int = 0
    row_groups: int = 0
    samples: int = 0
    ids: int = 0
    rejects: int = 0
    bytes: int = 0


@dataclass
class _ShardFindings:
    """What the check of one shard brought up."""

    errors: list[str] = field(default_factory=list)
    keys: list[pa.ChunkedArray] = field(default_factory=list)
    live: list[pa.ChunkedArray] = field(default_factory=list)
    """keys of rows that are not deleted"""
    row_groups: int = 0
    ids: int = 0


def verify(store: Store, deep: bool = False, version: int | None = None, threads: int = THREADS) -> VerifyReport:
    """Checks the newest version of a dataset, or the given one. Memory: a few row groups, and 8 bytes a key."""
    errors: list[str] = []
    try:
        manifest = read_manifest(store, version)
    except (TokenshardError, OSError) as error:
        return VerifyReport(ok=False, errors=(str(error),), deep=deep)
    _check_counts(store, manifest, errors)
    _check_tokenizer(store, manifest, errors)
    codecs = _codec_loader(store, manifest)
    keys, row_groups, samples, ids = KeySet(), 0, 0, 0
    with ThreadPoolExecutor(threads) as pool:
        for entry, findings in _in_order(pool, store, manifest, codecs, deep, 2 * threads):
            errors += findings.errors
            row_groups += findings.row_groups
            ids += findings.ids
            with _collected(errors), damage_reported(store.url(entry.path)):
                samples += sum(len(column) for column in findings.keys)
                _check_unique(keys, findings.live, store.url(entry.path), errors)
    rejects = _check_rejects(store, manifest, errors)
    notes: list[str] = []
    with _collected(errors):
        notes += _orphans(store, manifest)
        notes += [] if errors else alarms(Dataset(store, manifest))
    return VerifyReport(
        ok=not errors,
        errors=tuple(errors),
        notes=tuple(notes),
        deep=deep,
        shards=len(manifest.shards),
        row_groups=row_groups,
        samples=samples,
        ids=ids,
        rejects=rejects,
        bytes=manifest.totals.token_bytes,
    )


@contextmanager
def _collected(errors: list[str]) -> Iterator[None]:
    """Adds what is raised inside to ``errors`` and goes on."""
    try:
        yield
    except (TokenshardError, OSError) as error:
        errors.append(str(error))


def _in_order(
    pool: ThreadPoolExecutor, store: Store, manifest: Manifest, codecs: CodecLoader, deep: bool, window: int
) -> Iterator[tuple[ShardEntry, _ShardFindings]]:
    """Findings of all shards, in their order, with a bounded number of them in flight."""
    running: deque[tuple[ShardEntry, Future[_ShardFindings]]] = deque()
    shards = iter(manifest.shards)
    while True:
        for entry in itertools.islice(shards, window - len(running)):
            running.append((entry, pool.submit(_check_shard, store, manifest, entry, codecs, deep)))
        if not running:
            return
        entry, future = running.popleft()
        yield entry, future.result()


def _check_shard(
    store: Store, manifest: Manifest, entry: ShardEntry, codecs: CodecLoader, deep: bool
) -> _ShardFindings:
    findings, url = _ShardFindings(), store.url(entry.path)
    intact = False
    with _collected(findings.errors), damage_reported(url):
        size, sha256 = _content(store, entry.path)
        intact = size == entry.bytes and sha256 == entry.sha256
        require(size == entry.bytes, f"{size} bytes instead of {entry.bytes}")
        require(intact, "content differs from the manifest (SHA-256)")
    with _collected(findings.errors), damage_reported(url):
        reader = ShardReader(store, entry, codecs)
        _check_footer(reader, manifest)
        coded = {spec.column for spec in reader.columns.codes} | set(size_names(reader.columns, reader.schema))
        others = [name for name in reader.schema.names if name not in coded]
        for group in range(len(entry.row_groups)):
            before = len(findings.errors)
            with _collected(findings.errors):
                # an intact file needs no second look at its codes, only at its sizes, unless they are decoded
                codes = reader.read_group(group, None if deep or not intact else 0)
                with damage_reported(reader.where(group)):
                    _check_group(reader, group, codes, deep)
                findings.ids += int(sample_sizes(codes.grids).sum()) * len(manifest.code.columns)
            with _collected(findings.errors):
                columns = others if deep or not intact else [KEY]
                findings.keys.append(reader.read_columns(group, columns)[KEY])
                live = live_rows(entry)[group]
                findings.live.append(findings.keys[-1] if live is None else findings.keys[-1].take(pa.array(live)))
            findings.row_groups += len(findings.errors) == before
        if not findings.errors:
            _check_key_range(entry, findings.keys)
            require(findings.ids == entry.ids, f"{findings.ids} ids instead of {entry.ids}")
    return findings


def _layout(spec: CodecSpec) -> CodecSpec:
    """What all shards of a dataset agree on; models may differ."""
    return spec.model_copy(update={"model": None})


def _check_footer(reader: ShardReader, manifest: Manifest) -> None:
    footer, entry = reader.footer, reader.entry
    stated = [_layout(spec) for spec in footer.columns.codes]
    listed = [_layout(spec) for spec in manifest.code.columns]
    require(stated == listed, "code columns of the footer differ from the manifest")
    same = footer.tokenizer.fingerprint == manifest.tokenizer.fingerprint
    require(
        same and footer.tokenizer.modes <= manifest.tokenizer.modes,
        "written with another tokenizer than the manifest names",
    )
    require(footer.totals.raw_bytes == entry.raw_bytes, "raw bytes of the footer differ from the manifest")
    require(footer.columns.grid == entry.grid, "grid of the footer differs from the manifest")
    names = {column.name: column.type for column in manifest.columns}
    for column in reader.schema:
        require(names.get(column.name) == str(column.type), f"column {column.name!r} is not in the manifest as it is")


def _check_group(reader: ShardReader, group: int, codes: RowGroup, deep: bool) -> None:
    entry = reader.entry
    for axis, dim in enumerate(entry.grid):
        require(dim is None or bool((codes.grids[:, axis] == dim).all()), f"grid differs from {list(entry.grid)}")
    listed = entry.row_groups[group]
    streams = {length_name(spec): chunk.length for spec, chunk in zip(reader.columns.codes, listed.codes, strict=True)}
    spans = group_spans(reader.chunks[group], reader.schema, reader.columns, streams)
    stated = [(chunk.offset, chunk.offset + chunk.length) for chunk in (listed.sizes, *listed.codes)]
    require(spans == stated, "byte ranges of the manifest differ from the Parquet footer")
    if deep:
        for spec, ids in zip(codes.specs, codes.decode(), strict=True):
            require(not len(ids) or 0 <= int(ids.min()) <= int(ids.max()) < spec.alphabet, "ids outside the alphabet")


def _check_key_range(entry: ShardEntry, keys: list[pa.ChunkedArray]) -> None:
    ranges = [pc.min_max(column).as_py() for column in keys]
    found = min(keys["min"] for keys in ranges), max(keys["max"] for keys in ranges)
    require(found == (entry.min_key, entry.max_key), "smallest and largest key differ from the manifest")


def _check_unique(keys: KeySet, columns: list[pa.ChunkedArray], where: str, errors: list[str]) -> None:
    names = [name for column in columns for name in column.to_pylist()]
    for row in keys.add(names).nonzero()[0][:REPEATS_SHOWN].tolist():
        errors.append(f"{where}: key {names[row]!r} (row {row}) occurs twice in the dataset")


def _check_counts(store: Store, manifest: Manifest, errors: list[str]) -> None:
    totals, inputs = manifest.totals, sum(job.inputs - job.retried for job in manifest.jobs)
    if totals.samples + totals.rejects + manifest.removed != inputs:
        errors.append(
            f"{store.root}: {counted(totals.samples, 'sample')} and {counted(totals.rejects, 'reject')} from "
            f"{counted(inputs, 'input')}; "
            "some are missing or there twice"
        )


def _check_tokenizer(store: Store, manifest: Manifest, errors: list[str]) -> None:
    with _collected(errors):
        Dataset(store, manifest).tokenizer_files()
    listed = {**manifest.models, **manifest.tables}
    for sha256, size in listed.items():
        with _collected(errors), damage_reported(store.url(manifest.model_path(sha256))):
            found = len(read_model(store, manifest, sha256))
            require(found == size, f"{found} bytes instead of {size}")
    for path, size in manifest.sidecars.items():
        with _collected(errors), damage_reported(store.url(path)):
            found = len(read_sidecar(store, manifest, path))
            require(found == size, f"{found} bytes instead of {size}")
    for spec in manifest.code.columns:
        if spec.model is not None and spec.model not in listed:
            errors.append(f"{store.root}: the manifest does not list the model of column {spec.column!r}")


def _check_rejects(store: Store, manifest: Manifest, errors: list[str]) -> int:
    rows = 0
    for entry in manifest.rejects:
        with _collected(errors):
            rows += read_rejects_file(store, entry).num_rows
    return rows


def _orphans(store: Store, manifest: Manifest) -> Iterator[str]:
    listed = {shard.path for shard in manifest.shards} | {entry.path for entry in manifest.rejects}
    for folder in ("data", "rejects"):
        for entry in store.list(folder):
            if entry.name not in listed:
                yield f"{store.url(entry.name)}: not part of this version (left by a stopped or another job)"


def _content(store: Store, name: str) -> tuple[int, str]:
    """Bytes and SHA-256 of a file."""
    sha256, size = hashlib.sha256(), 0
    with store.open(name) as file:
        while block := file.read(BLOCK):
            sha256.update(block)
            size += len(block)
    return size, sha256.hexdigest()


def _codec_loader(store: Store, manifest: Manifest) -> CodecLoader:
    @lru_cache(256)
    def load(spec: CodecSpec) -> Codec:
        return load_codec(spec, read_model(store, manifest, spec.model) if spec.model else None)

    return load
