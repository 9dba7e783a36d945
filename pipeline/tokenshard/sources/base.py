"""The source contract: raw inputs -> planned inputs -> decoded samples or rejects.

A source is asked twice. Once, in one process, ``plan()`` streams the inputs in a fixed order; the engine cuts them into
work units and writes them down. Then, on any worker and in any order, ``read()`` turns the planned rows of one unit
into thunks that fetch and decode one input each; the engine runs them on its decode threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import JsonValue

from tokenshard.spec.codec import CodecName
from tokenshard.spec.manifest import DatasetKind
from tokenshard.store import Store

PLAN_COLUMNS = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),  # unique in the dataset
        pa.field(
            "uri", pa.string(), nullable=False
        ),  # relative to the source root with "/" as separator, or a full URL
        pa.field("offset", pa.int64()),  # byte range inside uri (null: the whole file)
        pa.field("bytes", pa.int64()),  # raw bytes of this input (null: unknown until read)
        pa.field("index", pa.int64()),  # position inside uri for containers without byte ranges (row, record, member)
        pa.field("error", pa.string()),  # set when planning already found the input unusable
    ]
)
"""Columns every plan has. A source may add columns of its own (`meta.<name>` are carried to the shards as they are)."""


@dataclass(frozen=True)
class TextLayer:
    """The text of a page, and where its words are."""

    text: str
    spans: NDArray[np.int32]
    """[words, 2]: each word is ``text[start:end]``; ascending"""
    boxes: NDArray[np.float32] | None
    """[words, 4]: left, top, right, bottom of each word as fractions of the upright page; None: no page, just text"""


@dataclass(frozen=True)
class Sample:
    """One decoded input: what a thunk of a source gives."""

    key: str
    uri: str
    data: NDArray[Any]
    """images: uint8 [height, width, 3]; codes made elsewhere: integers [levels, *grid]; pages of documents: uint8
    [height, width, 3], of no size where they are not drawn"""
    raw_bytes: int
    """bytes of the input as it was read"""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """values of the user's columns (labels and metadata), by column name"""
    size: tuple[int, ...] | None = None
    """codes made elsewhere: the extents of the input they stand for, where :class:`CodeLayout` names extent columns
    (None: as large as the token grid, which only a `downsample` of 1 allows)"""
    text: TextLayer | None = None
    """pages of documents: their text"""


@dataclass(frozen=True)
class Reject:
    """One input that could not be read or encoded: a row of the rejects table."""

    key: str
    uri: str
    stage: str
    """plan | fetch | decode | encode | worker"""
    error: str
    """error type, e.g. `UnidentifiedImageError`"""
    message: str
    traceback_sha256: str | None = None


@dataclass(frozen=True)
class SourceColumn:
    """A label or metadata column that the source delivers with every sample."""

    name: str
    type: pa.DataType
    role: str
    """label | metadata"""
    names: tuple[str, ...] | None = None
    """class names of a label column, by label value"""


Thunk = Callable[[], Sample | Reject]


class Source(Protocol):
    """Raw inputs of one job."""

    def plan(self) -> Iterator[pa.RecordBatch]:
        """All inputs in an order that depends on the inputs alone, as batches of :data:`PLAN_COLUMNS` (+ own columns).

        Streams: memory does not grow with the number of inputs. Raises SpecError when there is nothing to read, and
        StoreError when the store cannot list them.
        """
        ...

    def columns(self) -> tuple[SourceColumn, ...]:
        """Label and metadata columns; complete only after :meth:`plan` was exhausted."""
        ...

    def state(self) -> dict[str, Any]:
        """JSON-able findings of :meth:`plan` that :meth:`read` needs on another machine (e.g. class names)."""
        ...

    def read(self, inputs: pa.Table) -> Iterator[Thunk]:
        """One thunk a planned row, in order. A thunk fetches and decodes; it returns a Reject instead of raising."""
        ...


@runtime_checkable
class LongSource(Source, Protocol):
    """A source whose inputs are long, and of which a part is decoded without the rest."""

    def excerpts(self, inputs: pa.Table, frames: int, draw: np.random.Generator) -> tuple[pa.Table, Sequence[float]]:
        """The same planned rows, of which :meth:`read` decodes a random part of about ``frames`` frames each.

        And how many times as long as its part each input is. What has no known length stays whole. The order of the
        rows may change.
        """
        ...


@runtime_checkable
class EndableSource(Source, Protocol):
    """A source that lists its inputs while it plans, and need not list the rest when no more are wanted."""

    def end_plan(self) -> None:
        """No more batches will be taken from :meth:`plan`: what is known by now is complete."""
        ...


@dataclass(frozen=True)
class Sidecar:
    """A file that a dataset keeps beside its shards: `<folder>/<sha256 of the data>.<suffix>`."""

    folder: str
    suffix: str
    data: bytes


@runtime_checkable
class DescribedSource(Source, Protocol):
    """A source whose samples cannot be understood by themselves: what belongs to many of them is in files beside."""

    def sidecars(self) -> Sequence[Sidecar]:
        """Complete only after :meth:`plan` was exhausted. Equal inputs give equal files."""
        ...


@dataclass(frozen=True)
class MadeColumn:
    """A column whose values are made by encoding a sample, beside its ids: a residual, a mask, a time stamp."""

    name: str
    type: str
    """Arrow type by its name: binary, string, bool, int32, float32, …"""


@dataclass(frozen=True)
class CodeLayout:
    """How the ids of a job look; becomes the code columns of the dataset, and what its manifest says about them."""

    alphabets: tuple[int, ...]
    """ids of level i are below alphabets[i]"""
    grid: tuple[int | None, ...]
    """token grid that all samples share, None along axes where they differ or are not known to agree"""
    extents: tuple[str, ...] = ()
    """columns with the size of the input along each grid axis, e.g. height and width; () where it is not known"""
    downsample: tuple[int, ...] = ()
    """input cells a token covers along each grid axis (with extents)"""
    kind: DatasetKind = "generic"
    """what the ids stand for"""
    preprocess: Mapping[str, JsonValue] = field(default_factory=dict)
    """what is known of how the raw inputs were treated before they were encoded"""
    used: tuple[tuple[int, ...], ...] = ()
    """by level the ids that occur, where only these are to be stored (in ascending order, by their number)"""
    codec: CodecName | None = None
    """the codec that suits the ids best, where it need not be measured: `multiset` where their order has no meaning"""
    made: tuple[MadeColumn, ...] = ()
    """columns that the encoder makes"""
    streams: tuple[str, ...] = ()
    """binary columns, made or the user's, whose bytes are packed already: stored as they are"""
    origin: Mapping[str, JsonValue] = field(default_factory=dict)
    """what else is known of where the samples come from (not in the dataset's fingerprint)"""


class CodeSource(Source, Protocol):
    """A source whose samples are codes already: no tokenizer runs, the ids go to the shards as they are."""

    def layout(self) -> CodeLayout:
        """Complete only after :meth:`plan` was exhausted, or where the state of a plan was given."""
        ...

    def tokenizer(self) -> Store | Mapping[str, NDArray[Any]] | None:
        """Folder of the tokenizer that decodes the ids (`tokenizer.json`, `model.safetensors`), where there is one.

        Else the tensors that came with the ids, e.g. a codebook, by name; None where there is nothing.
        """
        ...
