"""A collection made larger, the rankings by exact MaxSim in it, and how good and how fast others are."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenshard.retrieval.compression import kernels
from tokenshard.retrieval.compression.base import Scorer
from tokenshard.retrieval.evaluation import Judgements, measured, ndcg, overlap
from tokenshard.retrieval.exact import Multivectors
from tokenshard.retrieval.first_stages.lists import InvertedLists

THREADS = 2
EIGHTHS = 8
SETTINGS = ((16, 64), (32, 64), (32, 128), (32, 256), (64, 512))
"""Of inverted lists: probes, and pages that are scored on their codes."""
Queries = Sequence[NDArray[np.float32]]
Rankings = list[NDArray[np.int64]]
Find = Callable[[NDArray[np.float32]], NDArray[np.int64]]
Search = Callable[[Queries], Rankings]


@dataclass(frozen=True)
class Collection:
    """Documents and queries as vectors, with judgements."""

    pages: Multivectors
    queries: Multivectors
    keys: list[str]
    asked: list[str]
    judgements: Judgements


@dataclass(frozen=True)
class Large:
    """A collection made larger by documents of which each has an eighth of the vectors of some others, eight or fewer.

    Document p has the vectors ``rows[offsets[p]:offsets[p + 1]]`` of the collection.
    """

    collection: Collection
    rows: NDArray[np.int32]
    offsets: NDArray[np.int64]
    queries: list[NDArray[np.float32]]
    asked: list[str]
    exact: Rankings

    @classmethod
    def of(
        cls, collection: Collection, count: int, queries: int, threads: int = THREADS, others: int = EIGHTHS
    ) -> Large:
        rng = np.random.default_rng(count)
        base = collection.pages.offsets
        parts = [np.arange(base[-1])]
        lengths = [collection.pages.lengths]
        for _ in range(count - len(collection.pages)):
            own = []
            for page in rng.integers(0, len(collection.pages), others):
                mine = np.arange(base[page], base[page + 1])
                own.append(rng.permutation(mine)[: len(mine) // EIGHTHS])
            parts.append(np.concatenate(own))
            lengths.append(np.array([len(parts[-1])]))
        rows = np.concatenate(parts).astype(np.int32)
        offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
        chosen = np.linspace(0, len(collection.queries) - 1, min(queries, len(collection.queries))).astype(int).tolist()
        vectors = [collection.queries[query] for query in chosen]
        exact = in_threads(lambda query: best(exact_scores(collection.pages.vectors, rows, offsets, query)), threads)
        return cls(collection, rows, offsets, vectors, [collection.asked[query] for query in chosen], exact(vectors))

    def quality(self, found: Sequence[Sequence[int] | NDArray[np.int64]]) -> tuple[float, float]:
        """nDCG@10 and overlap."""
        run, exact = self._named(found), self._named(self.exact)
        judged = {query: self.collection.judgements[query] for query in self.asked}
        value = float(measured(ndcg, run, judged, 10).mean())
        return value, float(np.mean([overlap(run[query], exact[query]) for query in self.asked]))

    def _named(self, found: Sequence[Sequence[int] | NDArray[np.int64]]) -> dict[str, list[str]]:
        keys, known = self.collection.keys, len(self.collection.keys)
        return {
            query: [keys[page] if page < known else f"made {page}" for page in own]
            for query, own in zip(self.asked, found, strict=True)
        }


def exact_scores(
    vectors: NDArray[np.float32], rows: NDArray[np.int32], offsets: NDArray[np.int64], query: NDArray[np.float32]
) -> NDArray[np.float32]:
    """MaxSim float32 [P]: each similarity is computed once and looked up for all documents that have the vector."""
    tables = [(vectors @ columns, count, lanes) for columns, count, lanes in kernels.query_tables(query)]
    out = np.empty(len(offsets) - 1, np.float32)
    codes = rows[:, None], np.zeros(1, np.int32)
    kernels.add_parts(kernels.lookup_maxsim, tables, codes, offsets, np.arange(len(out)), out)
    return out


def best(scores: NDArray[Any], count: int = 10) -> NDArray[np.int64]:
    return np.argsort(-scores, kind="stable")[:count]


def most(scores: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Numbers of the largest, ascending."""
    count = min(count, len(scores))
    found = np.sort(np.argpartition(-scores, count - 1)[:count])
    return found[np.isfinite(scores[found])]


def in_threads(find: Find, threads: int = THREADS) -> Search:
    """Each query by itself, as many at a time as there are threads."""

    def run(queries: Queries) -> Rankings:
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(find, queries))

    return run


def lists_search(lists: InvertedLists, scorer: Scorer, probes: int, candidates: int) -> Find:
    def search(query: NDArray[np.float32]) -> NDArray[np.int64]:
        pages = most(lists.estimates(query, probes), candidates)
        return pages[best(scorer.scores(query, pages))]

    return search


@dataclass(frozen=True)
class Timed:
    """What a search found, and what a query took: CPU time of all threads, and queries a second by the clock."""

    found: list[list[int]]
    cpu_ms: float
    queries_a_second: float


def timed(search: Search, queries: Queries, repeats: int = 3, seconds: float = 2) -> Timed:
    """The quickest of some repeats, after a few queries to warm up; no repeat begins after so many seconds."""
    search(queries[:2])
    took: list[tuple[float, float]] = []
    end = time.perf_counter() + seconds
    while not took or (len(took) < repeats and time.perf_counter() < end):
        cpu, clock = time.process_time(), time.perf_counter()
        found = search(queries)
        took.append((time.perf_counter() - clock, time.process_time() - cpu))
    clock, cpu = min(took)[0], min(own for _, own in took)
    return Timed([own.tolist() for own in found], 1e3 * cpu / len(queries), len(queries) / clock)
