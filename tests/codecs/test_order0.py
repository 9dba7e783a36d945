"""The order-0 model is as good as order-0 coding can be: entropy plus three bytes a sample, at any skew."""

from __future__ import annotations

import numpy as np
import pytest
from blocks import skewed_ids

from tokenshard.codecs.base import id_dtype
from tokenshard.codecs.context import ContextCodec
from tokenshard.codecs.model import ContextModel

STATE_BITS = 24
"""What the state of a stream costs on average (schemas/shard-format.md)."""


def entropy(ids: np.ndarray) -> float:
    counts = np.unique_counts(ids).counts
    return float(-(counts / len(ids) * np.log2(counts / len(ids))).sum())


def coded_bits(codec: ContextCodec, ids: np.ndarray, grids: np.ndarray) -> int:
    return 8 * len(codec.encode(ids, grids)[0])


@pytest.fixture(scope="module")
def photo_patches() -> list[np.ndarray]:
    """[n, 48] float32: the 4 x 4 RGB patches of each of three photographs."""
    data = pytest.importorskip("skimage").data
    patches = []
    for photo in (data.astronaut(), data.coffee(), data.chelsea()):
        height, width = (side // 4 * 4 for side in photo.shape[:2])
        tiles = photo[:height, :width].reshape(height // 4, 4, width // 4, 4, 3).swapaxes(1, 2)
        patches.append(tiles.reshape(-1, 48).astype(np.float32))
    return patches


@pytest.fixture(scope="module")
def photo_ids(photo_patches: list[np.ndarray]) -> np.ndarray:
    """[samples, 1024] uint16: k-means ids (K = 1024) of the patches, cut into samples of 1024 ids."""
    import faiss

    kmeans = faiss.Kmeans(48, 1024, niter=4, seed=1, max_points_per_centroid=64)
    kmeans.train(np.concatenate(photo_patches))
    ids = np.concatenate([kmeans.index.search(patches, 1)[1][:, 0] for patches in photo_patches])
    return ids[: len(ids) // 1024 * 1024].reshape(-1, 1024).astype(np.uint16)


def test_real_ids_cost_their_entropy_and_three_bytes_a_sample(photo_ids: np.ndarray) -> None:
    ids, grids = photo_ids.reshape(-1), np.full((len(photo_ids), 2), 32, np.int32)
    bits = coded_bits(ContextCodec.fit(ids, grids, 1024, contexts="none"), ids, grids)
    assert bits <= 1.005 * entropy(ids) * ids.size + STATE_BITS * len(grids)


@pytest.mark.parametrize("alphabet", [2, 17, 256, 1024, 8192, 32768])
@pytest.mark.parametrize("skew", [0, 1, 4, 20])
def test_ids_of_any_skew_cost_their_entropy_and_three_bytes_a_sample(alphabet: int, skew: float) -> None:
    samples = 400
    occurring = max(2, min(alphabet // 2, 400))  # so few that the sample says what their frequencies are
    ids = (skewed_ids(samples * 1024, occurring, skew, seed=alphabet) * (alphabet // occurring)).astype(np.uint16)
    grids = np.full((samples, 1), 1024, np.int32)
    bits = coded_bits(ContextCodec.fit(ids, grids, alphabet, contexts="none"), ids, grids)
    assert bits <= 1.005 * entropy(ids) * ids.size + 1.03 * STATE_BITS * samples


@pytest.mark.parametrize("alphabet", [8, 1024, 65_536])
def test_three_used_ids_of_a_large_alphabet_cost_one_percent_over_entropy(alphabet: int) -> None:
    rng = np.random.default_rng(alphabet)
    used = [alphabet // 2, 0, alphabet - 1]
    ids = rng.choice(used, 500 * 1024, p=[0.99, 0.009, 0.001]).astype(id_dtype(alphabet))
    grids = np.full((500, 2), 32, np.int32)
    bits = coded_bits(ContextCodec.fit(ids, grids, alphabet, contexts="none"), ids, grids)
    assert bits <= 1.01 * entropy(ids) * ids.size + 1.03 * STATE_BITS * 500


def test_coding_loses_nothing_but_the_state_against_the_tables() -> None:
    ids, grids = skewed_ids(500 * 256, 1000, 2, seed=0), np.full((500, 2), 16, np.int32)
    codec = ContextCodec.fit(ids, grids, 1000, contexts="none")
    loss = coded_bits(codec, ids, grids) - codec.model.pilot.bits_per_id * ids.size
    assert 23 <= loss / 500 <= 25


def test_an_id_the_pilot_never_saw_is_encodable() -> None:
    grid = np.array([[1000]], np.int32)
    codec = ContextCodec.fit(np.zeros(1000, np.uint16), grid, 65_536, contexts="none")
    every = np.arange(65_536, dtype=np.uint16)
    grids = np.array([[65_536]], np.int32)
    np.testing.assert_array_equal(codec.decode(*codec.encode(every, grids), grids), every)


def test_ids_seen_once_announce_unseen_ones() -> None:
    """Half of the pilot are ids seen once, so half of what comes is expected to be new (Turing's estimate)."""
    often, once = np.zeros(500, np.uint16), np.arange(1, 501, dtype=np.uint16)
    codec = ContextCodec.fit(np.concatenate([often, once]), np.array([[1000]], np.int32), 1024, contexts="none")
    new = np.arange(501, 1001, dtype=np.uint16)
    bits = coded_bits(codec, new, np.array([[500]], np.int32)) / 500
    assert bits < 1 + 1 + np.log2(523)  # near log2(3 * 523): a third of all mass on 523 unseen ids


def test_equal_pilots_give_equal_model_files_whatever_their_order() -> None:
    ids, grids = skewed_ids(50 * 64, 5000, 2, seed=8), np.full((50, 2), 8, np.int32)
    model = ContextCodec.fit(ids, grids, 5000, contexts="none").model_bytes()
    assert ContextCodec.fit(ids[::-1], grids, 5000, contexts="none").model_bytes() == model
    assert ContextModel.from_bytes(model).to_bytes() == model
    assert ContextCodec.fit(ids[64:], grids[1:], 5000, contexts="none").model_bytes() != model


def test_a_pilot_without_ids_gives_a_flat_model() -> None:
    codec = ContextCodec.fit(np.zeros(0, np.uint16), np.zeros((0, 2), np.int32), 256)
    ids, grids = np.arange(256, dtype=np.uint16), np.array([[16, 16]], np.int32)
    assert coded_bits(codec, ids, grids) <= 256 * 8 + 32
