"""What all exporters share: what is exported, where it goes, and the batches it comes in.

A format is a :class:`SplitWriter`: it takes the samples of one split batch by batch, a row group of the dataset at a
time, and puts finished files through the store. It never holds more than a batch and what the format forces it to.
"""

from __future__ import annotations

import base64
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import ByteSize, TypeAdapter
from safetensors.numpy import load

from tokenshard.codecs.base import id_dtype
from tokenshard.errors import SpecError
from tokenshard.shards.dataset import Codes, Dataset
from tokenshard.shards.schema import KEY
from tokenshard.spec.exchange import ExportDescription
from tokenshard.spec.manifest import ColumnEntry
from tokenshard.store import Store

SPLIT = "split"
"""Column whose values become splits."""
DEFAULT_SPLIT = "train"
SHARD_BYTES = 256 << 20
GROUP_ROWS = 8192
GROUP_BYTES = 4 << 20


@dataclass(frozen=True)
class Batch:
    """Neighbouring samples of one split."""

    keys: list[str]
    codes: Codes
    """[n, levels, *grid], or a list of [levels, *grid] where the grid varies"""
    columns: pa.Table
    """the exported columns of these samples"""

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, rows: NDArray[np.int64]) -> Batch:
        codes: Codes = [self.codes[row] for row in rows] if isinstance(self.codes, list) else self.codes[rows]
        columns = self.columns.take(pa.array(rows)) if self.columns.num_columns else self.columns
        return Batch([self.keys[row] for row in rows], codes, columns)


def joined(batches: Sequence[Batch]) -> Batch:
    """Some batches as one."""
    if len(batches) == 1:
        return batches[0]
    several = any(isinstance(batch.codes, list) for batch in batches)
    codes: Codes = (
        [sample for batch in batches for sample in batch.codes]
        if several
        else np.concatenate([cast("NDArray[Any]", batch.codes) for batch in batches])
    )
    keys = [key for batch in batches for key in batch.keys]
    return Batch(keys, codes, pa.concat_tables([batch.columns for batch in batches]).combine_chunks())


class Groups:
    """Cuts the samples of a split into groups that depend on the samples alone, not on how a dataset is sharded.

    A group ends before the sample that would take it over :data:`GROUP_ROWS` samples or ``limit`` bytes of ids.
    """

    def __init__(self, limit: int = GROUP_BYTES) -> None:
        self._limit = limit
        self._pieces: list[Batch] = []
        self._rows = self._bytes = 0

    def add(self, batch: Batch) -> Iterator[Batch]:
        """The groups that this batch completes."""
        start = 0
        for row, sample in enumerate(batch.codes):
            if self._rows and (self._rows >= GROUP_ROWS or self._bytes + sample.nbytes > self._limit):
                self._take(batch, start, row)
                start = row
                yield from self.rest()
            self._rows += 1
            self._bytes += sample.nbytes
        self._take(batch, start, len(batch))

    def _take(self, batch: Batch, start: int, end: int) -> None:
        if end > start:
            keys, codes = batch.keys[start:end], batch.codes[start:end]
            self._pieces.append(Batch(keys, codes, batch.columns.slice(start, end - start)))

    def rest(self) -> Iterator[Batch]:
        """What is left, as one group."""
        if self._pieces:
            yield joined(self._pieces)
        self._pieces, self._rows, self._bytes = [], 0, 0


class Contents:
    """The part of a dataset that is exported. ``columns``: labels and metadata to keep (None: all of them)."""

    def __init__(self, dataset: Dataset, columns: Sequence[str] | None = None, split: str | None = None) -> None:
        self.dataset, self.manifest = dataset, dataset.manifest
        known = [c for c in self.manifest.columns if c.role in {"label", "metadata"} and c.name in dataset.schema.names]
        for name in columns or ():
            if name not in {column.name for column in known}:
                has = ", ".join(column.name for column in known) or "no such columns"
                raise SpecError(f"{dataset.store.root}: no label or metadata column {name!r}; there are {has}")
        described = dataset.reader(0).columns if self.manifest.shards else None
        self.extents = described.extents if described else ()
        self.downsample = described.downsample if described else ()
        chosen = [column for column in known if columns is None or column.name in columns]
        sizes = [column for column in self.manifest.columns if column.name in self.extents]
        self.columns: tuple[ColumnEntry, ...] = (*sizes, *chosen)
        self.schema = pa.schema([dataset.schema.field(column.name) for column in self.columns])
        self._has_splits = SPLIT in dataset.schema.names and pa.types.is_string(dataset.schema.field(SPLIT).type)
        if split is not None and split not in (splits := self._split_names()):
            raise SpecError(f"{dataset.store.root}: no split {split!r}; there are {', '.join(splits)}")
        self.split = split

    @property
    def levels(self) -> int:
        return len(self.manifest.code.levels)

    @property
    def grid(self) -> tuple[int | None, ...]:
        return self.manifest.code.grid

    @property
    def fixed_grid(self) -> tuple[int, ...] | None:
        """The grid of all samples, where they share one."""
        return tuple(cast("tuple[int, ...]", self.grid)) if None not in self.grid else None

    @property
    def alphabets(self) -> tuple[int, ...]:
        """Ids of level i, as the tokenizer knows them, are below alphabets[i]."""
        levels = self.manifest.code.levels
        return tuple(max(level.alphabet, 1 + max(level.remap or (0,))) for level in levels)

    @property
    def dtype(self) -> type[np.uint16] | type[np.int32]:
        """Dtype of exported ids."""
        return id_dtype(max(self.alphabets))

    @property
    def label(self) -> ColumnEntry | None:
        """The first label column."""
        return next((column for column in self.columns if column.role == "label"), None)

    def _split_names(self) -> list[str]:
        if not self._has_splits:
            return [DEFAULT_SPLIT]
        values = self.dataset.iter_tables([SPLIT])
        return sorted({value or DEFAULT_SPLIT for table in values for value in table[SPLIT].unique().to_pylist()})

    @cached_property
    def with_nulls(self) -> frozenset[str]:
        """Exported columns that have nulls. Reads them all once."""
        found: set[str] = set()
        for table in self.dataset.iter_tables(self.schema.names):
            found |= {name for name in table.column_names if table[name].null_count}
        return frozenset(found)

    @cached_property
    def tensors(self) -> Mapping[str, NDArray[Any]]:
        """Tensors of the dataset's tokenizer by name, e.g. `codebook`."""
        return load(self.dataset.tokenizer_files()[1])

    def batches(self) -> Iterator[tuple[str, Batch]]:
        """(split, samples), in the order of the dataset, a row group at a time."""
        names = [KEY, *self.schema.names, *([SPLIT] if self._has_splits and SPLIT not in self.schema.names else [])]
        for table, codes in zip(self.dataset.iter_tables(names), self.dataset.iter_codes(), strict=True):
            batch = Batch(table[KEY].to_pylist(), self._with_level_axis(codes), table.select(self.schema.names))
            if not self._has_splits:
                yield DEFAULT_SPLIT, batch
                continue
            values = np.array([value or DEFAULT_SPLIT for value in table[SPLIT].to_pylist()])
            for name in dict.fromkeys(values.tolist()):
                if self.split in {None, name}:
                    yield name, batch.take(np.flatnonzero(values == name))

    def _with_level_axis(self, codes: Codes) -> Codes:
        if self.levels > 1:
            return codes
        return [sample[None] for sample in codes] if isinstance(codes, list) else codes[:, None]

    def describe(self, exchange: str, samples: Mapping[str, int], json_columns: Sequence[str]) -> ExportDescription:
        manifest = self.manifest
        return ExportDescription(
            exchange=exchange,
            kind=manifest.kind,
            samples=dict(samples),
            alphabets=self.alphabets,
            grid=self.grid,
            extents=self.extents,
            downsample=self.downsample,
            columns=self.columns,
            arrow_schema=base64.b64encode(self.schema.serialize()).decode(),
            json_columns=tuple(json_columns),
            tokenizer=manifest.tokenizer,
            preprocess=manifest.preprocess,
            fingerprint=manifest.fingerprint,
        )


@dataclass
class Output:
    """Where an export goes. Files are made in a local folder and put when they are complete."""

    store: Store
    scratch: Path
    files: int = 0
    size: int = 0
    """files put, and their bytes"""
    options: Mapping[str, Any] = field(default_factory=dict)

    def create(self) -> BinaryIO:
        """A local file to be written and then given to :meth:`put`."""
        return cast(BinaryIO, tempfile.NamedTemporaryFile("w+b", dir=self.scratch, delete=False))

    def put(self, name: str, content: BinaryIO | bytes | Path) -> None:
        """Makes a finished file visible under ``name``; local files are removed."""
        if isinstance(content, bytes):
            size = len(content)
            self.store.put(name, content)
        else:
            path = content if isinstance(content, Path) else Path(content.name)
            if not isinstance(content, Path):
                content.close()
            size = path.stat().st_size
            self.store.put(name, path)
            path.unlink()
        self.files += 1
        self.size += size

    def put_folder(self, folder: Path, prefix: str) -> None:
        """Every file of a local folder, below ``prefix``; the folder is removed."""
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            self.put(f"{prefix}/{path.relative_to(folder).as_posix()}", path)
        shutil.rmtree(folder)


class SplitWriter(ABC):
    """Writes the samples of one split. Raises SpecError for what its format cannot hold."""

    def __init__(self, contents: Contents, output: Output, split: str) -> None:
        self.contents, self.output, self.split = contents, output, split

    options: ClassVar[Mapping[str, Callable[[Any], Any]]] = {}
    """Options of the format, with what makes a value of text"""

    @classmethod  # noqa: B027 - some formats hold everything
    def check(cls, contents: Contents) -> None:
        """Raises SpecError, before anything is written, for a dataset that the format cannot hold."""

    @classmethod
    def json_columns(cls, contents: Contents) -> tuple[str, ...]:
        """Columns that are text in the files and JSON in truth."""
        return ()

    @classmethod
    def left_out(cls, contents: Contents) -> tuple[str, ...]:
        """Columns that the format has no place for."""
        return ()

    @classmethod  # noqa: B027 - most formats have no such files
    def complete(cls, contents: Contents, output: Output, samples: Mapping[str, int]) -> None:
        """Called once, when all splits are closed, for files that belong to the whole export."""

    @abstractmethod
    def add(self, batch: Batch) -> None: ...

    @abstractmethod
    def close(self) -> None: ...


def byte_size(value: Any) -> int:
    """A number of bytes, also as text with a unit: `64MiB`. Raises ValueError."""
    size = TypeAdapter(ByteSize).validate_python(value)
    if size < 1:
        raise ValueError(f"{value} is not positive")
    return int(size)


def refuse(contents: Contents, what: str) -> SpecError:
    """The error of a dataset that a format cannot hold."""
    return SpecError(f"{contents.dataset.store.root}: {what}")


def squeezed(contents: Contents, codes: NDArray[Any]) -> NDArray[Any]:
    """Codes of a sample as other programs expect them: [*grid] for one level, [levels, *grid] for several."""
    return codes[0] if contents.levels == 1 else codes


def reserved(contents: Contents, names: Sequence[str]) -> None:
    """Raises SpecError where a column has a name that the format uses itself."""
    if taken := sorted(set(names) & set(contents.schema.names)):
        raise refuse(
            contents, f"the column {taken[0]!r} has a name this format uses itself; leave it out with --columns"
        )
