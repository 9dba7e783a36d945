"""Order-0 streams decoded in vectors: the same ids and the same verdicts as those of the loops in lockstep."""

from __future__ import annotations

import numpy as np
import pytest
from blocks import random_model, skewed_ids

from tokenshard.codecs import rans_vectors
from tokenshard.codecs.context import ContextCodec
from tokenshard.codecs.slot_tables import slot_tables
from tokenshard.errors import FormatError


def order0(alphabet: int, skew: float, grids: np.ndarray) -> tuple[ContextCodec, np.ndarray]:
    """A codec that decodes in vectors, and ids for samples of these grids."""
    ids = skewed_ids(int(grids.prod(axis=1).sum()), alphabet, skew, seed=alphabet)
    codec = ContextCodec.fit(ids, grids, alphabet, contexts="none")
    assert slot_tables(codec.model) is not None
    return codec, ids


def in_lockstep(monkeypatch: pytest.MonkeyPatch, codec: ContextCodec, *block: np.ndarray) -> tuple[np.ndarray, ...]:
    with monkeypatch.context() as patch:
        patch.setattr(rans_vectors, "FEWEST", 1 << 40)
        return codec.try_decode(*block)


@pytest.mark.parametrize("alphabet", [33, 256, 1000, 1024])
@pytest.mark.parametrize("skew", [0, 2, 20])
@pytest.mark.parametrize("samples", [16, 63, 64, 65, 200])
def test_samples_of_one_size_and_of_any_come_back(alphabet: int, skew: float, samples: int) -> None:
    rng = np.random.default_rng(samples)
    for sizes in (np.full(samples, 130), np.full(samples, 3), rng.integers(0, 150, samples)):
        grids = sizes[:, None].astype(np.int32)
        ids = skewed_ids(int(sizes.sum()), alphabet, skew, seed=samples)
        codec = ContextCodec.fit(ids, grids, alphabet, contexts="none")
        np.testing.assert_array_equal(codec.decode(*codec.encode(ids, grids), grids), ids)


def test_a_long_sample_among_short_ones_comes_back() -> None:
    grids = np.array([[5]] * 40 + [[5000]] + [[77]] * 40, np.int32)
    codec, ids = order0(300, 1, grids)
    np.testing.assert_array_equal(codec.decode(*codec.encode(ids, grids), grids), ids)


@pytest.mark.parametrize(("skew", "together"), [(0, True), (20, False)])
def test_ids_lie_beside_their_moves_unless_one_is_most_of_its_node(skew: float, together: bool) -> None:
    tables = slot_tables(order0(1024, skew, np.full((100, 2), 8, np.int32))[0].model)
    assert tables is not None
    assert (tables.ids.dtype == np.uint32) == (tables.shift > 0) == together


@pytest.mark.parametrize(("alphabet", "skew"), [(40, 1), (1024, 0), (1024, 20)])
def test_damaged_streams_give_what_they_give_in_lockstep(
    alphabet: int, skew: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, grids = np.random.default_rng(alphabet), np.full((2000, 2), 8, np.int32)
    codec, ids = order0(alphabet, skew, grids)
    data, lengths = codec.encode(ids, grids)
    flipped = data.copy()
    flipped[np.cumsum(lengths) - rng.integers(1, lengths + 1)] ^= (1 << rng.integers(0, 8, 2000)).astype(np.uint8)
    noise = rng.integers(0, 256, len(data), np.uint8)
    for damage in (flipped, noise):
        found, damaged = codec.try_decode(damage, lengths, grids)
        expected = in_lockstep(monkeypatch, codec, damage, lengths, grids)
        assert damaged.mean() > 0.9
        np.testing.assert_array_equal(damaged, expected[1])
        np.testing.assert_array_equal(found, expected[0])


def test_streams_with_room_behind_them_are_read_where_they_are_whatever_is_there() -> None:
    grids = np.full((100, 2), 8, np.int32)
    for codec, ids in (
        order0(300, 1, grids),
        (ContextCodec(random_model(300, 3)), skewed_ids(6400, 300, 1, seed=0)),
    ):
        data, lengths = codec.encode(ids, grids)
        room = np.concatenate([data, np.full(codec.ahead, 255, np.uint8)])
        np.testing.assert_array_equal(codec.decode_ahead(room, lengths, grids), ids)
        with pytest.raises(FormatError, match="do not add up"):
            codec.decode_ahead(room[:-2], lengths, grids)
        room[9] ^= 64
        with pytest.raises(FormatError, match="streams are damaged, the first is that of sample 0 "):
            codec.decode_ahead(room, lengths, grids)


def test_only_order0_models_of_two_steps_have_tables_by_slot() -> None:
    grids = np.full((100, 2), 8, np.int32)
    assert slot_tables(random_model(300, 3)) is None
    for alphabet, has in ((2, False), (32, False), (33, True), (1024, True), (1025, False)):
        model = ContextCodec.fit(np.zeros(0, np.uint16), grids[:0], alphabet).model
        assert (slot_tables(model) is not None) == has, alphabet
