"""What all exporters of page vectors get: the pages of a dataset, a row group at a time, and where their files go."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from tokenshard.errors import SpecError
from tokenshard.retrieval.compression import state
from tokenshard.retrieval.compression.base import Compressor, Encoded
from tokenshard.retrieval.exact import Multivectors, Vectors
from tokenshard.retrieval.pages import PageCodes
from tokenshard.retrieval.patches import Patches
from tokenshard.shards.dataset import Dataset
from tokenshard.shards.export.base import Contents, Output
from tokenshard.shards.export.json_values import is_json
from tokenshard.shards.schema import KEY
from tokenshard.sources.documents.base import MADE

INTERNAL = frozenset(column.name for column in MADE)
"""Columns that describe codes, not pages."""


@dataclass(frozen=True)
class PageBatch:
    """Neighbouring pages."""

    keys: list[str]
    columns: pa.Table
    """the exported columns of these pages"""
    encoded: Encoded
    compressor: Compressor
    patches: list[Patches]

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def vectors(self) -> Multivectors:
        """What the codes stand for, float32 [N, d]."""
        return self.compressor.decode(self.encoded)

    @cached_property
    def row_means(self) -> Multivectors:
        """The mean of the vectors in each row of patches that has any, of length 1: few vectors for a first search."""
        means = []
        for page, patches in enumerate(self.patches):
            height, width = patches.grid
            rows = patches.positions // max(1, width)
            sums: Vectors = np.zeros((max(1, height), self.compressor.dimensions), np.float32)
            np.add.at(sums, rows, self.vectors[page])
            kept = sums[np.bincount(rows, minlength=len(sums)) > 0]
            means.append(kept / np.maximum(np.linalg.norm(kept, axis=1, keepdims=True), 1e-12))
        return Multivectors.of(means, self.compressor.dimensions)

    def payloads(self) -> list[dict[str, Any]]:
        """The columns of each page as JSON values, without those that are null."""
        rows = self.columns.to_pylist() if self.columns.num_columns else [{} for _ in self.keys]
        return [
            {KEY: key} | {name: value for name, value in row.items() if value is not None}
            for key, row in zip(self.keys, rows, strict=True)
        ]


class ExportedPages:
    """The pages of a dataset, and which of their columns go along."""

    def __init__(self, dataset: Dataset, columns: tuple[str, ...] | None = None) -> None:
        """``columns``: None for all that describe pages. Raises SpecError where the dataset holds no page vectors."""
        if dataset.manifest.kind != "document":
            raise SpecError(f"{dataset.store.root}: holds no page vectors; this format is for those of documents")
        contents = Contents(dataset, columns)
        self.dataset = dataset
        self.schema = pa.schema([field for field in contents.schema if columns or field.name not in INTERNAL])
        self.compressor = state.load(dataset.tokenizer_files()[1])

    def check_json(self) -> None:
        """Raises SpecError for a column whose values JSON cannot hold."""
        if bad := [field.name for field in self.schema if not is_json(field.type)]:
            raise SpecError(f"the column {bad[0]!r} cannot be written as JSON; leave it out with --columns")

    def batches(self) -> Iterator[PageBatch]:
        made = [name for name in self.dataset.schema.names if name in INTERNAL]
        names = list(dict.fromkeys([KEY, *self.schema.names, *made]))
        for group, encoded in enumerate(PageCodes(self.dataset, self.compressor).encoded()):
            table = self.dataset.group_table(group, names)
            patches = [Patches.of(row) for row in table.select(made).to_pylist()]
            yield PageBatch(table[KEY].to_pylist(), table.select(self.schema.names), encoded, self.compressor, patches)


class PageWriter(ABC):
    """Writes pages in one format. Raises SpecError for what it cannot hold, where it can before anything is written."""

    def __init__(self, pages: ExportedPages, output: Output) -> None:
        self.pages, self.output = pages, output

    @abstractmethod
    def add(self, batch: PageBatch) -> None: ...

    @abstractmethod
    def close(self) -> None: ...
