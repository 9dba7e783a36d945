"""First stages: what they propose for a query, by themselves."""

from __future__ import annotations

import numpy as np
import pytest

from tokenshard.retrieval.compression.registry import Method
from tokenshard.retrieval.encoders.base import normalized
from tokenshard.retrieval.exact import Multivectors, maxsim, ranking
from tokenshard.retrieval.first_stages.base import Numbered, Part, patch_rows
from tokenshard.retrieval.first_stages.hnsw import Hnsw

pytest.importorskip("faiss")


def test_rows_of_patches_are_cut_where_they_are_long() -> None:
    assert patch_rows(np.array([0, 31, 32, 1023]), 32).tolist() == [0, 0, 1, 31]
    assert patch_rows(np.array([0, 31, 32, 99]), 100).tolist() == [0, 0, 1, 3]
    assert patch_rows(np.array([99, 100, 132]), 100).tolist() == [3, 4, 5]


def test_means_of_rows_in_a_graph_lead_to_the_best_pages() -> None:
    """Pages of three subjects, 30 tokens of each, of which a query means two."""
    rng = np.random.default_rng(0)
    subjects = normalized(rng.standard_normal((60, 32)))
    about = np.stack([rng.choice(60, 3, replace=False) for _ in range(800)])
    noise = 0.15 * rng.standard_normal((800, 90, 32))
    pages = Multivectors.of([*normalized((subjects[about.repeat(30, 1)] + noise).reshape(-1, 32)).reshape(800, 90, 32)])
    asked = subjects[about[::20, :2]] + 0.15 * rng.standard_normal((40, 2, 32))
    queries = Multivectors.of([*normalized(asked.reshape(-1, 32)).reshape(40, 2, 32)])
    compressor = Method.parse("int8").fit(pages)
    rows = (patch_rows(np.arange(90), 90),) * 800
    numbers = np.arange(800)
    arrays, entries = Hnsw.build(compressor, None, [Numbered(compressor.encode(pages), numbers, rows)])
    assert (entries, arrays["counts"].tolist()) == (2400, [3] * 800)
    np.testing.assert_allclose(np.linalg.norm(arrays["means"].astype("f4"), axis=1), 1, atol=1e-3)
    stage = Hnsw.open(compressor, None, [Part(arrays, entries, numbers)], 800)
    found = np.stack([ranking(stage.estimates(queries[query], 64), 100) for query in range(40)])
    best = ranking(maxsim(queries, pages), 10)
    assert np.mean([len(np.intersect1d(*pair)) / 10 for pair in zip(found, best, strict=True)]) >= 0.95
