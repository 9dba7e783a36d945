"""The folder `OUT/_job/<version>/` of one conversion job: everything a worker or a later run needs to go on.

Files are created once and never changed: the spec, the plan, the pilot's result, one receipt a finished unit, and the
parts of the journal. A driver that was killed loses nothing but the units in flight.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

import pyarrow as pa
from pydantic import Field, JsonValue

from tokenshard.errors import FormatError
from tokenshard.shards.schema import CodeColumns
from tokenshard.sources.base import CodeLayout
from tokenshard.spec.base import StoredDocument
from tokenshard.spec.codec import CodecSpec
from tokenshard.spec.conversion import ConvertJob, JobSpec
from tokenshard.spec.job import parse_job
from tokenshard.spec.manifest import ColumnEntry, LevelEntry, RejectsEntry, ShardEntry, model_path
from tokenshard.store import Store

D = TypeVar("D", bound=StoredDocument)
READ_AHEAD = 64
"""Receipts that are asked for at a time."""


class PlanPart(StoredDocument):
    """One Parquet file of the plan; row group ``i`` holds the inputs of its ``i``-th unit."""

    path: str
    units: int
    inputs: int
    sha256: str


class Plan(StoredDocument):
    """`plan.json`: written when the plan is complete."""

    sha256: str = Field(description="hash over the inputs, in order")
    inputs: int
    units: int
    raw_bytes: int = Field(description="bytes of all inputs whose size is known")
    retried: int = Field(default=0, description="inputs that an earlier version had rejected")
    parts: tuple[PlanPart, ...]
    columns: tuple[ColumnEntry, ...] = Field(description="label and metadata columns of the source")
    source_names: tuple[str, ...] = Field(description="what the source calls each of them")
    schema_hex: str = Field(description="Arrow IPC schema of those columns, hexadecimal")
    sidecars: dict[str, int] = Field(default_factory=dict, description="files that the source made, by path: bytes")
    source_state: dict[str, JsonValue] = Field(
        default_factory=dict, description="findings of planning that reading needs"
    )

    @property
    def schema(self) -> pa.Schema:
        """Label and metadata columns of the source."""
        return pa.ipc.read_schema(pa.py_buffer(bytes.fromhex(self.schema_hex)))


class PilotResult(StoredDocument):
    """`pilot.json`: the tokenizer and the codecs all units use."""

    tokenizer: str = Field(description="fingerprint; files below tokenizer/<fingerprint>/")
    numerics: str
    levels: tuple[LevelEntry, ...]
    codecs: tuple[CodecSpec, ...]
    models: dict[str, int] = Field(default_factory=dict)
    tables: dict[str, int] = Field(default_factory=dict, description="models among the tokenizer's files, by SHA-256")
    layout: CodeLayout = Field(description="grid, extents and origin of the ids")
    measured: dict[str, dict[str, float]] = Field(
        default_factory=dict, description="bits per id of each codec, by column"
    )

    def model_path(self, sha256: str) -> str:
        """Where a codec model lies in the dataset."""
        return model_path(sha256, self.tables, self.tokenizer)

    @property
    def columns(self) -> CodeColumns:
        """The code columns as the footers describe them."""
        layout = self.layout
        return CodeColumns(
            codes=self.codecs,
            grid=layout.grid,
            extents=layout.extents,
            downsample=layout.downsample,
            streams=layout.streams,
        )


def made_schema(layout: CodeLayout) -> pa.Schema:
    """The columns that encoding makes."""
    return pa.schema([pa.field(column.name, pa.type_for_alias(column.type)) for column in layout.made])


class Receipt(StoredDocument):
    """What a finished unit committed."""

    unit: int
    rows: int
    rejected: int
    raw_bytes: int = 0
    shard: ShardEntry | None = None
    rejects: RejectsEntry | None = None
    splits: dict[str, int] = Field(default_factory=dict, description="rows of each value of the `split` column")
    reasons: dict[str, int] = Field(default_factory=dict, description="`stage: error type` -> rejected inputs")


class JobFolder:
    """Typed access to the files of one job."""

    def __init__(self, output: Store, version: int) -> None:
        self.output = output
        self.version = version
        self.path = f"_job/{version:08d}"

    def name(self, file: str) -> str:
        return f"{self.path}/{file}"

    def _read(self, file: str, model: type[D]) -> D | None:
        try:
            data = self.output.read(self.name(file))
        except FileNotFoundError:
            return None
        try:
            return model.model_validate_json(data)
        except ValueError as error:
            raise FormatError(f"{self.output.url(self.name(file))}: damaged; start again with --overwrite") from error

    def _create(self, file: str, document: StoredDocument) -> bool:
        return self.output.put_if_absent(self.name(file), document.model_dump_json(indent=1).encode())

    def spec(self) -> JobSpec | None:
        try:
            text = self.output.read(self.name("job.json")).decode()
        except FileNotFoundError:
            return None
        return parse_job(text, self.output.url(self.name("job.json")))

    def conversion(self) -> ConvertJob:
        """The spec of a job that was started here."""
        spec = self.spec()
        if not isinstance(spec, ConvertJob):
            raise FormatError(f"{self.output.url(self.path)}: no conversion job was started here")
        return spec

    def write_spec(self, spec: JobSpec) -> None:
        self.output.put(self.name("job.json"), spec.model_dump_json(indent=1).encode())

    def remove(self) -> None:
        """Of a job that came to nothing: all of its files."""
        for entry in list(self.output.list(self.path)):
            self.output.delete(entry.name)

    def forget_plan(self) -> None:
        """Plan anew: only before any unit was run."""
        self.output.delete(self.name("plan.json"))

    def plan(self) -> Plan | None:
        return self._read("plan.json", Plan)

    def create_plan(self, plan: Plan) -> None:
        self._create("plan.json", plan)

    def pilot(self) -> PilotResult | None:
        return self._read("pilot.json", PilotResult)

    def create_pilot(self, result: PilotResult) -> None:
        self._create("pilot.json", result)

    def create_receipt(self, receipt: Receipt) -> None:
        self._create(f"receipts/{receipt.unit:08d}.json", receipt)

    def receipt(self, unit: int) -> Receipt | None:
        return self._read(f"receipts/{unit:08d}.json", Receipt)

    def finished_units(self) -> set[int]:
        """Units that have a receipt."""
        return {int(entry.name[-13:-5]) for entry in self.output.list(self.name("receipts"))}

    def receipts(self) -> Iterator[Receipt]:
        """All receipts, by unit; :data:`READ_AHEAD` of them in memory, whatever their number."""
        with ThreadPoolExecutor(16) as pool:
            units = iter(sorted(self.finished_units()))
            reading = deque(pool.submit(self.receipt, unit) for unit in islice(units, READ_AHEAD))
            while reading:
                receipt = reading.popleft().result()
                reading.extend(pool.submit(self.receipt, unit) for unit in islice(units, 1))
                if receipt is not None:
                    yield receipt


class Journal:
    """Failures and decisions of the scheduler, kept so that attempts survive a restart of the driver."""

    def __init__(self, folder: JobFolder, listener: Callable[[str], None] = lambda event: None) -> None:
        self._folder = folder
        self._listener = listener
        self.events: list[dict[str, Any]] = []
        """Events of earlier runs and of this one, oldest first."""
        for entry in folder.output.list(folder.name("journal")):
            self.events.append(json.loads(folder.output.read(entry.name)))

    @property
    def deaths(self) -> dict[str, int]:
        """Workers that died while they ran a unit, by cause."""
        return dict(Counter(event.get("cause", "WorkerDied") for event in self.events if event["event"] == "death"))

    def append(self, event: str, **fields: JsonValue) -> None:
        """Write one event down at once. Events are rare: one a failure, none a success."""
        record = {"event": event, **fields}
        number = len(self.events)
        while not self._folder.output.put_if_absent(
            self._folder.name(f"journal/{number:08d}.json"), json.dumps(record, indent=1).encode()
        ):
            number += 1
        self.events.append(record)
        self._listener(event)
