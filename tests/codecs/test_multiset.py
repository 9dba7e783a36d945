"""The `multiset` codec: ids without their order, for less than independent ids could cost."""

from __future__ import annotations

import hashlib
import math
import pickle
from itertools import pairwise

import numpy as np
import pytest
from blocks import blocks
from hypothesis import given, settings
from hypothesis import strategies as st

from reference_decoder import decode_multiset
from tokenshard.codecs.base import id_dtype, sample_sizes
from tokenshard.codecs.choose import choose_codec, load_codec
from tokenshard.codecs.multiset import LAWS, MultisetCodec, law_frequencies
from tokenshard.errors import FormatError, InputError

Block = tuple[np.ndarray, np.ndarray, int]


def sorted_block(block: Block) -> Block:
    ids, grids, alphabet = block
    of_sample = np.repeat(np.arange(len(grids)), sample_sizes(grids))
    return ids[np.lexsort((ids, of_sample))], grids, alphabet


def topical(samples: int, size: int, alphabet: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Samples of ids that each come from a narrow part of the alphabet."""
    rng = np.random.default_rng(seed)
    middle = rng.integers(0, alphabet, (samples, 1))
    ids = (middle + np.rint(rng.laplace(0, alphabet / 50, (samples, size))).astype(int)) % alphabet
    return np.sort(ids, 1).reshape(-1).astype(id_dtype(alphabet)), np.full((samples, 1), size, np.int32)


@settings(max_examples=60, deadline=None)
@given(blocks())
def test_sorted_ids_come_back(block: Block) -> None:
    ids, grids, alphabet = sorted_block(block)
    codec = MultisetCodec.fit(ids, grids, alphabet)
    data, lengths = codec.encode(ids, grids)
    decoded = codec.decode(data, lengths, grids)
    assert decoded.dtype == id_dtype(alphabet)
    np.testing.assert_array_equal(decoded, ids)


@settings(max_examples=40, deadline=None)
@given(blocks(), st.integers(0, 2**32 - 1))
def test_any_laws_and_an_open_block_give_each_sample_alone(block: Block, seed: int) -> None:
    ids, grids, alphabet = sorted_block(block)
    laws = np.random.default_rng(seed).integers(0, LAWS, alphabet).astype(np.uint8)
    laws[0] = 0
    codec = MultisetCodec(laws)
    opened = codec.open_block(*codec.encode(ids, grids), grids)
    for row, expected in enumerate(np.split(ids, np.cumsum(sample_sizes(grids))[:-1])[: len(grids)]):
        np.testing.assert_array_equal(opened.sample(row), expected)


@settings(max_examples=25, deadline=None)
@given(blocks(max_side=5), st.integers(0, 2**32 - 1))
def test_the_specification_alone_decodes_it(block: Block, seed: int) -> None:
    ids, grids, alphabet = sorted_block(block)
    laws = np.random.default_rng(seed).integers(0, LAWS, alphabet).astype(np.uint8)
    laws[0] = 0
    codec = MultisetCodec(laws)
    data, lengths = codec.encode(ids, grids)
    ends = np.cumsum(sample_sizes(grids))
    for row, (stream, size) in enumerate(zip(np.split(data, np.cumsum(lengths)), sample_sizes(grids), strict=False)):
        found = decode_multiset(codec.model_bytes(), stream.tobytes(), int(size))
        assert found == ids[ends[row] - size : ends[row]].tolist()


@pytest.mark.parametrize("size", [5000, 300_000])
def test_samples_of_very_many_ids_come_back(size: int) -> None:
    ids = np.sort(np.random.default_rng(0).integers(0, 7, size) ** 2).astype(np.uint16)
    grids = np.array([[size]], np.int32)
    codec = MultisetCodec.fit(ids, grids, 64)
    data, lengths = codec.encode(ids, grids)
    np.testing.assert_array_equal(codec.decode(data, lengths, grids), ids)
    assert len(data) < 200  # a handful of counts


def test_order_is_not_paid_for() -> None:
    rng = np.random.default_rng(1)
    ids = np.sort(rng.integers(0, 1024, (400, 200)), 1).reshape(-1).astype(np.uint16)
    grids = np.full((400, 1), 200, np.int32)
    data, _ = MultisetCodec.fit(ids, grids, 1024).encode(ids, grids)
    counts = np.apply_along_axis(np.bincount, 1, ids.reshape(400, 200), minlength=1024)
    repeats = sum(math.lgamma(count + 1) for count in counts[counts > 1])
    best = (400 * 200 * math.log(1024) - 400 * math.lgamma(201) + repeats) / math.log(2) / 8
    assert len(data) <= 1.04 * best
    assert best < 0.45 * 400 * 200 * 10 / 8


def test_ids_that_come_together_cost_less_than_independent_ones_could() -> None:
    pilot, grids = topical(500, 100, 512, seed=2)
    ids, _ = topical(500, 100, 512, seed=3)
    data, _ = MultisetCodec.fit(pilot, grids, 512).encode(ids, grids)
    independent = (math.log2(512) * 100 - math.lgamma(101) / math.log(2)) / 8 * 500
    assert len(data) < 0.8 * independent


def test_samples_out_of_order_are_refused() -> None:
    codec = MultisetCodec(np.zeros(8, np.uint8))
    with pytest.raises(InputError, match="sorted"):
        codec.encode(np.array([1, 3, 2], np.uint16), np.array([[3]], np.int32))
    codec.encode(np.array([1, 3, 2], np.uint16), np.array([[2], [1]], np.int32))  # sorted in each sample


def test_it_is_chosen_by_name_and_loaded_from_its_model() -> None:
    ids, grids = topical(64, 40, 200, seed=4)
    chosen = choose_codec(ids, grids, 200, "multiset")
    spec = chosen.spec("codes")
    assert spec.codec == "multiset"
    codec = load_codec(spec, chosen.codec.model_bytes())
    for again in (codec, pickle.loads(pickle.dumps(codec))):
        np.testing.assert_array_equal(again.decode(*chosen.codec.encode(ids, grids), grids), ids)
    assert choose_codec(ids, grids, 200).codec.name != "multiset"


def test_damage_is_found_or_gives_other_sorted_ids() -> None:
    ids, grids = topical(4000, 30, 300, seed=5)
    codec = MultisetCodec.fit(ids, grids, 300)
    data, lengths = codec.encode(ids, grids)
    rng = np.random.default_rng(6)
    found = 0
    firsts = np.cumsum(lengths) - lengths
    for row in range(len(grids)):
        stream = data[firsts[row] : firsts[row] + lengths[row]].copy()
        if row % 3 == 0:
            stream[rng.integers(len(stream))] ^= 1 << rng.integers(8)
        elif row % 3 == 1:
            stream = stream[: 2 * rng.integers(len(stream) // 2)]
        else:
            stream = rng.integers(0, 256, 2 * rng.integers(1, 40), np.uint8)
        try:
            decoded = codec.decode(stream, np.array([len(stream)], np.int32), grids[:1])
        except FormatError:
            found += 1
        else:
            assert len(decoded) == 30
            assert (np.diff(decoded.astype(int)) >= 0).all()
            assert decoded.max() < 300
    assert found >= 0.98 * len(grids)


@pytest.mark.parametrize("change", ["flip", "cut", "law", "magic"])
def test_damaged_models_are_refused(change: str) -> None:
    data = MultisetCodec(np.zeros(8, np.uint8)).model_bytes()
    if change == "law":
        with pytest.raises(FormatError, match="law"):
            MultisetCodec(np.array([0, 0, LAWS], np.uint8))
        return
    damaged = {
        "flip": data[:40] + bytes([data[40] ^ 1]) + data[41:],
        "cut": data[:-1],
        "magic": b"TSMODEL\0" + data[8:],
    }
    with pytest.raises(FormatError):
        MultisetCodec.from_model(damaged[change])


def test_laws_are_whole_and_never_change() -> None:
    frequencies = law_frequencies()
    assert frequencies.min() >= 1
    ends = [(ids - 1) * (ids + 2) // 2 for ids in range(1, 33)]
    sums = [frequencies[:, a:b].sum(1) for a, b in pairwise(ends)]
    assert (np.array(sums) == 4096).all()
    # Streams of older versions depend on every entry.
    assert hashlib.sha256(frequencies.astype("<u2").tobytes()).hexdigest()[:16] == "a1de8dae215a44ca"
