"""A dataset of page vectors as a source of them: its codes, and all columns that are needed to make vectors again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenshard.errors import SpecError
from tokenshard.sources.base import SourceColumn
from tokenshard.sources.codes.dataset import DatasetSource
from tokenshard.sources.documents.base import MADE, MERGE
from tokenshard.spec.codes import DatasetSourceSpec
from tokenshard.spec.documents import VectorSourceSpec
from tokenshard.spec.tokenizer import PAGES
from tokenshard.store import Store


class PageDatasetSource(DatasetSource):
    """Samples have the codes [levels, n] of a page, and streams and places among their columns."""

    form = "dataset"

    def __init__(
        self, spec: VectorSourceSpec, storage: Mapping[str, Any], state: Mapping[str, Any] | None = None
    ) -> None:
        store = Store(spec.path, storage)
        super().__init__(DatasetSourceSpec(path=spec.path, version=spec.version), store, state)
        if self._dataset.tokenizer_files()[0].kind != PAGES:
            raise SpecError(f"{spec.path}: a dataset of {self._manifest.kind}; it holds no vectors of pages")

    def columns(self) -> tuple[SourceColumn, ...]:
        """Those that do not belong to the codes."""
        made = {column.name for column in MADE}
        return tuple(column for column in super().columns() if column.role != "stream" and column.name not in made)

    def state(self) -> dict[str, Any]:
        return {**super().state(), "form": self.form}

    @property
    def merged(self) -> bool:
        """Whether its vectors are fewer than an encoder made."""
        return MERGE.name in {column.name for column in self._manifest.columns}
