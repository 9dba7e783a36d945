"""Contexts that a pilot teaches: near the true conditional entropy, never dearer than order 0, equal on every run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zstandard

from tokenshard.codecs.choose import choose_codec, load_codec
from tokenshard.codecs.context import ContextCodec
from tokenshard.codecs.fit import Earlier

STATE_BITS = 24
SIDE = 32


def entropy(ids: np.ndarray) -> float:
    counts = np.unique_counts(ids).counts
    return float(-(counts / ids.size * np.log2(counts / ids.size)).sum())


def bits_per_id(codec: ContextCodec, ids: np.ndarray, grids: np.ndarray, earlier: np.ndarray | None = None) -> float:
    data, lengths = codec.encode(ids, grids, earlier)
    np.testing.assert_array_equal(codec.decode(data, lengths, grids, earlier=earlier), ids)
    return 8 * len(data) / len(ids)


def markov_field(samples: int, alphabet: int, seed: int, side: int = SIDE) -> tuple[np.ndarray, float]:
    """(ids [samples, side, side], bits an id): an id follows from left (p 0.45) or from up (0.35), else is noise."""
    rng = np.random.default_rng(seed)
    of_left, of_up = rng.permutation(alphabet + 1) % alphabet, rng.permutation(alphabet + 1) % alphabet
    noise = rng.dirichlet(np.full(alphabet, 0.5))
    ids, bits = np.full((samples, side + 1, side + 1), alphabet), 0.0
    for row in range(1, side + 1):
        for column in range(1, side + 1):
            left, up = ids[:, row, column - 1], ids[:, row - 1, column]
            a, b = of_left[left], of_up[up]
            source = rng.random(samples)
            now = np.where(source < 0.45, a, np.where(source < 0.8, b, rng.choice(alphabet, samples, p=noise)))
            bits -= np.log2(0.45 * (now == a) + 0.35 * (now == b) + 0.2 * noise[now]).sum()
            ids[:, row, column] = now
    return ids[:, 1:, 1:].astype(np.uint16), bits / (samples * side * side)


def grids_of(samples: np.ndarray) -> np.ndarray:
    return np.tile(np.array(samples.shape[1:], np.int32), (len(samples), 1))


def test_a_known_source_costs_its_conditional_entropy_and_three_bytes_a_sample() -> None:
    """The bound of 1.02 on a pilot of four million ids is in benchmarks/codec.py."""
    field, rate = markov_field(1400, 64, seed=1)
    pilot, rest = field[:1000], field[1000:]
    codec = ContextCodec.fit(pilot.reshape(-1), grids_of(pilot), 64, expected_ids=10**8)
    bits = bits_per_id(codec, rest.reshape(-1), grids_of(rest))
    assert bits <= 1.02 * rate + STATE_BITS / SIDE**2
    assert bits <= 0.7 * entropy(rest)


def test_a_small_pilot_of_a_known_source_already_halves_its_order_0_size() -> None:
    field, rate = markov_field(400, 64, seed=2)
    codec = ContextCodec.fit(field[:300].reshape(-1), grids_of(field[:300]), 64, expected_ids=10**8)
    bits = bits_per_id(codec, field[300:].reshape(-1), grids_of(field[300:]))
    assert bits <= 1.15 * rate
    assert bits <= 0.7 * entropy(field)


@pytest.mark.parametrize("alphabet", [20, 64, 1500])
def test_coding_with_contexts_loses_nothing_but_the_state_against_the_tables(alphabet: int) -> None:
    field, _ = markov_field(100, alphabet, seed=3)
    codec = ContextCodec.fit(field.reshape(-1), grids_of(field), alphabet, expected_ids=10**8)
    assert any(step.has_contexts for step in codec.model.steps)
    loss = (bits_per_id(codec, field.reshape(-1), grids_of(field)) - codec.model.pilot.bits_per_id) * SIDE**2
    assert 23 <= loss <= 25


def test_independent_ids_get_the_order_0_model() -> None:
    ids = (np.random.default_rng(0).random(300 * 1024) ** 3 * 500).astype(np.uint16)
    codec = ContextCodec.fit(ids, np.full((300, 2), 32, np.int32), 500, expected_ids=10**9)
    assert not any(step.has_contexts for step in codec.model.steps)


def test_tables_are_paid_for_by_the_whole_dataset() -> None:
    field, _ = markov_field(100, 64, seed=4)
    ids, grids = field.reshape(-1), grids_of(field)
    sizes = [len(ContextCodec.fit(ids, grids, 64, expected_ids=n).model_bytes()) for n in (10**4, 10**6, 10**9)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[2] / 2


def test_every_id_and_context_the_pilot_never_saw_is_encodable() -> None:
    field, _ = markov_field(100, 40, seed=5)
    codec = ContextCodec.fit(field.reshape(-1) * 13, grids_of(field), 1000, expected_ids=10**9)
    assert any(step.has_contexts for step in codec.model.steps)
    every = np.random.default_rng(0).permutation(np.repeat(np.arange(1000, dtype=np.uint16), 30))
    assert bits_per_id(codec, every, np.array([[200, 150]], np.int32)) < 40


def test_the_frame_before_is_a_neighbour_where_it_tells_most() -> None:
    rng = np.random.default_rng(6)
    video = np.empty((60, 8, 12, 12), np.uint16)
    video[:, 0] = rng.integers(0, 256, (60, 12, 12))
    for frame in range(1, 8):
        fresh = rng.integers(0, 256, (60, 12, 12))
        video[:, frame] = np.where(rng.random((60, 12, 12)) < 0.8, (video[:, frame - 1] + 1) % 256, fresh)
    codec = ContextCodec.fit(video.reshape(-1), grids_of(video), 256, expected_ids=10**9)
    assert "previous" in codec.model.neighbours
    assert bits_per_id(codec, video.reshape(-1), grids_of(video)) < 0.6 * 8


def test_in_a_sequence_both_ids_before_are_neighbours() -> None:
    rng = np.random.default_rng(7)
    ids = np.zeros((200, 500), np.uint16)
    for place in range(2, 500):
        fresh = rng.integers(0, 64, 200)
        ids[:, place] = np.where(rng.random(200) < 0.8, (ids[:, place - 2] * 5 + 3) % 64, fresh)
    codec = ContextCodec.fit(ids.reshape(-1), grids_of(ids), 64, expected_ids=10**9)
    assert codec.model.neighbours == ("left", "left2")
    assert bits_per_id(codec, ids.reshape(-1), grids_of(ids)) < 0.5 * 6


def test_a_level_uses_the_level_before_where_it_tells_more_than_its_own_neighbours() -> None:
    rng = np.random.default_rng(8)
    first = rng.integers(0, 100, (200, 16, 16)).astype(np.uint16)
    second = np.where(rng.random(first.shape) < 0.7, first * 3, rng.integers(0, 300, first.shape)).astype(np.uint16)
    ids, grids = second.reshape(-1), grids_of(second)
    earlier = Earlier(first.reshape(-1), 100)
    chosen = choose_codec(ids, grids, 300, expected_ids=10**9, earlier=earlier)
    spec = chosen.spec("codes_1")
    assert (spec.codec, spec.needs_earlier) == ("context", True)
    codec = load_codec(spec, chosen.codec.model_bytes())
    assert isinstance(codec, ContextCodec)
    assert bits_per_id(codec, ids, grids, earlier.ids) < 0.7 * entropy(ids)
    alone = choose_codec(ids, grids, 300, expected_ids=10**9)
    assert not alone.codec.needs_earlier
    assert alone.sizes["context"] > 1.4 * chosen.sizes["context"]


def test_short_samples_are_fitted_as_they_are_grouped() -> None:
    field, _ = markov_field(4000, 32, seed=9, side=6)
    ids, grids = field.reshape(-1), grids_of(field)
    chosen = choose_codec(ids, grids, 32, expected_ids=10**8)
    assert chosen.spec("codes").group == 16
    assert chosen.sizes["context"] < 0.75 * entropy(ids)
    decoded = chosen.codec.decode(*chosen.codec.encode(ids, grids), grids)
    np.testing.assert_array_equal(decoded, ids)


def test_few_large_samples_are_a_pilot_too() -> None:
    field, rate = markov_field(3, 32, seed=10, side=200)
    codec = ContextCodec.fit(field.reshape(-1), grids_of(field), 32, expected_ids=10**8)
    assert bits_per_id(codec, field.reshape(-1), grids_of(field)) < 1.15 * rate


@pytest.mark.parametrize("alphabet", [2, 3, 33, 5000, 16_384, 40_000, 100_000])
def test_any_alphabet_takes_contexts(alphabet: int) -> None:
    rng = np.random.default_rng(alphabet)
    used = rng.choice(alphabet, min(alphabet, 50), replace=False)
    field, _ = markov_field(60, len(used), seed=alphabet)
    ids = used[field.reshape(-1)].astype(np.uint16 if alphabet <= 1 << 16 else np.int32)
    codec = ContextCodec.fit(ids, grids_of(field), alphabet, expected_ids=10**9)
    assert any(step.has_contexts for step in codec.model.steps)
    assert bits_per_id(codec, ids, grids_of(field)) < 0.9 * entropy(ids)


FIT = """
import sys, hashlib
import numpy as np
from tokenshard.codecs.context import ContextCodec
saved = np.load(sys.argv[1])
codec = ContextCodec.fit(saved["ids"], saved["grids"], 64, expected_ids=10**8)
print(hashlib.sha256(codec.model_bytes()).hexdigest())
"""


@pytest.mark.integration
def test_equal_pilots_give_equal_models_in_every_process_and_for_any_number_of_threads(tmp_path: Path) -> None:
    field, _ = markov_field(60, 64, seed=11)
    np.savez(tmp_path / "pilot.npz", ids=field.reshape(-1), grids=grids_of(field))
    hashes = set()
    for threads in ("1", "7"):
        names = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "PYTHONHASHSEED")
        environment = os.environ | dict.fromkeys(names, threads)
        command = [sys.executable, "-c", FIT, str(tmp_path / "pilot.npz")]
        hashes.add(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert len(hashes) == 1


@pytest.fixture(scope="module")
def photo_tokens(data_dir: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Ids of 4 x 4 patches (K = 1024) and grids of photographs; the codebook is fitted on `train` alone."""
    image = pytest.importorskip("PIL.Image")
    from tokenshard.tokenizers.patch import PatchTokenizer

    def photos(pattern: str, step: int) -> list[np.ndarray]:
        return [np.asarray(image.open(path).convert("RGB")) for path in sorted(data_dir.glob(pattern))[::step]]

    train = photos("images/imagenette224/train/*/*", 8)
    tokenizer = PatchTokenizer.fit(train[::4], 0, k=1024)
    sets = {"train": train, "test": photos("images/imagenette224/test/*/*", 20), "kodak": photos("photos/kodak/*", 2)}
    tokens = {name: [tokenizer.encode(photo[None])[0, 0] for photo in photos] for name, photos in sets.items()}
    return {
        name: (np.concatenate([grid.reshape(-1) for grid in grids]), np.array([grid.shape for grid in grids], np.int32))
        for name, grids in tokens.items()
    }


@pytest.mark.data
@pytest.mark.parametrize("name", ["test", "kodak"])
def test_photographs_cost_less_than_60_percent_of_order_0_and_80_percent_of_zstd_19(
    photo_tokens: dict[str, tuple[np.ndarray, np.ndarray]], name: str
) -> None:
    codec = ContextCodec.fit(*photo_tokens["train"], 1024, expected_ids=10**8)
    ids, grids = photo_tokens[name]
    bits = bits_per_id(codec, ids, grids)
    assert bits <= 0.60 * entropy(ids)
    assert bits <= 0.80 * 8 * len(zstandard.compress(ids.tobytes(), 19)) / len(ids)
    assert len(codec.model_bytes()) < 200_000


@pytest.mark.data
def test_the_pilot_of_photographs_chooses_contexts(photo_tokens: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    chosen = choose_codec(*photo_tokens["train"], 1024, expected_ids=10**8)
    assert chosen.codec.name == "context"
    assert chosen.sizes["context"] <= 0.65 * chosen.sizes["pack"]
    ids, grids = photo_tokens["test"]
    data, _ = chosen.codec.encode(ids, grids)
    others = [8 * len(zstandard.compress(ids.tobytes(), 3)) / len(ids), chosen.sizes["pack"]]
    assert 8 * len(data) / len(ids) <= 1.03 * min(others)
