"""The order of an epoch: every row once, the same for everyone, well mixed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenshard.errors import SpecError
from tokenshard.loading.order import EpochOrder, Shuffle

SIZES = st.lists(st.integers(0, 40), min_size=0, max_size=30).map(lambda sizes: np.array(sizes, np.int64))
SHUFFLES = st.none() | st.builds(Shuffle, st.integers(1, 9), st.integers(1, 40), st.integers(0, 5))


def rows(order: EpochOrder, positions: np.ndarray) -> list[tuple[int, int]]:
    block, row = order.locate(positions)
    return list(zip(block.tolist(), row.tolist(), strict=True))


@given(SIZES, SHUFFLES, st.integers(0, 2**32 - 1), st.integers(0, 5))
def test_every_row_comes_exactly_once(sizes: np.ndarray, shuffle: Shuffle | None, seed: int, epoch: int) -> None:
    order = EpochOrder(sizes, seed, epoch, shuffle)
    assert len(order) == sizes.sum()
    found = rows(order, np.arange(len(order)))
    assert sorted(found) == [(block, row) for block, size in enumerate(sizes.tolist()) for row in range(size)]
    if shuffle is None:
        assert found == sorted(found)


@given(SIZES, SHUFFLES, st.data())
def test_a_position_does_not_depend_on_what_was_asked_before(
    sizes: np.ndarray, shuffle: Shuffle | None, data: st.DataObject
) -> None:
    order = EpochOrder(sizes, 7, 1, shuffle)
    if not len(order):
        return
    whole = rows(EpochOrder(sizes, 7, 1, shuffle), np.arange(len(order)))
    asked = np.array(data.draw(st.lists(st.integers(0, len(order) - 1), max_size=30)), np.int64)
    assert rows(order, asked) == [whole[position] for position in asked]


@given(SIZES, SHUFFLES, st.integers(0, 60), st.integers(1, 60), st.integers(1, 5), st.data())
def test_windows_name_all_blocks_that_are_needed(
    sizes: np.ndarray, shuffle: Shuffle | None, first: int, size: int, world: int, data: st.DataObject
) -> None:
    order = EpochOrder(sizes, 3, 0, shuffle)
    count = min(3, max(0, len(order) - first) // size)
    if not count:
        return
    part = (first, size, count, data.draw(st.integers(0, world - 1)), world)
    windows = list(order.windows(*part))
    assert len(set(windows)) == len(windows)
    assert set(order.rows(*part)[0].tolist()) <= {b for w in windows for b in order.window_blocks(w).tolist()}


@given(SIZES, SHUFFLES, st.integers(0, 500), st.integers(1, 300), st.integers(1, 12))
def test_ranks_share_a_global_batch_evenly(
    sizes: np.ndarray, shuffle: Shuffle | None, first: int, size: int, world: int
) -> None:
    order = EpochOrder(sizes, 3, 0, shuffle)
    parts = [order.batch(first, size, rank, world) for rank in range(world)]
    assert np.array_equal(np.concatenate(parts), order.batch(first, size))
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(first, first + size))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(SIZES, SHUFFLES, st.integers(0, 60), st.integers(1, 60), st.integers(0, 4), st.integers(1, 5), st.data())
def test_batches_come_together_as_they_come_one_by_one(
    sizes: np.ndarray, shuffle: Shuffle | None, first: int, size: int, count: int, world: int, data: st.DataObject
) -> None:
    order = EpochOrder(sizes, 5, 2, shuffle)
    count = min(count, max(0, len(order) - first) // size)
    if not count:
        return
    rank = data.draw(st.integers(0, world - 1))
    block, row = order.rows(first, size, count, rank, world)
    one_by_one = [
        pair for number in range(count) for pair in rows(order, order.batch(first + number * size, size, rank, world))
    ]
    assert list(zip(block.tolist(), row.tolist(), strict=True)) == one_by_one


def test_epochs_and_seeds_differ_and_repeat() -> None:
    sizes = np.full(40, 25)
    orders = {
        (seed, epoch): rows(EpochOrder(sizes, seed, epoch, Shuffle(4, 4)), np.arange(1000))
        for seed in range(3)
        for epoch in range(3)
    }
    assert len({tuple(order) for order in orders.values()}) == 9
    assert orders[1, 2] == rows(EpochOrder(sizes, 1, 2, Shuffle(4, 4)), np.arange(1000))


def test_the_order_of_a_seed_never_changes() -> None:
    """A training run must be resumable by a later version."""
    order = EpochOrder(np.full(6, 5), 1, 2, Shuffle(3, 2))
    assert rows(order, np.arange(12)) == [
        *[(5, 1), (4, 0), (3, 0), (5, 0), (4, 2), (3, 2)],
        *[(5, 3), (4, 4), (3, 1), (5, 4), (4, 3), (3, 4)],
    ]


@pytest.mark.parametrize(("blocks", "held"), [(1, 100), (100, 100), (1000, 100), (150, 100), (100_000, 512)])
def test_batches_are_spread_like_those_of_a_permutation(blocks: int, held: int) -> None:
    sizes = np.full(blocks, 64)
    shuffle = Shuffle.within(blocks, held)
    assert shuffle.lanes * shuffle.window <= max(held, blocks)
    order = EpochOrder(sizes, 0, 0, shuffle)
    spreads = []
    for first in np.linspace(0, max(0, len(order) - 256), 60).astype(int).tolist():
        block, row = order.locate(order.batch(first, min(256, len(order))))
        spreads.append(np.std(block * 64 + row) / (len(order) / np.sqrt(12)))
    assert np.mean(spreads) >= 0.98


@pytest.mark.parametrize(("blocks", "held", "lasts"), [(21, 96, 8 * 250), (1200, 96, 8 * 4000)])
def test_an_epoch_opens_with_few_blocks_and_goes_on_with_all(blocks: int, held: int, lasts: int) -> None:
    order = EpochOrder(np.full(blocks, 4000), 0, 0, Shuffle.within(blocks, held))
    assert lasts - 64 < order.border <= lasts
    block, _ = order.locate(np.arange(order.border))
    assert len(np.unique(block)) == 8
    for first in range(0, order.border - 256, 256):
        assert len(np.unique(order.locate(order.batch(first, 256))[0])) == 8
        windows = order.windows(first, 256)
        assert {number for window in windows for number in order.window_blocks(window).tolist()} <= set(block.tolist())
    later, _ = order.locate(order.batch(order.border, 256))
    assert len(np.unique(later)) > 16


def test_sets_of_few_blocks_have_no_opening() -> None:
    assert Shuffle.within(15, 100).opening == 0
    assert EpochOrder(np.full(15, 64), 0, 0, Shuffle(1, 15, 8)).border == 0


def test_a_block_is_read_once_but_for_the_borders_of_lanes() -> None:
    order = EpochOrder(np.full(1000, 64), 0, 0, Shuffle.within(1000, 100))
    reads = sum(len(order.window_blocks(window)) for window in order.windows(0, len(order)))
    assert reads <= 1.1 * 1000


def test_a_shuffle_needs_lanes_and_a_window() -> None:
    with pytest.raises(SpecError, match="at least 1, not 0 and 2"):
        Shuffle(0, 2)
