"""Exact MaxSim: a sum of true maxima, whatever the signs, the padding and the blocks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenshard.errors import FormatError
from tokenshard.retrieval import exact
from tokenshard.retrieval.exact import Multivectors, maxsim, padded_maxsim, ranking

LENGTHS = st.lists(st.integers(0, 9), min_size=1, max_size=8)


def unit_vectors(lengths: list[int], seed: int, dimensions: int = 16) -> Multivectors:
    draw = np.random.default_rng(seed)
    pages = [draw.standard_normal((length, dimensions)).astype(np.float32) for length in lengths]
    return Multivectors.of([page / np.linalg.norm(page, axis=1, keepdims=True) for page in pages], dimensions)


def by_definition(queries: Multivectors, pages: Multivectors) -> np.ndarray:
    """The formula, a query and a page at a time, in float64."""
    scores = np.zeros((len(queries), len(pages)))
    for q in range(len(queries)):
        for p in range(len(pages)):
            similar = queries[q].astype(np.float64) @ pages[p].astype(np.float64).T
            scores[q, p] = similar.max(1, initial=-np.inf).sum()
    return scores


@given(LENGTHS, LENGTHS, st.integers(0, 99))
def test_scores_are_those_of_the_definition(asked: list[int], shown: list[int], seed: int) -> None:
    queries, pages = unit_vectors(asked, seed), unit_vectors(shown, seed + 100)
    np.testing.assert_allclose(maxsim(queries, pages), by_definition(queries, pages), atol=1e-5)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, pages = unit_vectors([3, 0, 5, 1], 1), unit_vectors([7, 2, 0, 0, 40, 1], 2)
    whole = maxsim(queries, pages)
    monkeypatch.setattr(exact, "_BLOCK", 16)
    np.testing.assert_allclose(maxsim(queries, pages), whole, atol=1e-6)


def test_a_page_that_is_unlike_everything_keeps_its_negative_score() -> None:
    query = Multivectors.of([np.array([[1, 0], [0.6, 0.8]], np.float32)])
    page = Multivectors.of([np.array([[-1, 0], [-0.6, -0.8]], np.float32)])
    true = max(-1.0, -0.6) + max(-0.6, -1.0)
    assert maxsim(query, page)[0, 0] == pytest.approx(true)
    padded = torch.cat([torch.tensor(page.vectors), torch.zeros(3, 2)])[None]  # zeros would win
    mask = torch.tensor([[True, True, False, False, False]])
    asked = torch.tensor(query.vectors)[None]
    assert padded_maxsim(asked, torch.ones(1, 2, dtype=torch.bool), padded, mask).item() == pytest.approx(true)


@given(LENGTHS, LENGTHS, st.integers(0, 99))
def test_padded_batches_score_as_unpadded_pages_do(asked: list[int], shown: list[int], seed: int) -> None:
    queries, pages = unit_vectors(asked, seed), unit_vectors(shown, seed + 100)
    scores = padded_maxsim(*padded(queries, seed), *padded(pages, seed)).numpy()
    np.testing.assert_allclose(scores, maxsim(queries, pages), atol=1e-5)


def padded(rows: Multivectors, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors [rows, most, d] with noise in the unused places, and the mask of the used ones."""
    noise = np.random.default_rng(seed).standard_normal((len(rows), max(1, int(rows.lengths.max())), 16))
    mask = np.arange(noise.shape[1]) < rows.lengths[:, None]
    noise[mask] = rows.vectors
    return torch.tensor(noise, dtype=torch.float32), torch.tensor(mask)


def test_a_page_without_vectors_is_found_last() -> None:
    queries, pages = unit_vectors([4], 3), unit_vectors([5, 0, 5], 4)
    assert ranking(maxsim(queries, pages), 3)[0, -1] == 1


def test_equal_scores_are_ranked_by_page() -> None:
    assert ranking(np.array([[1, 3, 3, 2, 3]], np.float32), 4).tolist() == [[1, 2, 4, 3]]


def test_a_part_of_the_pages_is_those_pages() -> None:
    pages = unit_vectors([2, 0, 3, 4], 5)
    part = pages.part(1, 3)
    assert len(part) == 2
    np.testing.assert_array_equal(part[1], pages[2])


@pytest.mark.parametrize("offsets", [[0, 2], [1, 3], [0, 3, 2, 3], []])
def test_offsets_that_do_not_fit_the_vectors_are_refused(offsets: list[int]) -> None:
    with pytest.raises(FormatError):
        Multivectors(np.zeros((3, 4), np.float32), np.array(offsets, np.int64))
