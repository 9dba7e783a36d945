"""Search in a dataset of page vectors: a filter on columns, candidates of an index, MaxSim straight on their codes.

Vectors are never made of the codes. A query is encoded by the encoder that is stored with what it searches. Without an
index, or where it would leave out less than a filter does, all pages are scored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tokenshard.errors import SpecError
from tokenshard.retrieval.compression import state
from tokenshard.retrieval.compression.base import Compressor
from tokenshard.retrieval.encoders.base import PageEncoder, Query, query_vectors
from tokenshard.retrieval.encoders.registry import load_encoder
from tokenshard.retrieval.exact import Vectors
from tokenshard.retrieval.index import Index, open_index
from tokenshard.retrieval.pages import MEMORY, PageCodes, Pages
from tokenshard.shards.dataset import Dataset
from tokenshard.shards.schema import KEY, NUM_TOKENS, length_name
from tokenshard.shards.stats import column_bytes
from tokenshard.shards.where import Where
from tokenshard.spec.search_index import Stage

DOCUMENT, PAGE = "document", "page"
CANDIDATES = 256
PROBES = 32
_BATCH_SCORES = 1 << 26
"""Scores of several queries held at a time."""


@dataclass(frozen=True)
class Effort:
    """How far search may be from scoring all pages."""

    candidates: int = CANDIDATES
    """pages an index proposes for each query, which are then scored on their codes"""
    probes: int = PROBES
    """lists, or neighbours, that are looked at for each query vector"""
    exhaustive: bool = False
    """score all pages, index or not"""


@dataclass(frozen=True)
class Hit:
    """A page that was found."""

    key: str
    document: str
    page: int | None
    score: float
    """MaxSim: the sum over the query's vectors of the best inner product on the page"""


@dataclass(frozen=True)
class Found:
    """The answer to a query."""

    hits: tuple[Hit, ...]
    """best first; equal ones in the order of the dataset"""
    scored: int
    """pages whose codes were scored"""
    exact: bool
    """whether these were all pages that the filter lets through"""


class PageSearch:
    """All pages of a dataset, ready to be scored. Threads may share one."""

    def __init__(
        self,
        dataset: Dataset,
        encoder: str | None = None,
        device: str = "cpu",
        memory: int = MEMORY,
        first_stage: Stage | None = None,
    ) -> None:
        """``encoder``: where the weights of a transformers model are now, e.g. `hf:FOLDER`. ``memory``: bytes that
        codes may take; those beyond are read for each query. ``first_stage``: the index to use, by default the first
        there is.

        Raises SpecError where the dataset holds no page vectors, or not that index; FormatError where its files are
        damaged.
        """
        if dataset.manifest.kind != "document":
            raise SpecError(
                f"{dataset.store.root}: holds no page vectors; make some with: tokenshard convert documents SRC OUT"
            )
        folder = f"tokenizer/{dataset.manifest.tokenizer.fingerprint}"
        self.encoder: PageEncoder = load_encoder(dataset.store, folder, encoder, device)
        self.compressor: Compressor = state.load(dataset.store.read(f"{folder}/model.safetensors"))
        self.dataset = dataset
        self.codes = PageCodes(dataset, self.compressor, memory, device)
        self.index: Index | None = open_index(dataset, self.compressor, first_stage)
        if first_stage is not None and self.index is None:
            raise SpecError(
                f"{dataset.store.root}: has no index of {first_stage}; build it: "
                f"tokenshard search build {dataset.store.root} --first-stage {first_stage}"
            )
        self._pages = dataset.table([KEY, DOCUMENT, PAGE])

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def vectors(self) -> int:
        """Vectors of all pages."""
        return int(self.codes.lengths.sum())

    @property
    def nbytes(self) -> int:
        """Memory that codes and index take at the moment."""
        return self.codes.nbytes + (self.index.stage.nbytes if self.index is not None else 0)

    def where(self, text: str) -> Pages:
        """Numbers of the pages that a predicate on their columns holds for. Raises SpecError that says what is wrong
        with it."""
        predicate = Where.parse(text, self.dataset.schema)
        tables = self.dataset.iter_tables(predicate.columns)
        masks = [predicate.mask(table) for table in tables]
        return np.flatnonzero(np.concatenate([np.zeros(0, np.bool_), *masks]))

    def scores(self, query: Query, threads: int = 1) -> NDArray[np.float32]:
        """MaxSim of a query with each page, in the order of the dataset; -inf for pages without vectors."""
        return self.codes.scores([query_vectors(self.encoder, query)], threads=threads)[0]

    def find(
        self, query: Query, top: int = 10, threads: int = 1, where: str | None = None, effort: Effort | None = None
    ) -> Found:
        """The ``top`` best pages."""
        return self.find_all([query], top, threads, where, effort)[0]

    def find_all(
        self,
        queries: Sequence[Query],
        top: int = 10,
        threads: int = 1,
        where: str | None = None,
        effort: Effort | None = None,
    ) -> list[Found]:
        """The ``top`` best pages for each of several queries. Codes that are not in memory are read once for many."""
        allowed = None if where is None else self.where(where)
        found = []
        for vectors, pages, scores in self._ranked(queries, allowed, effort or Effort(), threads):
            best = np.argsort(-scores, kind="stable")[:top]
            best = best[np.isfinite(scores[best])] if len(vectors) else best[:0]
            rows = self._pages.take(pa.array(pages[best])).to_pylist()
            hits = (
                Hit(row[KEY], row[DOCUMENT], row[PAGE], float(score))
                for row, score in zip(rows, scores[best], strict=True)
            )
            found.append(Found(tuple(hits), len(pages), len(pages) == len(self._scorable(allowed))))
        return found

    def documents(
        self, query: Query, top: int = 10, threads: int = 1, effort: Effort | None = None
    ) -> dict[str, float]:
        """The ``top`` documents by their best pages, best first, with the scores of these."""
        ((_, pages, scores),) = self._ranked([query], None, effort or Effort(), threads)
        found: dict[str, float] = {}
        names = self._pages[DOCUMENT]
        for place in np.argsort(-scores, kind="stable"):
            if len(found) >= top or not np.isfinite(scores[place]):
                break
            found.setdefault(names[int(pages[place])].as_py(), float(scores[place]))
        return found

    def _scorable(self, allowed: Pages | None) -> Pages:
        """Pages with vectors, among those that are allowed."""
        full = np.flatnonzero(self.codes.lengths)
        return full if allowed is None else np.asarray(np.intersect1d(full, allowed, assume_unique=True), np.int64)

    def _ranked(
        self, queries: Sequence[Query], allowed: Pages | None, effort: Effort, threads: int
    ) -> list[tuple[Vectors, Pages, Vectors]]:
        """Vectors of each query, the pages that were scored for it, and their scores."""
        pages = self._scorable(allowed)
        ranked = []
        step = max(1, _BATCH_SCORES // max(1, len(pages)))
        for first in range(0, len(queries), step):
            vectors = [query_vectors(self.encoder, query) for query in queries[first : first + step]]
            chosen = [self._candidates(own, pages, effort, threads) for own in vectors]
            ranked += list(zip(vectors, chosen, self.codes.scores(vectors, chosen, threads), strict=True))
        return ranked

    def _candidates(self, query: Vectors, pages: Pages, effort: Effort, threads: int) -> Pages:
        """Those of the pages that are to be scored: what the index proposes, and what is not in it."""
        if self.index is None or effort.exhaustive or len(pages) <= effort.candidates or not len(query):
            return pages
        estimates = self.index.stage.estimates(query, effort.probes, threads)[pages]
        estimates[~self.index.covered[pages]] = -np.inf
        count = min(effort.candidates, len(pages) - 1)
        best = np.argpartition(-estimates, count)[:count]
        best = best[np.isfinite(estimates[best])]
        beside = np.flatnonzero(~self.index.covered[pages])
        chosen: Pages = pages[np.sort(np.concatenate([best, beside]))]
        return chosen


def bytes_per_vector(dataset: Dataset, vectors: int) -> float:
    """Bytes on disk of the columns that search reads, with the models of their codecs, for each vector."""
    manifest = dataset.manifest
    wanted = {NUM_TOKENS, *(column.name for column in manifest.columns if column.role == "stream")}
    wanted |= {name for spec in manifest.code.columns for name in (spec.column, length_name(spec))}
    sizes: Mapping[str, Any] = column_bytes(dataset)
    total = sum(manifest.models.values()) + sum(size for name, size in sizes.items() if name in wanted)
    return float(total / max(vectors, 1))
