"""Planning: the stream of a source's inputs -> an immutable Parquet plan, cut into work units.

Runs once, in one process, in bounded memory whatever the number of inputs. One row group of the plan is one unit, so
that a worker reads the rows of its unit and nothing else.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tokenshard.engine.job_folder import JobFolder, Plan, PlanPart
from tokenshard.errors import FormatError, SpecError
from tokenshard.parquet import open_parquet
from tokenshard.shards.keys import KeySet
from tokenshard.shards.schema import is_reserved
from tokenshard.sources.base import DescribedSource, EndableSource, Source
from tokenshard.spec.conversion import ConvertJob
from tokenshard.spec.engine import UnitSpec
from tokenshard.spec.manifest import ColumnEntry
from tokenshard.store import Store

UNITS_PER_PART = 256
PART_BYTES = 64 << 20
"""Bounds of one plan file."""
READ_BYTES = 256 << 10
"""One request; the inputs of a unit seldom take more."""

Advance = Callable[[int], None]


@dataclass(frozen=True)
class UnitPlace:
    """Where the planned inputs of a unit lie."""

    unit: int
    part: str
    row_group: int

    @property
    def name(self) -> str:
        return f"unit {self.unit}" if self.unit >= 0 else "pilot"

    def __str__(self) -> str:
        return self.name if self.unit >= 0 else "the pilot (the sample that tokenizer and codecs are fitted on)"


class NothingNew(SpecError):
    """There are inputs, and the dataset has all of them."""


def make_plan(
    spec: ConvertJob,
    source: Source,
    folder: JobFolder,
    known_keys: KeySet | None = None,
    retried: Mapping[str, str] | None = None,
    advance: Advance = lambda inputs: None,
) -> Plan:
    """Stream the inputs into `plan-*.parquet` and write `plan.json`; an existing complete plan is returned as it is.

    ``known_keys``: keys of the dataset that is appended to; inputs with one of them are left out.
    ``retried``: key -> uri of earlier rejects; only these inputs are planned, those that are gone as rejects again.
    Raises :class:`NothingNew` where all inputs were left out, SpecError where there are none.
    """
    if (done := folder.plan()) is not None:
        return done
    writer = _PlanWriter(folder)
    batches = source.plan()
    if spec.limit is not None:
        batches = _first(source, batches, spec.limit)
    if retried is not None:
        batches = _only(batches, retried)
    seen = 0
    for batch in batches:
        seen += batch.num_rows
        if known_keys is not None:
            batch = batch.filter(pc.invert(pa.array(known_keys.add(batch.column("key").to_pylist()))))
        if batch.num_rows:
            advance(batch.num_rows)
            for unit in writer.cutter.feed(batch, spec.unit):
                writer.write(unit)
    if (last := writer.cutter.rest()) is not None:
        writer.write(last)
    writer.close_part()
    if not writer.parts and known_keys is not None and seen:
        raise NothingNew(f"{spec.source.path}: the dataset has all inputs already")
    if not writer.parts:
        raise SpecError(f"{spec.source.path}: no inputs found; check the path and the file extensions")
    user = source.columns()
    names = _stored_names([column.name for column in user])
    plan = Plan(
        sha256=writer.hash.hexdigest(),
        inputs=sum(part.inputs for part in writer.parts),
        units=sum(part.units for part in writer.parts),
        raw_bytes=writer.raw_bytes,
        retried=len(retried or ()),
        parts=tuple(writer.parts),
        columns=tuple(
            ColumnEntry.model_validate({"name": name, "type": str(c.type), "role": c.role, "names": c.names})
            for name, c in zip(names, user, strict=True)
        ),
        source_names=tuple(column.name for column in user),
        schema_hex=pa.schema(list(zip(names, (c.type for c in user), strict=True))).serialize().to_pybytes().hex(),
        sidecars=_put_sidecars(source, folder.output),
        source_state=source.state(),
    )
    folder.create_plan(plan)
    return plan


def _put_sidecars(source: Source, output: Store) -> dict[str, int]:
    """Put the files that a source has beside its samples into the dataset, named by their content; path -> bytes."""
    found = {}
    for sidecar in source.sidecars() if isinstance(source, DescribedSource) else ():
        path = f"{sidecar.folder}/{hashlib.sha256(sidecar.data).hexdigest()}.{sidecar.suffix}"
        output.put_if_absent(path, sidecar.data)
        found[path] = len(sidecar.data)
    return found


def _stored_names(names: list[str]) -> list[str]:
    """Names of the user's columns in the shards: their own, or `source_<name>` where shards use the name themselves."""
    stored: list[str] = []
    for name in names:
        new = f"source_{name}" if is_reserved(name) else name
        while is_reserved(name) and (new in names or new in stored):
            new = f"source_{new}"
        stored.append(new)
    return stored


def _first(source: Source, batches: Iterator[pa.RecordBatch], count: int) -> Iterator[pa.RecordBatch]:
    """The first inputs of a stream. It is read to its end where only then the source knows all of its columns."""
    for batch in batches:
        yield batch.slice(0, count)
        count -= min(count, batch.num_rows)
        if not count and isinstance(source, EndableSource):
            source.end_plan()
            return


def _only(batches: Iterator[pa.RecordBatch], wanted: Mapping[str, str]) -> Iterator[pa.RecordBatch]:
    """The wanted inputs; those that no batch has come last, as inputs that planning found unusable."""
    keys = pa.array(sorted(wanted), pa.string())
    missing = set(wanted)
    schema = None
    for batch in batches:
        schema = batch.schema
        batch = batch.filter(pc.is_in(batch.column("key"), keys))
        missing.difference_update(batch.column("key").to_pylist())
        yield batch
    if missing and schema is not None:
        gone = [{"key": key, "uri": wanted[key], "error": "no longer among the inputs"} for key in sorted(missing)]
        yield pa.RecordBatch.from_pylist(gone, schema=schema)


class _Cutter:
    """Cuts the stream of inputs into units by count and bytes; where a cut falls depends on the inputs alone."""

    def __init__(self) -> None:
        self._pieces: list[pa.RecordBatch] = []
        self._rows = 0
        self._bytes = 0

    def feed(self, batch: pa.RecordBatch, limits: UnitSpec) -> Iterator[pa.Table]:
        start = 0
        for row, size in enumerate(batch.column("bytes").to_pylist()):
            size = size or 0
            full = self._rows >= limits.samples or (self._rows and self._bytes + size > limits.bytes)
            if full:
                self._pieces.append(batch.slice(start, row - start))
                start = row
                yield self._cut()
            self._rows += 1
            self._bytes += size
        self._pieces.append(batch.slice(start))

    def _cut(self) -> pa.Table:
        table = pa.Table.from_batches([piece for piece in self._pieces if piece.num_rows])
        self._pieces, self._rows, self._bytes = [], 0, 0
        return table

    def rest(self) -> pa.Table | None:
        return self._cut() if self._rows else None


class _PlanWriter:
    def __init__(self, folder: JobFolder) -> None:
        self.cutter = _Cutter()
        self.parts: list[PlanPart] = []
        self.hash = hashlib.sha256()
        self.raw_bytes = 0
        self._folder = folder
        self._buffer = io.BytesIO()
        self._writer: pq.ParquetWriter | None = None
        self._units = 0
        self._inputs = 0

    def write(self, unit: pa.Table) -> None:
        if self._writer is None:
            self._buffer = io.BytesIO()
            self._writer = pq.ParquetWriter(self._buffer, unit.schema, version="2.6", compression="zstd")
        self._writer.write_table(unit, row_group_size=max(1, unit.num_rows))
        self._units += 1
        self._inputs += unit.num_rows
        self.raw_bytes += pc.sum(unit.column("bytes")).as_py() or 0
        if self._units >= UNITS_PER_PART or self._buffer.tell() >= PART_BYTES:
            self.close_part()

    def close_part(self) -> None:
        if self._writer is None:
            return
        self._writer.close()
        data = self._buffer.getvalue()
        name = self._folder.name(f"plan-{len(self.parts):05d}.parquet")
        self._folder.output.put(name, data)
        sha256 = hashlib.sha256(data).hexdigest()
        self.hash.update(sha256.encode())
        self.parts.append(PlanPart(path=name, units=self._units, inputs=self._inputs, sha256=sha256))
        self._writer, self._units, self._inputs = None, 0, 0


def unit_places(plan: Plan) -> Iterator[UnitPlace]:
    """All units of a plan, in order."""
    unit = 0
    for part in plan.parts:
        for row_group in range(part.units):
            yield UnitPlace(unit, part.path, row_group)
            unit += 1


def read_unit(output: Store, place: UnitPlace) -> pa.Table:
    """The planned inputs of one unit."""
    try:
        with io.BufferedReader(cast(io.RawIOBase, output.open(place.part)), READ_BYTES) as file:
            return open_parquet(file).read_row_group(place.row_group, use_threads=False)
    except pa.ArrowException as error:
        raise FormatError(f"{output.url(place.part)}: damaged plan; start again with --overwrite") from error
