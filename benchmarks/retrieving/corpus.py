"""A corpus in the BEIR layout as vectors of `minilm`, with exact scores and all kinds of saliency, kept in one file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from tokenshard.retrieval.encoders.minilm import MiniLM
from tokenshard.retrieval.encoders.reduction import Reduction
from tokenshard.retrieval.encoders.tokens import States
from tokenshard.retrieval.evaluation import Judgements, read_judgements, read_queries
from tokenshard.retrieval.exact import Multivectors, Vectors, maxsim, ranking
from tokenshard.sources.base import Sample
from tokenshard.sources.documents.open import open_document_source
from tokenshard.spec.documents import DocumentSourceSpec
from tokenshard.store import Store

SALIENCIES = ("attention", "idf", "cls")
"""The last only where it is asked for: the network runs once more for it."""


@dataclass(frozen=True)
class Corpus:
    """Vectors of pages and queries, with exact scores."""

    pages: Multivectors
    queries: Multivectors
    keys: list[str]
    asked: list[str]
    judgements: Judgements
    exact: NDArray[np.float32]
    saliency: dict[str, Vectors]
    reduction: Reduction | None
    """of the encoder; None where a file of vectors has none"""

    def run(self, scores: NDArray[np.float32], top: int = 10) -> dict[str, list[str]]:
        best = ranking(scores, top)
        return {query: [self.keys[page] for page in own] for query, own in zip(self.asked, best, strict=True)}


class _FirstToken(MiniLM):
    """Saliency is the attention that the first token alone pays."""

    def _states(self, ids: NDArray[np.int64]) -> list[States]:
        states, paid = self._network.states(torch.from_numpy(ids), first=True)
        return list(zip(states.numpy(), paid.numpy(), strict=True))


class _TokenIds(MiniLM):
    """No network runs: in place of saliency stand the token ids."""

    def _states(self, ids: NDArray[np.int64]) -> list[States]:
        return [(np.zeros((len(own), self._width), np.float32), own.astype(np.float32)) for own in ids]


def read(folder: Path, pages: int | None = None, judgements: Judgements | None = None) -> list[Sample]:
    """The documents that can be read: all of them, or those with a judgement and so many more, a fixed sample."""
    source = open_document_source(DocumentSourceSpec(path=str(folder)))
    plan = pa.Table.from_batches(list(source.plan()))
    samples = [item for item in (thunk() for thunk in source.read(plan)) if isinstance(item, Sample)]
    if pages is None or len(samples) <= pages:
        return samples
    needed = {page for own in (judgements or {}).values() for page in own}
    others = [place for place, sample in enumerate(samples) if sample.key not in needed]
    room = max(0, pages - (len(samples) - len(others)))
    chosen = set(np.random.default_rng(0).permutation(others)[:room].tolist())
    return [sample for place, sample in enumerate(samples) if sample.key in needed or place in chosen]


def load_corpus(
    folder: Path,
    judgements_file: str = "qrels_test.tsv",
    zero_grade: float | None = None,
    vectors: Path | None = None,
    pages: int | None = None,
    tokens: int | None = None,
    reduction: Reduction | None = None,
    first_token: bool = False,
) -> Corpus:
    """``vectors``: file to keep them in, or to take them from. ``reduction``: of another corpus, instead of its own.

    ``first_token``: find out the attention that the first token pays, too.
    """
    store = Store(folder)
    judgements = read_judgements(store, judgements_file)
    if zero_grade is not None:
        judgements = {q: {page: grade or zero_grade for page, grade in own.items()} for q, own in judgements.items()}
    queries = {query: text for query, text in read_queries(store, "queries.jsonl").items() if query in judgements}
    if vectors is None or not vectors.is_file():
        samples = read(folder, pages, judgements)
        made = _encoded(samples, list(queries.values()), tokens, reduction)
        if first_token:
            paid = [of_page[1] for _, of_page in _FirstToken(tokens=tokens).page_states(samples)]
            made["cls"] = np.concatenate(paid)
        if vectors is not None:
            np.savez(vectors, **made)
    else:
        made = dict(np.load(vectors))
    shown = Multivectors(made["pages"], made["pages_at"])
    asked = Multivectors(made["queries"], made["queries_at"])
    return Corpus(
        shown,
        asked,
        made["keys"].tolist(),
        list(queries),
        judgements,
        maxsim(asked, shown),
        {name: made[name] for name in SALIENCIES if name in made},
        Reduction(made["mean"], made["basis"]) if "basis" in made else None,
    )


def _encoded(
    samples: Sequence[Sample], queries: Sequence[str], tokens: int | None, reduction: Reduction | None
) -> dict[str, NDArray[Any]]:
    encoder = MiniLM(tokens=tokens)
    found = [of_page for _, of_page in encoder.page_states(samples)]
    states = [page for page, _ in found]
    reduction = reduction or encoder.reduction_of(states)
    pages = Multivectors.of([reduction(page) for page in states])
    asked = Multivectors.of([reduction(encoder.query_states(text)) for text in queries])
    ids = [of_page[1].astype(np.int64) for _, of_page in _TokenIds(tokens=tokens).page_states(samples)]
    seen = np.bincount(np.concatenate([np.unique(page) for page in ids]))
    return {
        "pages": pages.vectors,
        "pages_at": pages.offsets,
        "queries": asked.vectors,
        "queries_at": asked.offsets,
        "keys": np.array([sample.key for sample in samples]),
        "attention": np.concatenate([received for _, received in found]),
        "idf": np.log(len(samples) / seen[np.concatenate(ids)]).astype(np.float32),
        "mean": reduction.mean,
        "basis": reduction.basis,
    }
