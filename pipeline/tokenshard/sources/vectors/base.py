"""What all files with ready vectors of pages share: planning pages, and reading planned ones into thunks.

A sample's data are the vectors of a page, float32 [n, d].
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tokenshard.errors import FormatError, StoreError
from tokenshard.sources.base import Reject, Sample, SourceColumn, Thunk
from tokenshard.sources.images.files import find_files
from tokenshard.sources.keys import UniqueKeys
from tokenshard.sources.outcome import planned_reject, rejected
from tokenshard.sources.plan import Input, plan_batches, planned_inputs, require_usable
from tokenshard.spec.documents import VectorSourceSpec

DOCUMENT = pa.field("document", pa.string())
PAGE = pa.field("page", pa.int32())

Load = Callable[[], NDArray[np.float32]]
"""Loads the vectors [n, d] of a page; raises InputError, or what NumPy raises, where they are bad."""


class VectorFiles(ABC):
    """Vectors in files of one form. ``state``: what :meth:`state` returned where the source was planned."""

    form: ClassVar[str]
    planned: ClassVar[tuple[pa.Field, ...]] = ()
    """what planning finds that reading needs, beside the columns"""

    def __init__(
        self, spec: VectorSourceSpec, storage: Mapping[str, Any] | None = None, state: Mapping[str, Any] | None = None
    ) -> None:
        self.spec = spec
        self.files = find_files(spec.path, storage, None if state is None else str(state["what"]))
        self.store = self.files.store
        self._names = list((state or {}).get("columns", []))

    @abstractmethod
    def fields(self) -> Sequence[pa.Field]:
        """Columns of the pages; `document` and `page` are among them."""

    @abstractmethod
    def pages(self) -> Iterator[Input]:
        """All pages, in the order of the files, with their columns and what reading needs as ``meta``."""

    @abstractmethod
    def loads(self, uri: str, rows: Sequence[Input]) -> Iterator[Load]:
        """How to load the vectors of each of these pages of one file. Lazy."""

    def plan(self) -> Iterator[pa.RecordBatch]:
        fields = list(self.fields())
        self._names = [field.name for field in fields]
        batches = plan_batches(self.pages(), [*fields, *self.planned], UniqueKeys(), contained=True)
        yield from require_usable(batches, self.spec.path, "vectors")

    def columns(self) -> tuple[SourceColumn, ...]:
        return tuple(SourceColumn(field.name, field.type, "metadata") for field in self.fields())

    def state(self) -> dict[str, Any]:
        return {"form": self.form, "what": self.files.what, "columns": self._names}

    def read(self, inputs: pa.Table) -> Iterator[Thunk]:
        rows = list(planned_inputs(inputs, [*self._names, *(field.name for field in self.planned)]))
        good: dict[str, list[Input]] = {}
        for row in rows:
            if row.error is None:
                good.setdefault(row.uri, []).append(row)
        loads = {uri: self.loads(uri, mine) for uri, mine in good.items()}
        for row in rows:
            if row.error is not None:
                yield partial(planned_reject, row.key, row.uri, row.error)
            else:
                yield partial(self._page, row, next(loads[row.uri]))

    def _page(self, row: Input, load: Load) -> Sample | Reject:
        try:
            vectors = load()
        except Exception as error:
            if isinstance(error, FormatError) or (isinstance(error, StoreError) and error.transient):
                raise
            return rejected(row.key, row.uri, "decode", error)
        columns = {name: row.meta[name] for name in self._names}
        return Sample(row.key, row.uri, vectors, row.bytes or vectors.nbytes, columns)
