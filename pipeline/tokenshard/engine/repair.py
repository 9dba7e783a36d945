"""`verify --repair`: a new version of a damaged dataset, with what could be restored, filled or only counted as lost.

Small damage is undone exactly. Of larger damage, lost ids are filled from their neighbours, and samples of which too
little is left become rejects: `tokenshard retry` converts those again while the raw inputs are there. Damaged files
stay as they are; the new version lists others in their place, and is committed like any version.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tokenshard.codecs.base import sample_sizes
from tokenshard.codecs.choose import load_codec
from tokenshard.engine.finalize import totals_of
from tokenshard.engine.job_folder import JobFolder, Receipt
from tokenshard.engine.plan import read_unit, unit_places
from tokenshard.engine.rewriting import rows_batch, user_columns
from tokenshard.engine.salvage import Salvage, salvage_group, zero_sectors
from tokenshard.errors import FormatError, JobError, SpecError
from tokenshard.parquet import read_parquet
from tokenshard.readable import counted
from tokenshard.scratch import scratch_folder
from tokenshard.shards.dataset import read_model
from tokenshard.shards.deleted import deleted_rows
from tokenshard.shards.manifest import commit_manifest, read_manifest
from tokenshard.shards.reader import ShardReader
from tokenshard.shards.rejects import describe_rejects, read_rejects_file, rejects_bytes
from tokenshard.shards.restore import restore
from tokenshard.shards.schema import KEY
from tokenshard.shards.writer import ShardWriter, TokenBatch
from tokenshard.spec.base import digest
from tokenshard.spec.codec import CodecSpec
from tokenshard.spec.manifest import Manifest, RejectsEntry, ShardEntry, needed_reader
from tokenshard.spec.tokenizer import PAGES
from tokenshard.store import Store
from tokenshard.tokenizers.base import CodebookTokenizer
from tokenshard.tokenizers.folder import load_tokenizer, read_tokenizer_spec

LISTED = 20
"""Row numbers that a line names."""


@dataclass(frozen=True)
class Repair:
    """What :func:`repair` did. ``version`` is None where nothing was damaged."""

    version: int | None
    lines: tuple[str, ...] = ()
    """one for each damaged shard and row group, naming them and what became of their rows"""
    restored_bytes: int = 0
    filled_samples: int = 0
    filled_ids: int = 0
    lost_samples: int = 0

    def summary(self) -> str:
        """In one line."""
        if self.version is None:
            return "no shard is damaged; nothing was repaired"
        return (
            f"version {self.version}: {counted(self.restored_bytes, 'byte')} restored exactly, "
            f"{counted(self.filled_ids, 'id')} of {counted(self.filled_samples, 'sample')} filled, "
            f"{counted(self.lost_samples, 'sample became a reject', 'samples became rejects')}"
        )


@dataclass
class _Done:
    """What became of one shard."""

    shard: ShardEntry | None = None
    rejects: RejectsEntry | None = None
    lines: list[str] = field(default_factory=list)
    restored_bytes: int = 0
    filled_samples: int = 0
    filled_ids: int = 0
    lost_samples: int = 0
    removed: int = 0
    """deleted rows that the new shard does not have"""


def repair(store: Store) -> Repair:
    """Commit a new version of a dataset in place of its newest, where that has damaged shards.

    Raises FormatError where the manifest, the tokenizer or a codec model is damaged: without them nothing can be told;
    JobError while a job is not finished.
    """
    manifest = read_manifest(store)
    if JobFolder(store, manifest.version + 1).spec() is not None:
        raise JobError(f"{store.root}: a job was started and is not finished; finish it first, by the same command")
    codebooks = _codebooks(store, manifest)
    name = digest({"repair": manifest.fingerprint})[:8]
    damaged = [number for number, entry in enumerate(manifest.shards) if _damaged(store, entry) is not None]
    if not damaged:
        return Repair(None)
    receipts, done = _receipts(store, manifest), dict[str, _Done]()
    for number in damaged:
        entry = manifest.shards[number]
        shard = _Shard(store, manifest, entry, f"{name}-{number:06d}", codebooks, receipts)
        done[entry.path] = shard.repaired(_damaged(store, entry) or b"")
    committed = commit_manifest(store, _repaired(store, manifest, done))
    counts = {
        name: sum(getattr(one, name) for one in done.values())
        for name in ("restored_bytes", "filled_samples", "filled_ids", "lost_samples")
    }
    return Repair(committed.version, tuple(line for one in done.values() for line in one.lines), **counts)


def _damaged(store: Store, entry: ShardEntry) -> bytes | None:
    """What is left of a damaged shard file; None where it is as committed."""
    try:
        data = store.read(entry.path, 0, entry.bytes + 1)
    except FileNotFoundError:
        return b""
    return None if hashlib.sha256(data).hexdigest() == entry.sha256 else data[: entry.bytes]


def _codebooks(store: Store, manifest: Manifest) -> list[NDArray[np.float32]]:
    """By level the vectors of the ids as stored; empty where ids are no places in a space, or have no neighbours."""
    folder = f"tokenizer/{manifest.tokenizer.fingerprint}"
    if read_tokenizer_spec(store, folder).kind == PAGES:
        return []
    tokenizer = load_tokenizer(store, folder)
    if not isinstance(tokenizer, CodebookTokenizer):
        return []
    try:
        found = tokenizer.codebooks()
    except SpecError:
        return []
    levels = manifest.code.levels
    return [
        book if level.remap is None else book[list(level.remap)] for book, level in zip(found, levels, strict=False)
    ]


class _Shard:
    """The repair of one shard."""

    def __init__(
        self,
        store: Store,
        manifest: Manifest,
        entry: ShardEntry,
        stem: str,
        codebooks: Sequence[NDArray[Any]],
        receipts: Mapping[str, tuple[JobFolder, Receipt]],
    ) -> None:
        self._store, self._manifest, self._entry, self._stem = store, manifest, entry, stem
        self._codebooks = codebooks
        self._done = _Done()
        self._rejected: list[dict[str, str | int | None]] = []
        self._unit, self._planned = 0, list[tuple[str, str]]()
        if entry.path in receipts:
            folder, receipt = receipts[entry.path]
            self._unit, self._planned = receipt.unit, _planned(folder, receipt, entry.rows)

    def repaired(self, data: bytes) -> _Done:
        """``data``: what is left of the file."""
        with scratch_folder() as scratch:
            copy = Store(scratch)
            copy.put(self._entry.path, data)
            try:
                reader = ShardReader(copy, self._entry, self._codec)
            except FormatError as error:
                reason = str(error).removeprefix(f"{copy.url(self._entry.path)}: ")
                self._done.removed = self._entry.num_deleted
                self._lose(0, ~deleted_rows(self._entry), None, reason)
                self._commit_rejects()
                return self._done
            found = restore(reader, data)
            self._done.restored_bytes = sum(len(change.pattern) for change in found.changes)
            places = [change.place for change in found.changes]
            if places:
                self._say(f"restored exactly: {self._done.restored_bytes} wrong bytes at {_some(np.array(places))}")
            if found.complete:
                self._done.shard = self._entry.model_copy(update={"path": f"data/{self._stem}.parquet"})
                self._put(found.data)
                return self._done
            copy.put(self._entry.path, found.data)
            self._salvage(reader, found.data, Path(scratch, "repaired.parquet"))
        return self._done

    def _codec(self, spec: CodecSpec) -> Any:
        return load_codec(spec, read_model(self._store, self._manifest, spec.model) if spec.model else None)

    def _salvage(self, reader: ShardReader, data: bytes, path: Path) -> None:
        self._done.removed = self._entry.num_deleted
        erased = zero_sectors(data)
        columns = reader.columns
        user, gone = user_columns(reader), deleted_rows(self._entry)
        codecs = [self._codec(spec) for spec in columns.codes]
        name = f"data/{self._stem}.parquet"
        with ShardWriter(path, name, columns, codecs, self._manifest.tokenizer, user) as writer:
            start = 0
            for group, listed in enumerate(self._entry.row_groups):
                found = salvage_group(reader, group, data, erased, self._codebooks)
                for note in found.notes:
                    self._say(f"row group {group} (rows {start} to {start + listed.rows - 1}): {note}")
                keys = None if found.table is None else found.table[KEY].to_pylist()
                deleted = gone[start : start + listed.rows]
                self._lose(start, ~found.kept & ~deleted, keys, f"damage of row group {group} left too little of it")
                found.kept &= ~deleted
                self._count_filled(start, found)
                if found.kept.any():
                    writer.append(_batch(reader, found, start))
                start += listed.rows
            self._commit_rejects()
            rejects = self._done.rejects
            self._done.shard = writer.close(rejects.sha256 if rejects else None)
            if self._done.shard is not None:
                self._put(path)

    def _count_filled(self, start: int, found: Salvage) -> None:
        rows = np.flatnonzero(found.kept & (found.filled > 0))
        if not len(rows):
            return
        ids = int(found.filled[rows].sum())
        self._done.filled_samples += len(rows)
        self._done.filled_ids += ids
        self._say(f"{ids:,} ids filled from their neighbours in rows {_some(start + rows)}")

    def _lose(self, start: int, lost: NDArray[np.bool_], keys: list[str] | None, reason: str) -> None:
        """Rows of the shard become rejects, under their own keys as far as shard or plan know them."""
        rows = start + np.flatnonzero(lost)
        if not len(rows):
            return
        self._say(f"{counted(len(rows), 'row became a reject', 'rows became rejects')}: {_some(rows)} ({reason})")
        self._done.lost_samples += len(rows)
        for row in rows.tolist():
            unnamed = f"{self._entry.path}#{row}"
            key, uri = self._planned[row] if self._planned else (unnamed, self._entry.path)
            self._rejected.append(
                {
                    "key": keys[row - start] if keys is not None else key,
                    "uri": uri,
                    "stage": "fetch",
                    "error": "DamagedShard",
                    "message": f"{self._entry.path}: row {row} is lost: {reason}",
                    "traceback_sha256": None,
                    "unit": self._unit,
                }
            )

    def _commit_rejects(self) -> None:
        if self._rejected:
            data = rejects_bytes(self._rejected)
            path = f"rejects/{self._stem}-{hashlib.sha256(data).hexdigest()[:8]}.parquet"
            self._done.rejects = describe_rejects(data, path)
            self._store.put_if_absent(path, data)

    def _put(self, content: bytes | Path) -> None:
        """The new shard; one that an earlier attempt left there is the same."""
        assert self._done.shard is not None
        self._store.put_if_absent(self._done.shard.path, content)

    def _say(self, what: str) -> None:
        self._done.lines.append(f"{self._entry.path}: {what}")


def _batch(reader: ShardReader, found: Salvage, start: int) -> TokenBatch:
    """The kept rows of a row group."""
    assert found.table is not None
    rows = np.flatnonzero(found.kept)
    mine = np.repeat(found.kept, sample_sizes(found.grids))
    ids = [level[mine] for level in found.ids]
    return rows_batch(reader, found.table.take(pa.array(rows)), found.grids[rows], ids, start + rows)


def _receipts(store: Store, manifest: Manifest) -> dict[str, tuple[JobFolder, Receipt]]:
    """The receipt of each shard by its path, and the folder of its job, as far as these are still there."""
    found = {}
    for version in range(1, manifest.version + 1):
        folder = JobFolder(store, version)
        with suppress(FormatError):
            found.update({one.shard.path: (folder, one) for one in folder.receipts() if one.shard is not None})
    return found


def _planned(folder: JobFolder, receipt: Receipt, rows: int) -> list[tuple[str, str]]:
    """Key and uri of the rows of a shard by the plan of its job; none where the plan is gone."""
    with suppress(FormatError, FileNotFoundError):
        plan = folder.plan()
        if plan is not None:
            place = next(place for place in unit_places(plan) if place.unit == receipt.unit)
            inputs = read_unit(folder.output, place)
            refused = read_rejects_file(folder.output, receipt.rejects)["key"] if receipt.rejects else None
            gone = set() if refused is None else set(refused.to_pylist())
            pairs = zip(inputs["key"].to_pylist(), inputs["uri"].to_pylist(), strict=True)
            found = [(key, uri) for key, uri in pairs if key not in gone]
            return found if len(found) == rows else []
    return []


def _repaired(store: Store, manifest: Manifest, done: dict[str, _Done]) -> Manifest:
    """The next manifest, with what was made in place of the damaged shards."""
    shards = [done[entry.path].shard if entry.path in done else entry for entry in manifest.shards]
    kept = tuple(shard for shard in shards if shard is not None)
    rejects = (*manifest.rejects, *(one.rejects for one in done.values() if one.rejects is not None))
    splits = Counter[str]()
    for shard in kept if manifest.splits else ():
        with store.open(shard.path) as file:
            column = read_parquet(file, ["split"])["split"]
            splits.update(column.filter(pa.array(~deleted_rows(shard))).to_pylist())
    return manifest.model_copy(
        update={
            "version": manifest.version + 1,
            "parent": manifest.version,
            "shards": kept,
            "rejects": rejects,
            "totals": totals_of(kept, rejects),
            "removed": manifest.removed + sum(one.removed for one in done.values()),
            "min_reader": needed_reader(manifest.code.columns, any(shard.deleted for shard in kept)),
            "splits": {str(name): count for name, count in sorted(splits.items(), key=lambda item: str(item[0]))},
            "source": {**manifest.source, "repair": [line for one in done.values() for line in one.lines]},
        }
    )


def _some(rows: NDArray[np.int64]) -> str:
    """The first of some row numbers, as text."""
    shown = ", ".join(map(str, rows[:LISTED].tolist()))
    return f"{shown}, …" if len(rows) > LISTED else shown
