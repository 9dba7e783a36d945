"""One method on one corpus: bytes, what is kept of the ranking, and speeds."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieving.corpus import Corpus
from tokenshard.errors import SpecError
from tokenshard.retrieval.compression.accounting import code_bytes, state_bytes
from tokenshard.retrieval.compression.base import Compressor, Encoded, Scorer
from tokenshard.retrieval.compression.bits import Bits, HammingScorer
from tokenshard.retrieval.compression.registry import Method
from tokenshard.retrieval.evaluation import Measure, measured, ndcg, overlap, recall, retained
from tokenshard.retrieval.exact import Multivectors, Vectors, maxsim

MEASURES: dict[str, tuple[Measure, int]] = {"nDCG@10": (ndcg, 10), "recall@2": (recall, 2)}
_PRUNE = re.compile(r"prune:(\w+),")


@dataclass(frozen=True)
class Row:
    """Bytes and speeds are a vector of the whole pages; ``kept``: mean of the measure over that of exact search."""

    codec: str
    bytes_a_vector: float
    codebook_bytes_a_vector: float
    measure: float
    kept: float
    kept_low: float
    kept_high: float
    overlap: float
    fit_seconds: float
    encoded_a_second: float
    opened_a_second: float
    ns_a_pair: float
    memory_a_vector: float

    def __str__(self) -> str:
        interval = f"{100 * self.kept:5.1f} [{100 * self.kept_low:.1f}, {100 * self.kept_high:.1f}]"
        size = f"{self.bytes_a_vector:7.2f} + {self.codebook_bytes_a_vector:5.2f} B"
        speeds = f"{self.encoded_a_second / 1e3:7.0f} k/s {self.opened_a_second / 1e3:8.0f} k/s"
        quality = f"{self.measure:.4f} {interval:20} {self.overlap:.3f}"
        return f"{self.codec:32} {size}  {quality} {speeds} {self.ns_a_pair:6.2f} ns"


@dataclass(frozen=True)
class Fitted:
    """A method with the codebook of some corpus, and how its pages become fewer vectors."""

    name: str
    queries: str
    """`float` as they come, `quantized` by the same codebook, `hamming` distances between ids or sign bits"""
    method: Method
    compressor: Compressor
    seconds: float

    @classmethod
    def on(cls, corpus: Corpus, name: str) -> Fitted:
        """``name``: a codec string, perhaps with `/quantized` or `/hamming` behind, and with `prune:cls` before."""
        text, _, queries = name.partition("/")
        if queries not in ("", "quantized", "hamming"):
            raise SpecError(f"{name}: a codec may be followed by /quantized or /hamming")
        method = Method.parse(text.replace("prune:cls", "prune:attention"))
        began = time.process_time()
        compressor = method.fit(_reduced(corpus, method, name))
        return cls(name, queries or "float", method, compressor, time.process_time() - began)

    def reduced(self, corpus: Corpus) -> Multivectors:
        """The vectors of a corpus that are coded."""
        return _reduced(corpus, self.method, self.name)

    def encoded(self, corpus: Corpus) -> Encoded:
        return self.compressor.encode(self.reduced(corpus))

    def open(self, encoded: Encoded) -> tuple[Scorer, Callable[[Vectors], Vectors]]:
        """Codes in memory, and what scores all of these pages [P] for a query."""
        if self.queries == "hamming":
            return self._hamming(encoded)
        scorer = self.compressor.open(encoded)
        if self.queries == "float":
            return scorer, scorer.scores

        def quantized(query: Vectors) -> Vectors:
            again = self.compressor.decode(self.compressor.encode(Multivectors.of([query])))
            return scorer.scores(again.vectors)

        return scorer, quantized

    def _hamming(self, encoded: Encoded) -> tuple[Scorer, Callable[[Vectors], Vectors]]:
        if isinstance(self.compressor, Bits):
            signs = self.compressor.open_hamming(encoded)
            return signs, signs.scores
        scorer = HammingScorer(encoded.offsets, _words(encoded))

        def by_ids(query: Vectors) -> Vectors:
            words = _words(self.compressor.encode(Multivectors.of([query])))
            scores, full = np.full(len(scorer), -np.inf, np.float32), np.flatnonzero(encoded.lengths)
            found = np.empty(len(full), np.float32)
            scorer.score(words, full, found)
            scores[full] = found
            return scores

        return scorer, by_ids


def measure_fitted(corpus: Corpus, fitted: Fitted, by: str = "nDCG@10") -> Row:
    """What a method keeps of a corpus; its codebook may be that of another."""
    pages, vectors = fitted.reduced(corpus), len(corpus.pages.vectors)
    fitted.open(fitted.compressor.encode(pages.part(0, 4)))[1](corpus.queries[0])  # compile
    encoded, encoding = _timed(lambda: fitted.compressor.encode(pages))
    (scorer, score), opening = _timed(lambda: fitted.open(encoded))
    queries = range(len(corpus.queries))
    scores, scoring = _timed(lambda: np.stack([score(corpus.queries[query]) for query in queries]))
    run, exact = corpus.run(scores), corpus.run(corpus.exact)
    values, base = (measured(MEASURES[by][0], found, corpus.judgements, MEASURES[by][1]) for found in (run, exact))
    kept = retained(values, base)
    return Row(
        fitted.name,
        code_bytes(fitted.compressor, encoded) / vectors,
        state_bytes(fitted.compressor) / vectors,
        float(values.mean()),
        kept.mean,
        kept.low,
        kept.high,
        float(np.mean([overlap(run[query], exact[query]) for query in corpus.asked])),
        fitted.seconds,
        len(pages.vectors) / max(encoding, 1e-9),
        len(pages.vectors) / max(opening, 1e-9),
        1e9 * scoring / len(corpus.queries.vectors) / len(pages.vectors),
        scorer.nbytes / vectors,
    )


def _reduced(corpus: Corpus, method: Method, name: str) -> Multivectors:
    by = _PRUNE.search(name)
    return method.reduce(corpus.pages, corpus.saliency.get(by[1]) if by else None)[0]


def gemm_ns(corpus: Corpus) -> float:
    """CPU time of a matrix product and the largest of each page, per (query vector, vector)."""
    few = range(0, len(corpus.queries), 10)
    _, seconds = _timed(lambda: [maxsim(corpus.queries.part(query, query + 1), corpus.pages) for query in few])
    return 1e9 * seconds / sum(len(corpus.queries[query]) for query in few) / len(corpus.pages.vectors)


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """A result, and the CPU time it took."""
    began = time.process_time()
    result = work()
    return result, time.process_time() - began


def _words(encoded: Encoded) -> NDArray[np.uint64]:
    """The id of the only level of each vector as a word [N, 1]."""
    assert encoded.ids is not None
    return encoded.ids[0].astype(np.uint64)[:, None]
