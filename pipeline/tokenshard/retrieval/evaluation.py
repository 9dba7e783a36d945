"""How good a ranking is: nDCG, recall, reciprocal rank, overlap with another ranking, and how sure one can be of it.

Judgements and queries are read from the BEIR layout: `queries.jsonl` (`_id`, `text`) and a tab-separated or JSON-lines
file of `query-id`, `corpus-id`, `score`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tokenshard.errors import SpecError
from tokenshard.store import Store

Judgements = Mapping[str, Mapping[str, float]]
"""Grades of relevance by query id and document id; 0 and below: not relevant."""
_RESAMPLES = 2_000


def ndcg(found: Sequence[str], judged: Mapping[str, float], k: int = 10) -> float:
    """Discounted cumulative gain of the first ``k`` found documents over that of the best order (linear gain).

    0 where nothing is judged relevant.
    """
    ideal = sorted((grade for grade in judged.values() if grade > 0), reverse=True)[:k]
    if not ideal:
        return 0.0
    return _dcg([max(0.0, judged.get(document, 0.0)) for document in found[:k]]) / _dcg(ideal)


def recall(found: Sequence[str], judged: Mapping[str, float], k: int = 10) -> float:
    """Share of the relevant documents that are among the first ``k`` found; 0 where none is relevant."""
    relevant = {document for document, grade in judged.items() if grade > 0}
    return len(relevant & set(found[:k])) / len(relevant) if relevant else 0.0


def reciprocal_rank(found: Sequence[str], judged: Mapping[str, float], k: int = 10) -> float:
    """1 / rank of the first relevant document among the first ``k`` found; 0 where there is none."""
    return next((1 / rank for rank, document in enumerate(found[:k], 1) if judged.get(document, 0) > 0), 0.0)


def success(found: Sequence[str], judged: Mapping[str, float], k: int = 10) -> float:
    """1 where any of the first ``k`` found documents is relevant, else 0."""
    return float(reciprocal_rank(found, judged, k) > 0)


def overlap(found: Sequence[str], other: Sequence[str], k: int = 10) -> float:
    """Share of the first ``k`` documents of one ranking that are among the first ``k`` of the other."""
    return len(set(found[:k]) & set(other[:k])) / min(k, len(other)) if other else 0.0


Measure = Callable[[Sequence[str], Mapping[str, float], int], float]


def measured(measure: Measure, run: Mapping[str, Sequence[str]], judgements: Judgements, k: int) -> NDArray[np.float64]:
    """A measure by query, for all judged queries that have a relevant document, in the order of the judgements.

    ``run``: found document ids by query id, best first; a query that is not in it found nothing.
    """
    asked = [query for query, judged in judgements.items() if any(grade > 0 for grade in judged.values())]
    return np.array([measure(run.get(query, ()), judgements[query], k) for query in asked], np.float64)


@dataclass(frozen=True)
class Estimate:
    """A mean over queries, and the 95 % interval that resampling the queries gives."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.4f} [{self.low:.4f}, {self.high:.4f}]"


def estimate(values: NDArray[np.float64], seed: int = 0) -> Estimate:
    """Mean of a measure [queries], with its percentile bootstrap interval (Efron, 1979)."""
    return _bootstrapped(values, np.ones_like(values), seed)


def retained(values: NDArray[np.float64], exact: NDArray[np.float64], seed: int = 0) -> Estimate:
    """Mean of a measure over the mean of the same measure of exact search; both [queries], resampled in pairs."""
    return _bootstrapped(values, exact, seed)


def _bootstrapped(values: NDArray[np.float64], base: NDArray[np.float64], seed: int) -> Estimate:
    if not len(values) or not base.any():
        return Estimate(0.0, 0.0, 0.0)
    draws = np.random.default_rng(seed).integers(0, len(values), (_RESAMPLES, len(values)))
    below = base[draws].sum(1)
    shares = values[draws].sum(1)[below > 0] / below[below > 0]
    low, high = np.quantile(shares, (0.025, 0.975))
    return Estimate(float(values.sum() / base.sum()), float(low), float(high))


def _dcg(gains: Sequence[float]) -> float:
    return math.fsum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, 1))


# -- files ------------------------------------------------------------------------------------------------------------


def read_queries(store: Store, name: str) -> dict[str, str]:
    """Query texts by id, in the order of the file. Raises SpecError, naming the line, where one is not a query."""
    queries: dict[str, str] = {}
    for number, row in _json_lines(store, name):
        key, text = row.get("_id"), row.get("text")
        if not isinstance(key, str | int) or not isinstance(text, str):
            raise SpecError(f'{store.url(name)}:{number}: expected {{"_id": …, "text": …}}')
        if str(key) in queries:
            raise SpecError(
                f"{store.url(name)}:{number}: query {key} is there twice; give every query an id of its own"
            )
        queries[str(key)] = text
    return queries


def read_judgements(store: Store, name: str) -> dict[str, dict[str, float]]:
    """Judgements of a tab-separated file with a header, or of a JSON-lines file.

    Raises SpecError, naming the line, where a judgement is incomplete or its score is no number.
    """
    rows = _json_judgements(store, name) if name.endswith(".jsonl") else _tab_judgements(store, name)
    judgements: dict[str, dict[str, float]] = {}
    for number, query, document, score in rows:
        try:
            grade = float(score)
        except ValueError:
            grade = math.nan
        if not math.isfinite(grade):
            raise SpecError(f"{store.url(name)}:{number}: the score {score!r} is no number; correct or remove the line")
        judgements.setdefault(query, {})[document] = grade
    return judgements


def trec_run(found: Mapping[str, Mapping[str, float]], tag: str = "tokenshard") -> str:
    """Rankings as TREC's programs read them: `query Q0 document rank score tag`, a line a document.

    ``found``: scores by query id and document id, best first. Raises SpecError for ids with white space.
    """
    lines = []
    for query, scores in found.items():
        for rank, (document, score) in enumerate(scores.items(), 1):
            for name in (query, document):
                if not name or name.split() != [name]:
                    raise SpecError(f"{name!r} has white space, where the format of TREC ends an id; rename it")
            lines.append(f"{query} Q0 {document} {rank} {score:.6f} {tag}\n")
    return "".join(lines)


def _json_judgements(store: Store, name: str) -> Iterator[tuple[int, str, str, str]]:
    for number, row in _json_lines(store, name):
        if not {"query-id", "corpus-id", "score"} <= set(row):
            raise SpecError(f"{store.url(name)}:{number}: expected query-id, corpus-id and score")
        yield number, str(row["query-id"]), str(row["corpus-id"]), str(row["score"])


def _tab_judgements(store: Store, name: str) -> Iterator[tuple[int, str, str, str]]:
    for number, line in enumerate(_lines(store, name), 1):
        values = line.rstrip("\r").split("\t")
        if line.strip() and not (number == 1 and values[0] == "query-id"):
            if len(values) != 3:
                raise SpecError(f"{store.url(name)}:{number}: expected query-id, corpus-id and score between tabs")
            yield number, values[0], values[1], values[2]


def _json_lines(store: Store, name: str) -> Iterator[tuple[int, dict[str, object]]]:
    for number, line in enumerate(_lines(store, name), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise SpecError(f"{store.url(name)}:{number}: expected a JSON object a line")
        yield number, row


def _lines(store: Store, name: str) -> list[str]:
    try:
        return store.read(name).decode("utf-8-sig").split("\n")
    except FileNotFoundError as error:
        raise SpecError(f"{store.url(name)}: no such file; check the path") from error
    except UnicodeDecodeError as error:
        raise SpecError(f"{store.url(name)}: text is not UTF-8; save it as UTF-8") from error
