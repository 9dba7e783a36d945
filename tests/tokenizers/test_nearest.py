"""Exact nearest-codeword search: the same ids as trying every codeword in 64-bit integers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tokenshard.errors import FormatError
from tokenshard.tokenizers.nearest import build_tree, exact_dtype, leaf_order, nearest


def brute_force(
    vectors: NDArray[np.int16], codewords: NDArray[np.int16]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    distances = ((vectors[:, None].astype(np.int64) - codewords.astype(np.int64)) ** 2).sum(axis=2)
    return distances.argmin(axis=1), distances.min(axis=1)


def norm(vectors: NDArray[np.int16]) -> float:
    return float(np.sqrt((vectors.astype(np.int64) ** 2).sum(axis=1).max()))


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 1 << 32),
    count=st.integers(1, 200),
    length=st.integers(1, 20),
    spread=st.sampled_from([1, 3, 40, 800, 30_000]),
)
def test_ids_and_distances_are_those_of_trying_every_codeword(seed: int, count: int, length: int, spread: int) -> None:
    rng = np.random.default_rng(seed)
    codewords = rng.integers(-spread, spread + 1, (count, length)).astype(np.int16)
    vectors = rng.integers(-spread, spread + 1, (50, length)).astype(np.int16)
    ids, distances = nearest(vectors, build_tree(codewords, norm(vectors)))
    expected_ids, expected_distances = brute_force(vectors, codewords)
    assert (ids == expected_ids).all()
    assert (distances == expected_distances).all()


@pytest.mark.parametrize("direction", [1, -1])
def test_the_lowest_id_wins_a_tie_wherever_its_leaf_is(direction: int) -> None:
    codewords = 2 * np.arange(256, dtype=np.int16)[::direction, None]
    between = 2 * np.arange(255, dtype=np.int16)[:, None] + np.int16(1)
    ids, distances = nearest(between, build_tree(codewords, norm(between)))
    lower_neighbour = np.arange(255) if direction == 1 else np.arange(254, -1, -1)
    assert (ids == lower_neighbour).all()
    assert (distances == 1).all()


def test_single_and_double_precision_give_the_same_ids() -> None:
    rng = np.random.default_rng(1)
    codewords = rng.integers(-400, 401, (300, 16)).astype(np.int16)
    vectors = rng.integers(-400, 401, (500, 16)).astype(np.int16)
    narrow, wide = build_tree(codewords, norm(vectors)), build_tree(codewords, 1e6)
    assert (narrow.lanes.dtype, wide.lanes.dtype) == (np.float32, np.float64)
    assert (nearest(vectors, narrow)[0] == nearest(vectors, wide)[0]).all()


@given(count=st.integers(1, 300), seed=st.integers(0, 1 << 32))
@settings(deadline=None, max_examples=30)
def test_leaves_hold_every_codeword_once_and_at_most_32(count: int, seed: int) -> None:
    leaves = leaf_order(np.random.default_rng(seed).integers(-9, 9, (count, 3)))
    assert sorted(np.concatenate(leaves)) == list(range(count))
    assert max(map(len, leaves)) <= 32
    assert len(leaves) == -(-count // 32)


def test_sums_that_no_float_holds_exactly_are_refused() -> None:
    assert exact_dtype(2**24 - 1) is np.float32
    assert exact_dtype(2**24) is np.float64
    with pytest.raises(FormatError, match="too large"):
        exact_dtype(2**53)
