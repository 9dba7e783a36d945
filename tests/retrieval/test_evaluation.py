"""Measures of a ranking against figures worked out by hand, and files of judgements good and bad."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from tokenshard.errors import SpecError
from tokenshard.retrieval.evaluation import (
    estimate,
    measured,
    ndcg,
    overlap,
    read_judgements,
    read_queries,
    recall,
    reciprocal_rank,
    retained,
    success,
    trec_run,
)
from tokenshard.store import Store

JUDGED = {"a": 3.0, "b": 1.0, "c": 0.0, "d": 2.0}


def test_ndcg_has_linear_gain_and_logarithmic_discount() -> None:
    gained = 1 + 3 / math.log2(4)
    ideal = 3 + 2 / math.log2(3) + 1 / math.log2(4)
    assert ndcg(["b", "c", "a", "x"], JUDGED) == pytest.approx(gained / ideal)
    assert ndcg(["a", "d", "b"], JUDGED) == 1
    assert ndcg(["x", "d"], JUDGED, k=1) == 0


def test_recall_counts_relevant_documents_among_the_first_k() -> None:
    assert recall(["a", "c", "d"], JUDGED, k=2) == pytest.approx(1 / 3)
    assert recall(["a", "c", "d"], JUDGED, k=3) == pytest.approx(2 / 3)


def test_reciprocal_rank_and_success_look_for_the_first_relevant_document() -> None:
    assert reciprocal_rank(["x", "c", "b"], JUDGED) == pytest.approx(1 / 3)
    assert reciprocal_rank(["x", "c", "b"], JUDGED, k=2) == 0
    assert (success(["x", "b"], JUDGED, 2), success(["x", "b"], JUDGED, 1)) == (1, 0)


def test_overlap_is_the_share_of_common_documents() -> None:
    assert overlap(["a", "b", "c"], ["c", "x", "a"], k=2) == 0
    assert overlap(["a", "b", "c"], ["c", "x", "a"], k=3) == pytest.approx(2 / 3)


def test_queries_without_a_relevant_document_are_not_counted_and_unanswered_ones_are() -> None:
    judgements = {"1": {"a": 1.0}, "2": {"a": 0.0}, "3": {"b": 1.0}}
    assert measured(recall, {"1": ["a"], "2": ["a"]}, judgements, 10).tolist() == [1, 0]


def test_intervals_hold_the_mean_and_shrink_with_the_number_of_queries() -> None:
    values = np.random.default_rng(0).random(1600)
    few, many = estimate(values[:100]), estimate(values)
    assert few.low < few.mean < few.high
    assert many.mean == pytest.approx(values.mean())
    assert (few.high - few.low) / (many.high - many.low) == pytest.approx(4, rel=0.25)


def test_what_is_retained_is_compared_query_by_query() -> None:
    exact = np.random.default_rng(1).random(200)
    kept = retained(0.9 * exact, exact)
    assert (kept.low, kept.mean, kept.high) == pytest.approx((0.9, 0.9, 0.9))


@pytest.mark.parametrize(
    ("name", "line", "wrong"), [("score.tsv", "q2\tb\tx", "no number"), ("short.tsv", "q3", "between tabs")]
)
def test_judgements_that_cannot_be_read_are_refused_with_their_line(
    tmp_path: Path, name: str, line: str, wrong: str
) -> None:
    (tmp_path / name).write_text(f"query-id\tcorpus-id\tscore\nq1\ta\t1\n\n{line}\n")
    with pytest.raises(SpecError, match=f"{name}:4: .*{wrong}"):
        read_judgements(Store(tmp_path), name)


def test_both_kinds_of_judgement_files_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq1\ta\t2\nq1\tb\t0\nq2\ta\t1\n")
    (tmp_path / "qrels.jsonl").write_text(
        '{"query-id": "q1", "corpus-id": "a", "score": 2}\n{"query-id": "q1", "corpus-id": "b", "score": 0}\n'
        '{"query-id": "q2", "corpus-id": "a", "score": 1}\n'
    )
    expected = {"q1": {"a": 2.0, "b": 0.0}, "q2": {"a": 1.0}}
    assert read_judgements(Store(tmp_path), "qrels.tsv") == expected
    assert read_judgements(Store(tmp_path), "qrels.jsonl") == expected


def test_queries_are_read_by_id(tmp_path: Path) -> None:
    (tmp_path / "queries.jsonl").write_text('{"_id": "q", "text": "wing"}\n{"_id": 2, "text": "drag"}\n')
    assert read_queries(Store(tmp_path), "queries.jsonl") == {"q": "wing", "2": "drag"}
    (tmp_path / "queries.jsonl").write_text('{"_id": "q", "text": "wing"}\n{"_id": "q", "text": "drag"}\n')
    with pytest.raises(SpecError, match=r"queries.jsonl:2: query q is there twice"):
        read_queries(Store(tmp_path), "queries.jsonl")


def test_a_run_of_trec_has_a_line_a_document_with_its_rank() -> None:
    text = trec_run({"q1": {"d3": 2.5, "d1": 2.0}, "q2": {}, "q3": {"d1": -1.0}})
    assert text == "q1 Q0 d3 1 2.500000 tokenshard\nq1 Q0 d1 2 2.000000 tokenshard\nq3 Q0 d1 1 -1.000000 tokenshard\n"
    with pytest.raises(SpecError, match="white space"):
        trec_run({"q1": {"my file.pdf": 1.0}})
