"""A graph of mean vectors, of length 1: one for each row of patches of a page (one a page, where rows are not known).

The graph (Malkov and Yashunin, HNSW, arXiv:1603.09320), one of FAISS, is stored as plain arrays, checked before FAISS
sees them. A page is rated as by inverted lists: for each query vector by the best of its means that was found.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from tokenshard.errors import FormatError
from tokenshard.retrieval.compression.base import Compressor
from tokenshard.retrieval.compression.kmeans import faiss_library
from tokenshard.retrieval.exact import Multivectors, Vectors
from tokenshard.retrieval.first_stages.base import Arrays, FirstStage, Numbered, Part
from tokenshard.retrieval.first_stages.lists import gathered
from tokenshard.retrieval.first_stages.signs import check_pages

LINKS = 16
"""Links of a node, on all levels but the lowest, which has twice as many."""
BUILD_BREADTH = 80
_MAX_LEVELS = 32


class Hnsw(FirstStage):
    """``means`` float16 [M, d], ``counts`` int32 of each page; ``levels`` int32 [M], ``links`` int32, ``entry``."""

    name: ClassVar[str] = "hnsw"

    def __init__(self, graphs: Sequence[Any], firsts: Sequence[int], page_of: NDArray[np.int64], count: int) -> None:
        self._graphs, self._firsts, self._page_of, self._count = graphs, firsts, page_of, count
        self._starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(page_of >= 0)])
        self._pages = page_of[page_of >= 0].astype(np.int32)

    @classmethod
    def build(cls, compressor: Compressor, centroids: Vectors | None, pages: Iterable[Numbered]) -> tuple[Arrays, int]:
        means = [np.zeros((0, compressor.dimensions), np.float16)]
        counts, names = list[int](), [np.zeros(0, np.int64)]
        for part in pages:
            vectors = compressor.decode(part.encoded)
            own = [_means(vectors, page, part.rows) for page in range(len(vectors))]
            counts += [len(rows) for rows in own]
            means += own
            names.append(part.pages)
        stored = np.concatenate(means)
        graph = faiss_library().IndexHNSWFlat(compressor.dimensions, LINKS, faiss_library().METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = BUILD_BREADTH
        with _one_thread():  # the graph then depends on the vectors alone
            graph.add(stored.astype(np.float32))
        array = faiss_library().vector_to_array
        return {
            "pages": np.concatenate(names),
            "counts": np.array(counts, np.int32),
            "means": stored,
            "levels": array(graph.hnsw.levels),
            "links": array(graph.hnsw.neighbors),
            "entry": np.array([graph.hnsw.entry_point], np.int32),
        }, len(stored)

    @classmethod
    def open(cls, compressor: Compressor, centroids: Vectors | None, parts: Sequence[Part], count: int) -> Self:
        graphs, firsts, page_of, first = list[Any](), list[int](), [np.zeros(0, np.int64)], 0
        for part in parts:
            check_pages(part, part.arrays["means"], np.float16, compressor.dimensions)
            graphs.append(_graph(part.arrays, compressor.dimensions))
            firsts.append(first)
            page_of.append(np.repeat(part.numbers[part.arrays["pages"]], part.arrays["counts"]))
            first += part.entries
        return cls(graphs, firsts, np.concatenate(page_of), count)

    @property
    def nbytes(self) -> int:
        width = 4 * (self._graphs[0].d + 2 * LINKS) if self._graphs else 0
        return len(self._page_of) * (width + 8) + self._pages.nbytes

    def estimates(self, query: Vectors, probes: int, threads: int = 1) -> Vectors:
        values, found = [np.zeros((len(query), 0), np.float32)], [np.zeros((len(query), 0), np.int64)]
        for graph, first in zip(self._graphs, self._firsts, strict=True):
            most = min(probes, graph.ntotal)
            if most:
                breadth = faiss_library().SearchParametersHNSW(efSearch=max(most, LINKS))
                similar, nodes = graph.search(query, most, params=breadth)
                values.append(np.where(nodes >= 0, similar, -np.inf))
                found.append(np.where(nodes >= 0, nodes + first, 0))
        similar, nodes = np.concatenate(values, 1), np.concatenate(found, 1)
        if not similar.shape[1]:
            return np.full(self._count, -np.inf, np.float32)
        order = np.argsort(-similar, 1, kind="stable")[:, :probes]
        similar, nodes = np.take_along_axis(similar, order, 1), np.take_along_axis(nodes, order, 1)
        missed = np.where(np.isfinite(similar), similar, np.inf).min(1)
        similar = np.maximum(similar, missed[:, None])
        return gathered(nodes, similar, missed, self._starts, self._pages, self._count, threads)


def _means(vectors: Multivectors, page: int, rows: Sequence[NDArray[np.int64]]) -> NDArray[np.float16]:
    """[rows, d] of a page, none where it has no vectors. Of length 1: a row whose vectors differ is no worse for it."""
    own = vectors[page]
    found, place = np.unique(rows[page] if rows else np.zeros(len(own), np.int64), return_inverse=True)
    sums = np.zeros((len(found), own.shape[1]))
    np.add.at(sums, place, own)
    sums /= np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
    return sums.astype(np.float16)


def _graph(arrays: Any, dimensions: int) -> Any:
    """The index of checked arrays. Raises FormatError where they are no graph."""
    faiss = faiss_library()
    means = arrays["means"]
    graph = faiss.IndexHNSWFlat(dimensions, LINKS, faiss.METRIC_INNER_PRODUCT)
    levels, links, entry = arrays["levels"], arrays["links"], arrays["entry"]
    if any(array.dtype != np.int32 or array.ndim != 1 for array in (levels, links, entry)) or len(entry) != 1:
        raise FormatError("a graph of another type; build the index again")
    if len(levels) != len(means) or (len(levels) and not 1 <= levels.min() <= levels.max() <= _MAX_LEVELS):
        raise FormatError("a graph of another size; build the index again")
    room = np.concatenate([[0], 2 * LINKS + LINKS * np.arange(_MAX_LEVELS)])
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(room[levels])])
    if len(links) != offsets[-1] or not -1 <= links.min(initial=-1) <= links.max(initial=-1) < len(means):
        raise FormatError("links that lead nowhere; build the index again")
    if not len(means):
        return graph
    if not 0 <= entry[0] < len(means) or levels[entry[0]] != levels.max() or not _leads_down(links, offsets, levels):
        raise FormatError("links that lead to a level that is not there; build the index again")
    graph.storage.add(means.astype(np.float32))
    for name, array in (("levels", levels), ("offsets", offsets.astype(np.uint64)), ("neighbors", links)):
        faiss.copy_array_to_vector(np.ascontiguousarray(array), getattr(graph.hnsw, name))
    graph.hnsw.entry_point, graph.hnsw.max_level = int(entry[0]), int(levels.max()) - 1
    graph.ntotal = len(means)
    return graph


def _leads_down(links: NDArray[np.int32], offsets: NDArray[np.int64], levels: NDArray[np.int32]) -> bool:
    """Whether each link of a level leads to a node that has this level."""
    inside = np.arange(len(links)) - np.repeat(offsets[:-1], np.diff(offsets))
    level = np.maximum((inside - 2 * LINKS) // LINKS + 1, 0)
    there = links >= 0
    return bool((levels[links[there]] > level[there]).all())


class _one_thread:
    def __enter__(self) -> None:
        self._before = faiss_library().omp_get_max_threads()
        faiss_library().omp_set_num_threads(1)

    def __exit__(self, *error: object) -> None:
        faiss_library().omp_set_num_threads(self._before)
