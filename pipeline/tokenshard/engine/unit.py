"""One unit: planned inputs -> fetch and decode -> ids -> streams -> committed shard, rejects and receipt.

Knows no Ray and no scheduler. Name and bytes of the shard follow from the job and the unit alone, so any worker may run
a unit at any time, twice or after a crash: whoever commits first wins, and everybody else finds the same.

Commit order: the rejects (named by their content), then the shard, whose footer names the rejects that belong to it,
then the receipt. The shard decides: an attempt that comes second takes the first one's shard and rejects.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tokenshard.codecs.choose import load_codec
from tokenshard.engine.encode import StoredIds, encode_samples, flat_ids
from tokenshard.engine.encoding import Encoded, encoding_of
from tokenshard.engine.finalize import job_id
from tokenshard.engine.job_folder import JobFolder, Receipt, made_schema
from tokenshard.engine.plan import read_unit
from tokenshard.engine.stages import Stages
from tokenshard.engine.task import Cause, Task
from tokenshard.errors import JobError
from tokenshard.parquet import read_parquet
from tokenshard.scratch import scratch_folder
from tokenshard.shards.describe import describe_shard
from tokenshard.shards.rejects import describe_rejects, read_rejects_file, rejects_bytes
from tokenshard.shards.schema import ShardFooter
from tokenshard.shards.writer import ShardWriter, TokenBatch
from tokenshard.sources.base import Reject, Sample
from tokenshard.sources.registry import open_source
from tokenshard.spec.manifest import RejectsEntry, ShardEntry, TokenizerEntry

APPEND_ROWS = 512
APPEND_BYTES = 32 << 20
"""Rows, and bytes of their ids, gathered before they go to the shard writer; whichever is reached first."""
_NOTHING = np.empty(0, np.uint8)


@dataclass(frozen=True)
class _Row:
    """What is kept of a sample until it goes to the shard writer: not its pixels, of which clips have a lot."""

    sample: Sample
    encoded: Encoded
    size: tuple[int, ...]


class UnitRunner:
    """Runs units of one job; holds the encoder, the codecs and the source."""

    def __init__(self, folder: JobFolder) -> None:
        self.stages = Stages()
        plan, pilot = folder.plan(), folder.pilot()
        if plan is None or pilot is None:
            raise JobError(f"{folder.output.url(folder.path)}: plan or pilot is not complete")
        self._spec = folder.conversion()
        self._folder = folder
        self._output = folder.output
        self._job = job_id(self._spec, plan, pilot)
        self._source = open_source(self._spec, plan.source_state)
        self._encoder = StoredIds(encoding_of(self._spec, self._source).load(pilot, self._output), pilot.levels)
        self._codecs = [
            load_codec(codec, self._output.read(pilot.model_path(codec.model)) if codec.model else None)
            for codec in pilot.codecs
        ]
        self._columns = pilot.columns
        self._numerics = TokenizerEntry(fingerprint=pilot.tokenizer, numerics=pilot.numerics)
        self._source_names = plan.source_names
        self._source_columns = plan.schema
        self._made = made_schema(pilot.layout)
        self._user_columns = pa.schema([*self._source_columns, *self._made])

    def run(self, task: Task) -> Receipt | None:
        """Run a task to its receipt (None for a probe, which commits nothing)."""
        self.stages = Stages()
        unit = task.place.unit
        if task.probe is None and (done := self._folder.receipt(unit)) is not None:
            return done
        inputs = read_unit(self._output, task.place)
        if task.probe is not None:
            self._probe(inputs, task)
            return None
        stem = f"{self._job}-{unit:06d}"
        with scratch_folder() as scratch:
            path = Path(scratch, "shard.parquet")
            rejects: list[Reject] = []
            with ShardWriter(
                path, f"data/{stem}.parquet", self._columns, self._codecs, self._numerics, self._user_columns
            ) as writer:
                if task.quarantine is not None:
                    rejects = _all_rejected(inputs, "Quarantined", task.quarantine)
                else:
                    self._fill(writer, inputs, task.poison, rejects)
                receipt = self._commit(stem, unit, path, writer, rejects)
        with self.stages.measure("commit"):
            self._folder.create_receipt(receipt)
        return receipt

    def _encoded(self, inputs: pa.Table, rejects: list[Reject]) -> Iterator[tuple[Sample, Encoded]]:
        return encode_samples(self._source.read(inputs), self._encoder, self._spec.engine, rejects, self.stages)

    def _probe(self, inputs: pa.Table, task: Task) -> None:
        """Fetch, decode and encode some rows, to see whether the worker survives it."""
        assert task.probe is not None
        first, last = task.probe
        rows = [row for row in range(first, last) if row not in task.poison]
        for _ in self._encoded(_rows(inputs, rows), []):
            continue

    def _fill(self, writer: ShardWriter, inputs: pa.Table, poison: Mapping[int, Cause], rejects: list[Reject]) -> None:
        harmless = [row for row in range(inputs.num_rows) if row not in poison]
        for row, cause in sorted(poison.items()):
            rejects += _all_rejected(_rows(inputs, [row]), cause, _POISON[cause])
        waiting: list[_Row] = []
        held = 0
        for sample, encoded in self._encoded(_rows(inputs, harmless), rejects):
            size = self._encoder.size(sample, encoded.ids)
            waiting.append(_Row(replace(sample, data=_NOTHING), encoded, size))
            held += encoded.nbytes
            if len(waiting) >= APPEND_ROWS or held >= APPEND_BYTES:
                self._append(writer, waiting)
                waiting, held = [], 0
        if waiting:
            self._append(writer, waiting)

    def _append(self, writer: ShardWriter, items: Sequence[_Row]) -> None:
        with self.stages.measure("code"):
            writer.append(self._batch(items))

    def _batch(self, rows: Sequence[_Row]) -> TokenBatch:
        samples, encoded = [row.sample for row in rows], [row.encoded for row in rows]
        fields = self._user_columns
        named = zip(self._source_columns, self._source_names, strict=True)
        columns = {field.name: pa.array([s.columns.get(name) for s in samples], field.type) for field, name in named}
        columns |= {
            field.name: pa.array([one.columns[field.name] for one in encoded], field.type) for field in self._made
        }
        return TokenBatch(
            keys=[sample.key for sample in samples],
            sizes=np.array([row.size for row in rows], np.int32),
            ids=tuple(
                flat_ids([one.ids for one in encoded], level, c.alphabet) for level, c in enumerate(self._codecs)
            ),
            raw_bytes=sum(sample.raw_bytes for sample in samples),
            columns=pa.table(columns, schema=fields) if len(fields) else None,
        )

    # -- commit -------------------------------------------------------------------------------------------------------

    def _commit(self, stem: str, unit: int, path: Path, writer: ShardWriter, rejects: list[Reject]) -> Receipt:
        entry = self._put_rejects(stem, unit, rejects) if rejects else None
        reasons = Counter(f"{reject.stage}: {reject.error}" for reject in rejects)
        with self.stages.measure("code"):
            shard = writer.close(rejects_sha256=entry.sha256 if entry else None)
        with self.stages.measure("commit"):
            first = shard is None or self._output.put_if_absent(shard.path, path)
        if shard is not None and not first:
            with self._output.open(shard.path) as file:
                theirs = describe_shard(file, shard.path)
                if theirs.sha256 != shard.sha256:
                    shard, (entry, reasons) = theirs, self._rejects_of(file, stem)
        return Receipt(
            unit=unit,
            rows=shard.rows if shard else 0,
            rejected=entry.rows if entry else 0,
            raw_bytes=shard.raw_bytes if shard else 0,
            shard=shard,
            rejects=entry,
            splits=self._splits(shard) if shard else {},
            reasons=dict(sorted(reasons.items())),
        )

    def _splits(self, shard: ShardEntry) -> dict[str, int]:
        """Rows of each value of the `split` column, if the source delivers one."""
        if "split" not in self._user_columns.names:
            return {}
        with self._output.open(shard.path) as file:
            counts = read_parquet(file, ["split"]).column("split").value_counts()
        return {str(item["values"]): item["counts"] for item in counts.to_pylist()}

    def _put_rejects(self, stem: str, unit: int, rejects: list[Reject]) -> RejectsEntry:
        data = rejects_bytes([{**vars(reject), "unit": unit} for reject in rejects])
        entry = describe_rejects(data, _rejects_path(stem, hashlib.sha256(data).hexdigest()))
        self._output.put_if_absent(entry.path, data)
        return entry

    def _rejects_of(self, file: BinaryIO, stem: str) -> tuple[RejectsEntry | None, Counter[str]]:
        """The rejects that belong to a shard which an earlier attempt committed, and how often each reason occurs."""
        sha256 = ShardFooter.parse(pq.read_metadata(file).metadata).totals.rejects_sha256
        if sha256 is None:
            return None, Counter()
        path = _rejects_path(stem, sha256)
        entry = describe_rejects(self._output.read(path), path)
        table = read_rejects_file(self._output, entry)
        pairs = zip(table.column("stage").to_pylist(), table.column("error").to_pylist(), strict=True)
        return entry, Counter(f"{stage}: {error}" for stage, error in pairs)


_POISON: dict[Cause, str] = {
    "WorkerDied": "reading this input killed its worker process",
    "OutOfMemory": "reading this input took more memory than its machine had left; its worker process was killed",
    "TimedOut": "reading this input took longer than retry.unit_timeout; its worker process was killed",
}


def _rows(inputs: pa.Table, rows: list[int]) -> pa.Table:
    return inputs.take(pa.array(rows, pa.int64()))


def _rejects_path(stem: str, sha256: str) -> str:
    return f"rejects/{stem}-{sha256[:8]}.parquet"


def _all_rejected(inputs: pa.Table, error: str, message: str) -> list[Reject]:
    pairs = zip(inputs.column("key").to_pylist(), inputs.column("uri").to_pylist(), strict=True)
    return [Reject(key, uri, "worker", error, message) for key, uri in pairs]
