"""What all forms of documents share: the columns of a page, and reading planned pages into thunks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tokenshard.errors import StoreError
from tokenshard.shards.drift import ERROR_COLUMN
from tokenshard.sources.base import MadeColumn, Reject, Sample, SourceColumn, TextLayer, Thunk
from tokenshard.sources.images.files import Files
from tokenshard.sources.outcome import planned_reject, rejected
from tokenshard.sources.plan import Input, planned_inputs
from tokenshard.spec.documents import DocumentSourceSpec

COLUMNS = (
    SourceColumn("document", pa.string(), "metadata"),  # path below the source, or id in a corpus
    SourceColumn("page", pa.int32(), "metadata"),  # from 1
    SourceColumn("pages", pa.int32(), "metadata"),  # of the document
    SourceColumn("document_sha256", pa.string(), "metadata"),
    SourceColumn("title", pa.string(), "metadata"),
    SourceColumn("metadata", pa.string(), "metadata"),  # JSON: what else the document says of itself
    SourceColumn("page_width", pa.float32(), "metadata"),  # points; of page images pixels
    SourceColumn("page_height", pa.float32(), "metadata"),
    SourceColumn("page_rotation", pa.int16(), "metadata"),  # degrees clockwise
    SourceColumn("needs_ocr", pa.bool_(), "metadata"),  # something is drawn, and no text layer says what
    SourceColumn("text", pa.string(), "metadata"),
)
"""What every page carries; null where a form of documents does not know it."""

GRID_COLUMNS = (MadeColumn("grid_height", "int32"), MadeColumn("grid_width", "int32"))
"""patches of a page"""
POSITIONS = MadeColumn("positions", "binary")
"""uint16 or, where a page has more than 65,536 patches, uint32, little-endian, one a vector in the order of the codes:
row * grid_width + column of its patch; of a vector that was made of several, the patch of the most salient of these"""
SALIENCY = MadeColumn("saliency", "binary")
"""uint8, one a vector in the order of the codes: 32 * log2(share) + 128 of the attention it received, 0 where none is
known"""
PATCHES = MadeColumn("patches", "binary")
"""only where vectors were pruned or pooled: patch of each vector that the encoder made, as `positions`"""
MERGE = MadeColumn("merge", "binary")
"""beside `patches`: number of the code that each of the encoder's vectors became a part of, uint16 (uint32 where a page
has 65,535 codes or more); all bits set where it was dropped"""
ERROR = MadeColumn(ERROR_COLUMN, "float")
"""only of learned codebooks of a fixed rate"""
MADE = (*GRID_COLUMNS, POSITIONS, SALIENCY, PATCHES, MERGE, ERROR)
"""columns that compression makes of any page, beside the streams of its method"""

NOT_DRAWN: NDArray[np.uint8] = np.zeros((0, 0, 3), np.uint8)


@dataclass(frozen=True)
class PageContent:
    """What reading a page finds."""

    text: TextLayer
    columns: Mapping[str, Any]
    """those of :data:`COLUMNS` that planning does not know"""
    image: NDArray[np.uint8] = field(default_factory=lambda: NOT_DRAWN)


class ReadError(Exception):
    """Wraps what went wrong with the stage in which it did."""

    def __init__(self, stage: str, error: Exception) -> None:
        super().__init__(str(error))
        self.stage, self.error = stage, error


Read = Callable[[], PageContent]
"""Reads one page. Raises ReadError."""


class DocumentSource(ABC):
    """Documents in one form. ``state``: what :meth:`state` returned where the source was planned."""

    form: ClassVar[str]
    planned: ClassVar[tuple[str, ...]]
    """columns of :data:`COLUMNS`, and others for reading, that planning finds"""

    def __init__(
        self, spec: DocumentSourceSpec, files: Files, storage_options: Mapping[str, Any] | None = None
    ) -> None:
        self.spec, self.files, self.store = spec, files, files.store
        self.storage_options = storage_options

    @abstractmethod
    def plan(self) -> Iterator[pa.RecordBatch]: ...

    def columns(self) -> tuple[SourceColumn, ...]:
        return COLUMNS

    def state(self) -> dict[str, Any]:
        return {"form": self.form, "what": self.files.what}

    def read(self, inputs: pa.Table) -> Iterator[Thunk]:
        rows = list(planned_inputs(inputs, self.planned))
        reads = self._reads([row for row in rows if row.error is None])
        for row in rows:
            if row.error is not None:
                yield partial(planned_reject, row.key, row.uri, row.error)
            else:
                yield partial(_page, row, next(reads))

    @abstractmethod
    def _reads(self, rows: Sequence[Input]) -> Iterator[Read]:
        """How to read each of some planned pages."""
        ...


def _page(row: Input, read: Read) -> Sample | Reject:
    """Read one page. Storage that is out of reach for now is raised, all else that goes wrong becomes a reject."""
    try:
        content = read()
    except ReadError as failed:
        if isinstance(failed.error, StoreError) and failed.error.transient:
            raise failed.error from None
        return rejected(row.key, row.uri, failed.stage, failed.error)
    columns = {column.name: row.meta.get(column.name) for column in COLUMNS}
    return Sample(row.key, row.uri, content.image, row.bytes or 0, {**columns, **content.columns}, text=content.text)


T = TypeVar("T")


def staged(stage: str, step: Callable[[], T]) -> T:
    """The result of a step; what it raises as a ReadError of that stage."""
    try:
        return step()
    except Exception as error:
        raise ReadError(stage, error) from error
