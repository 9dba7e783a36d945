"""What all files with ids share: columns and layout found while planning, and reading planned rows into thunks.

A format subclasses :class:`CodeFiles` with ``fields()`` (the columns it has), ``records()`` (all its samples, in the
order of the files) and ``loads()`` (how to load the ids of planned rows). Damage to a sample becomes a reject; damage
to a file is a FormatError that names it.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import groupby, islice
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import JsonValue

from tokenshard.errors import FormatError, InputError, SpecError, StoreError
from tokenshard.shards.schema import is_reserved
from tokenshard.sources.base import CodeLayout, MadeColumn, Reject, Sample, SourceColumn, Thunk
from tokenshard.sources.codes.described import described_schema, read_description
from tokenshard.sources.images.columns import ClassNames, is_text
from tokenshard.sources.images.files import find_files
from tokenshard.sources.keys import UniqueKeys
from tokenshard.sources.outcome import cleaned, planned_reject, rejected
from tokenshard.sources.plan import BATCH, Input, plan_batches, planned_inputs
from tokenshard.spec.codes import ImportSourceSpec
from tokenshard.spec.exchange import ExportDescription
from tokenshard.store import Store

REMEDY = "restore the file from a copy"
LABELS = ("label", "labels", "cls")
"""Columns taken for labels where nothing is said about them."""

Load = Callable[[], NDArray[Any]]
"""Loads the ids of a sample as they lie in the file; raises InputError (or what NumPy raises) where they are bad."""


@dataclass(frozen=True)
class Record:
    """A sample met while planning, with its ids where they were read to find out their layout."""

    row: Input
    codes: NDArray[Any] | None = None


class CodeFiles(ABC):
    """Ids in files of one format. ``state``: what :meth:`state` returned where the source was planned."""

    format: ClassVar[str]
    flat: ClassVar[bool] = False
    """whether the format keeps ids without a shape"""

    def __init__(
        self, spec: ImportSourceSpec, storage: Mapping[str, Any] | None = None, state: Mapping[str, Any] | None = None
    ) -> None:
        self.spec, self._storage = spec, dict(storage or {})
        self.files = find_files(spec.path, storage, None if state is None else str(state["what"]))
        self.store = self.files.store
        if unknown := set(spec.options) - {"levels"}:
            raise self.error(f"format {self.format} has no option {sorted(unknown)[0]!r}; it has levels")
        found = read_description(self.store, self.format) if state is None else (state["described"] or None)
        self.described = None if found is None else ExportDescription.model_validate(found, from_attributes=True)
        self.levels = self._levels()
        self._columns: tuple[SourceColumn, ...] = ()
        self._names: list[str] = list((state or {}).get("columns", []))
        self._classes: dict[str, list[str]] = dict((state or {}).get("classes", {}))
        self._numbers = {name: {text: i for i, text in enumerate(names)} for name, names in self._classes.items()}
        self._layout = None if state is None else CodeLayout(**_tuples(state["layout"]))

    # -- what a format says -------------------------------------------------------------------------------------------

    @abstractmethod
    def fields(self) -> Sequence[pa.Field]:
        """Columns of the files beside key and ids. Called once, before :meth:`records`."""

    @abstractmethod
    def records(self) -> Iterator[Record]:
        """All samples, with :meth:`fields` as ``meta``. Ids may be left out where :attr:`looks` is false."""

    @abstractmethod
    def loads(self, uri: str, rows: Sequence[Input]) -> Iterator[Load]:
        """How to load the ids of each of these rows of one file. Lazy."""

    def declared_alphabets(self) -> tuple[int, ...] | None:
        """Alphabets that the files themselves declare, e.g. by the size of a codebook."""
        return None

    def origin(self) -> dict[str, JsonValue]:
        """What the dataset remembers of the files. Not in its fingerprint."""
        return {"format": self.format}

    def tensors(self) -> Mapping[str, NDArray[Any]] | None:
        """Tensors that came with the ids."""
        return None

    # -- the contract of sources --------------------------------------------------------------------------------------

    def plan(self) -> Iterator[pa.RecordBatch]:
        fields = list(self.fields())
        label, looked = self._label_of(fields), _Looked(self.levels)
        classes = ClassNames() if label is not None and is_text(label.type) else None

        def rows() -> Iterator[Input]:
            for record in self.records():
                if classes is not None and label is not None:
                    classes.add([record.row.meta.get(label.name)])
                yield self._looked_at(record, looked)

        usable, problem = 0, None
        for batch in plan_batches(_fitting(rows(), fields), fields, UniqueKeys(), contained=True):
            usable += batch.column("error").null_count
            problem = problem or next((error for error in batch.column("error").to_pylist() if error), None)
            yield batch
        if not usable:
            reason = f"; the first problem is: {problem}" if problem else f" of format {self.format}; check the path"
            raise self.error(f"no usable samples found{reason}")
        self._deliver(fields, label, classes)
        self._layout = self._found_layout(looked, {field.name for field in fields})

    def columns(self) -> tuple[SourceColumn, ...]:
        return self._columns

    def state(self) -> dict[str, Any]:
        return {
            "what": self.files.what,
            "described": None if self.described is None else self.described.model_dump(mode="json"),
            "columns": self._names,
            "classes": self._classes,
            "layout": json.loads(json.dumps(asdict(self.layout()))),
        }

    def layout(self) -> CodeLayout:
        if self._layout is None:
            raise RuntimeError("the layout is known when planning is complete")
        return self._layout

    def tokenizer(self) -> Store | Mapping[str, NDArray[Any]] | None:
        if self.spec.tokenizer is not None:
            return Store(self.spec.tokenizer, self._storage)
        if self.described is not None and self.store.exists("tokenizer/tokenizer.json"):
            return Store(self.store.url("tokenizer"), self._storage)
        return self.tensors()

    def read(self, inputs: pa.Table) -> Iterator[Thunk]:
        rows = planned_inputs(inputs, [*self._names, *self.layout().extents])
        for uri, same in groupby(rows, key=lambda row: row.uri):
            group = list(same)
            loads = self.loads(uri, [row for row in group if row.error is None])
            for row in group:
                if row.error is not None:
                    yield partial(planned_reject, row.key, row.uri, row.error)
                else:
                    yield partial(self._sample, row, next(loads))

    # -- ids ----------------------------------------------------------------------------------------------------------

    @property
    def looks(self) -> bool:
        """Whether planning has to look at the ids: nobody has said how they are laid out."""
        return self.described is None

    def shaped(self, codes: NDArray[Any], row: Input) -> NDArray[Any]:
        """Ids as the file has them -> [levels, *grid]. Raises InputError."""
        if not np.issubdtype(codes.dtype, np.integer):
            raise InputError(f"codes are {codes.dtype}, not integers")
        grid = self.spec.grid or (self._described_grid(row) if self.flat else None)
        if grid is not None:
            if codes.size != self.levels * int(np.prod(grid, dtype=np.float64)):
                levels = f"{self.levels} levels of " if self.levels > 1 else ""
                raise InputError(f"{codes.size} ids do not fill {levels}a token grid of {list(grid)}")
            return codes.reshape(self.levels, *grid)
        if self.levels == 1:
            return codes[None]
        if self.flat and codes.size % self.levels == 0:
            return codes.reshape(self.levels, -1)
        if codes.ndim < 2 or len(codes) != self.levels:
            raise InputError(f"codes of shape {list(codes.shape)} do not begin with an axis of {self.levels} levels")
        return codes

    def error(self, what: str) -> SpecError:
        return SpecError(f"{self.spec.path}: {what}")

    def damaged(self, name: str, what: str) -> FormatError:
        return FormatError(f"{self.store.url(name)}: {what}; {REMEDY}")

    def _described_grid(self, row: Input) -> tuple[int, ...] | None:
        described = self.described
        if described is None:
            return None
        if None not in described.grid:
            return tuple(side or 0 for side in described.grid)
        sizes = self._size(row)
        if sizes is None:
            return None
        return tuple(-(-size // step) for size, step in zip(sizes, described.downsample, strict=True))

    def _size(self, row: Input) -> tuple[int, ...] | None:
        names = self.described.extents if self.described else ()
        values = [row.meta.get(name) for name in names]
        return tuple(int(value) for value in values if value is not None) if names and None not in values else None

    def _sample(self, row: Input, load: Load) -> Sample | Reject:
        try:
            codes = self.shaped(load(), row)
            columns = {
                name: self._class_number(name, row.meta[name]) if name in self._classes else row.meta[name]
                for name in self._names
            }
            return Sample(row.key, row.uri, codes, row.bytes or codes.nbytes, columns, self._size(row))
        except Exception as error:
            if isinstance(error, FormatError) or (isinstance(error, StoreError) and error.transient):
                raise
            return rejected(row.key, row.uri, "decode", error)

    def _class_number(self, name: str, value: str | None) -> int | None:
        return None if value is None else self._numbers[name][value]

    def _looked_at(self, record: Record, looked: _Looked) -> Input:
        row = record.row
        text = row.key.encode("utf-8", "backslashreplace").decode()
        if text != row.key:
            return replace(row, key=text, error="UnicodeError: the key is not Unicode text")
        if row.error is not None:
            return replace(row, error=cleaned(row.error))
        if record.codes is None:
            return row
        try:
            looked.at(self.shaped(record.codes, row))
        except (InputError, ValueError) as error:
            return replace(row, error=f"InputError: {error}")
        return row

    # -- findings -----------------------------------------------------------------------------------------------------

    def _levels(self) -> int:
        given = self.spec.options.get("levels")
        if given is not None:
            if not isinstance(given, int) or not 1 <= given <= 256:
                raise self.error(f"option levels: {given!r} is not a number from 1 to 256")
            return given
        if isinstance(self.spec.alphabet, tuple):
            return len(self.spec.alphabet)
        return len(self.described.alphabets) if self.described else 1

    def _label_of(self, fields: Sequence[pa.Field]) -> pa.Field | None:
        """The label column that the spec names, or one of the usual names."""
        named = {field.name: field for field in fields}
        if self.spec.labels == "none":
            return None
        if self.spec.labels != "auto":
            if self.spec.labels not in named:
                raise self.error(f"no column {self.spec.labels!r} for labels; it has {', '.join(named) or 'none'}")
            return named[self.spec.labels]
        if self.described is not None:
            return None
        return next((named[name] for name in LABELS if name in named), None)

    def _deliver(self, fields: Sequence[pa.Field], label: pa.Field | None, classes: ClassNames | None) -> None:
        declared: dict[str, tuple[str, ...] | None] = dict(self.class_names())
        if self.described is not None:
            declared |= {column.name: column.names for column in self.described.columns if column.role == "label"}
        found = []
        for field in fields:
            if is_reserved(field.name):  # shards have columns of their own of these names
                continue
            is_label = label is not None and field.name == label.name
            if is_label and classes is not None:
                found.append(classes.column(field.name))
            elif is_label or (field.name in declared and self.spec.labels == "auto"):
                found.append(SourceColumn(field.name, field.type, "label", declared.get(field.name)))
            else:
                found.append(SourceColumn(field.name, field.type, "metadata"))
        self._columns = tuple(found)
        self._names = [column.name for column in found]
        if classes is not None and label is not None and (names := classes.column(label.name).names) is not None:
            self._classes = {label.name: list(names)}
            self._numbers = {label.name: {text: number for number, text in enumerate(names)}}

    def class_names(self) -> Mapping[str, tuple[str, ...]]:
        """Class names that the files themselves declare for columns of numbers."""
        return {}

    def _found_layout(self, looked: _Looked, names: set[str]) -> CodeLayout:
        described = self.described
        alphabets = described.alphabets if described else self.declared_alphabets() or looked.alphabets
        if self.spec.alphabet is not None:
            given = self.spec.alphabet
            alphabets = given if isinstance(given, tuple) else (given,) * self.levels
        if len(alphabets) != self.levels:
            raise self.error(f"alphabets of {len(alphabets)} levels for ids of {self.levels}")
        grid = looked.grid if described is None else described.grid
        keeps_extents = described is not None and set(described.extents) <= names
        return CodeLayout(
            alphabets=alphabets,
            grid=self.spec.grid or grid,
            extents=described.extents if described and keeps_extents else (),
            downsample=described.downsample if described and keeps_extents else (),
            kind=self._kind(),
            preprocess=described.preprocess if described else {},
            origin=self.origin(),
        )

    def _kind(self) -> Any:
        if self.spec.modality != "auto":
            return self.spec.modality
        return self.described.kind if self.described else "generic"


class _Looked:
    """What the ids of all samples have in common."""

    def __init__(self, levels: int) -> None:
        self._largest, self._grid = np.zeros(levels, np.int64), None

    _grid: tuple[int | None, ...] | None

    def at(self, codes: NDArray[Any]) -> None:
        """Ids [levels, *grid] of one more sample. Raises InputError where they are unlike all others."""
        shape = codes.shape[1:]
        if not 1 <= len(shape) <= 3:
            raise InputError(f"codes of shape {list(codes.shape)}; token grids have 1 to 3 axes")
        if codes.size and int(codes.min()) < 0:
            raise InputError(f"the id {int(codes.min())} is negative")
        if self._grid is None:
            self._grid = shape
        elif self._grid != shape:
            if len(self._grid) != len(shape):
                raise InputError(f"a token grid of {list(shape)} among grids of {len(self._grid)} axes")
            self._grid = tuple(a if a == b else None for a, b in zip(self._grid, shape, strict=True))
        if codes.size:
            np.maximum(self._largest, codes.reshape(len(codes), -1).max(axis=1), out=self._largest)

    @property
    def alphabets(self) -> tuple[int, ...]:
        return tuple((self._largest + 1).tolist())

    @property
    def grid(self) -> tuple[int | None, ...]:
        return self._grid or (None,)


def described_fields(described: ExportDescription | None) -> list[pa.Field]:
    """The columns of an export, with their types."""
    return [] if described is None else list(described_schema(described))


def _fitting(rows: Iterable[Input], fields: Sequence[pa.Field]) -> Iterator[Input]:
    """The rows; one with a value that its column cannot hold gets an error instead of the value."""
    stream = iter(rows)
    while part := list(islice(stream, BATCH)):
        for field in fields:
            if _fit([row.meta.get(field.name) for row in part], field.type):
                continue
            for place, row in enumerate(part):
                if not _fit([value := row.meta.get(field.name)], field.type):
                    error = f"ValueError: {str(value)[:40]!r} in column {field.name!r} is no {field.type}"
                    part[place] = replace(row, error=row.error or error, meta={**row.meta, field.name: None})
        yield from part


def _fit(values: list[Any], kind: pa.DataType) -> bool:
    try:
        pa.array(values, kind).validate(full=True)
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        return False
    return True


def _tuples(layout: Mapping[str, Any]) -> dict[str, Any]:
    """A layout that went through JSON."""
    plain = {name: tuple(value) if isinstance(value, list) else value for name, value in layout.items()}
    return {**plain, "made": tuple(MadeColumn(**column) for column in layout.get("made", ()))}
