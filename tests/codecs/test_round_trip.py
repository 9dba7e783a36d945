"""Whatever the ids, the grids and the codec: what was encoded is decoded, sample by sample and all together."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from random import Random

import numpy as np
import pytest
from blocks import ALPHABETS, blocks, random_model, skewed_ids
from hypothesis import given, settings
from hypothesis import strategies as st

from reference_decoder import decode_sample, read_model
from tokenshard.codecs.base import Codec, id_dtype, sample_sizes
from tokenshard.codecs.context import ContextCodec
from tokenshard.codecs.grouped import Grouped
from tokenshard.codecs.pack import PackCodec
from tokenshard.codecs.zstd import ZstdCodec
from tokenshard.errors import FormatError, InputError

Block = tuple[np.ndarray, np.ndarray, int]


def codecs_for(ids: np.ndarray, grids: np.ndarray, alphabet: int) -> list[Codec]:
    context = ContextCodec.fit(ids[::2], np.array([[len(ids[::2])]], np.int32), alphabet)
    return [PackCodec(alphabet), ZstdCodec(alphabet), context, Grouped(context, 4)]


@settings(max_examples=80, deadline=None)
@given(blocks())
def test_every_codec_returns_the_ids_it_was_given(block: Block) -> None:
    ids, grids, alphabet = block
    for codec in codecs_for(ids, grids, alphabet):
        data, lengths = codec.encode(ids, grids)
        assert lengths.sum() == len(data)
        decoded = codec.decode(data, lengths, grids)
        assert decoded.dtype == id_dtype(alphabet)
        np.testing.assert_array_equal(decoded, ids)


@settings(max_examples=60, deadline=None)
@given(blocks(), st.integers(0, 2**32 - 1))
def test_an_open_block_gives_each_sample_alone(block: Block, seed: int) -> None:
    ids, grids, alphabet = block
    alphabet = min(alphabet, 600)
    ids = (ids % alphabet).astype(id_dtype(alphabet))
    earlier = skewed_ids(len(ids), 70, 0, seed)
    ends = np.cumsum(sample_sizes(grids))[:-1]
    beside = ContextCodec(random_model(alphabet, seed, earlier_alphabet=70))
    for codec in (PackCodec(alphabet), ContextCodec(random_model(alphabet, seed)), beside):
        given = earlier if codec.needs_earlier else None
        opened = codec.open_block(*codec.encode(ids, grids, given), grids)
        for row, (expected, before) in enumerate(zip(np.split(ids, ends), np.split(earlier, ends), strict=True)):
            if row < len(grids):  # np.split gives one piece of no samples
                sample = opened.sample(row, before)
                assert sample.dtype == id_dtype(alphabet)
                np.testing.assert_array_equal(sample, expected)


@settings(max_examples=30, deadline=None)
@given(blocks(), st.randoms(use_true_random=False))
def test_packed_samples_decode_in_place_in_any_order(block: Block, random: Random) -> None:
    ids, grids, alphabet = block
    codec = PackCodec(alphabet)
    data, lengths = codec.encode(ids, grids)
    order = np.array(random.choices(range(len(grids)), k=20) if len(grids) else [], np.int64)
    first_bytes = np.cumsum(lengths) - lengths
    places = np.uint64(data.ctypes.data) + first_bytes[order].astype(np.uint64)
    decoded = codec.decode_in_place(places, len(data) - first_bytes[order], lengths[order], grids[order])
    pieces = np.split(ids, np.cumsum(sample_sizes(grids))[:-1])
    np.testing.assert_array_equal(decoded, np.concatenate([ids[:0], *(pieces[row] for row in order)]))


@settings(max_examples=40, deadline=None)
@given(blocks(), st.integers(0, 2**32 - 1))
def test_a_model_with_contexts_returns_the_ids_it_was_given(block: Block, seed: int) -> None:
    ids, grids, alphabet = block
    codec = ContextCodec(random_model(min(alphabet, 600), seed))
    ids = (ids % codec.alphabet).astype(id_dtype(codec.alphabet))
    data, lengths = codec.encode(ids, grids)
    np.testing.assert_array_equal(codec.decode(data, lengths, grids), ids)


@settings(max_examples=16, deadline=None)
@given(blocks(max_side=4), st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 40, 300, 70_000]))
def test_ids_coded_beside_the_level_before_come_back_also_from_the_reference_decoder(
    block: Block, seed: int, earlier_alphabet: int
) -> None:
    ids, grids, alphabet = block
    alphabet = min(alphabet, 300)
    ids = (ids % alphabet).astype(np.uint16)
    earlier = skewed_ids(len(ids), earlier_alphabet, 0, seed)
    codec = ContextCodec(random_model(alphabet, seed, earlier_alphabet))
    assert codec.needs_earlier
    data, lengths = codec.encode(ids, grids, earlier)
    np.testing.assert_array_equal(codec.decode(data, lengths, grids, earlier=earlier), ids)
    model, ends = read_model(codec.model_bytes()), np.cumsum(sample_sizes(grids))
    streams, beside = np.split(data, np.cumsum(lengths))[: len(grids)], np.split(earlier, ends)[: len(grids)]
    for i, (stream, before) in enumerate(zip(streams, beside, strict=True)):
        read = decode_sample(model, stream.tobytes(), tuple(grids[i].tolist()), before.tolist())
        assert read == ids[ends[i] - len(before) : ends[i]].tolist()


def test_a_level_coded_beside_another_asks_for_it() -> None:
    grid, ids = np.array([[4]], np.int32), np.arange(4, dtype=np.uint16)
    codec = ContextCodec(random_model(10, 0, earlier_alphabet=5))
    data, lengths = codec.encode(ids, grid, ids)
    with pytest.raises(FormatError, match="level before is outside its alphabet of 5"):
        codec.decode(data, lengths, grid, earlier=ids + 2)
    for earlier in (None, ids[:3]):
        with pytest.raises(FormatError, match="pass those of the same samples"):
            codec.decode(data, lengths, grid, earlier=earlier)
    with pytest.raises(InputError, match="level before is outside its alphabet of 5"):
        codec.encode(ids, grid, ids + 2)


@pytest.mark.parametrize("size", [1, 7, 256, 1024, 4096])
@pytest.mark.parametrize("alphabet", [2, 17, 256, 1024, 8192, 32768])
def test_any_number_of_samples_decodes_as_each_alone(alphabet: int, size: int) -> None:
    """Lockstep and its remainder give the same ids, whatever the size of samples and alphabet."""
    codec = ContextCodec(random_model(min(alphabet, 2000), 2)) if alphabet < 8192 else None
    grids = np.full((21, 2), (1, size), np.int32)
    ids = skewed_ids(21 * size, alphabet if codec is None else codec.alphabet, 1, seed=size)
    codec = codec or ContextCodec.fit(ids, grids, alphabet, contexts="none")
    data, lengths = codec.encode(ids, grids)
    ends = np.cumsum(lengths)
    for samples in (1, 3, 8, 9, 21):
        decoded = codec.decode(data[: ends[samples - 1]], lengths[:samples], grids[:samples])
        np.testing.assert_array_equal(decoded, ids[: samples * size])


def test_ten_thousand_samples_of_many_grids_advance_together_and_decode_as_each_alone() -> None:
    rng = np.random.default_rng(0)
    grids = rng.integers(0, 12, (10_000, 2), dtype=np.int32)
    sizes = sample_sizes(grids)
    ids = skewed_ids(int(sizes.sum()), 700, 1, seed=0)
    codec = ContextCodec(random_model(700, 4))
    data, lengths = codec.encode(ids, grids)
    np.testing.assert_array_equal(codec.decode(data, lengths, grids), ids)
    firsts, starts = np.cumsum(sizes) - sizes, np.cumsum(lengths) - lengths
    for i in rng.choice(10_000, 300, replace=False):
        alone = codec.decode(data[starts[i] : starts[i] + lengths[i]], lengths[i : i + 1], grids[i : i + 1])
        np.testing.assert_array_equal(alone, ids[firsts[i] : firsts[i] + sizes[i]])


@pytest.mark.parametrize(("levels", "alphabet", "grid"), [(16, 256, (14, 14)), (4, 1024, (8, 8, 3))])
def test_product_and_residual_quantizers_round_trip_level_by_level(
    levels: int, alphabet: int, grid: tuple[int, ...]
) -> None:
    grids = np.full((13, len(grid)), grid, np.int32)
    size = int(sample_sizes(grids).sum())
    before = None
    for level in range(levels):
        codec = ContextCodec(random_model(alphabet, level, None if before is None else alphabet))
        ids = skewed_ids(size, alphabet, 1, seed=level)
        data, lengths = codec.encode(ids, grids, before)
        np.testing.assert_array_equal(codec.decode(data, lengths, grids, earlier=before), ids)
        before = ids


@settings(max_examples=60, deadline=None)
@given(blocks(), st.booleans())
def test_a_sample_alone_decodes_to_its_slice_of_the_block(block: Block, contexts: bool) -> None:
    ids, grids, alphabet = block
    alphabet = min(alphabet, 2000)
    ids = (ids % alphabet).astype(np.uint16)
    codec = ContextCodec(random_model(alphabet, 1)) if contexts else ContextCodec.fit(ids, grids, alphabet)
    data, lengths = codec.encode(ids, grids)
    sizes = sample_sizes(grids)
    for i in range(len(grids)):
        stream = data[lengths[:i].sum() : lengths[: i + 1].sum()]
        alone = codec.decode(stream, lengths[i : i + 1], grids[i : i + 1])
        np.testing.assert_array_equal(alone, ids[sizes[:i].sum() : sizes[: i + 1].sum()])


@settings(max_examples=25, deadline=None)
@given(blocks(max_side=4), st.integers(0, 2**32 - 1), st.booleans())
def test_the_reference_decoder_reads_the_same_ids(block: Block, seed: int, contexts: bool) -> None:
    ids, grids, alphabet = block
    alphabet = min(alphabet, 300)
    ids = (ids % alphabet).astype(np.uint16)
    codec = ContextCodec(random_model(alphabet, seed)) if contexts else ContextCodec.fit(ids, grids, alphabet)
    model = read_model(codec.model_bytes())
    data, lengths = codec.encode(ids, grids)
    streams = np.split(data, np.cumsum(lengths))[: len(grids)]
    read = [decode_sample(model, s.tobytes(), tuple(g.tolist())) for s, g in zip(streams, grids, strict=True)]
    assert [i for sample in read for i in sample] == ids.tolist()


@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_the_order_of_samples_in_a_block_does_not_change_their_streams(alphabet: int) -> None:
    grids = np.array([[5, 7], [0, 3], [1, 1], [5, 7], [6, 2], [5, 7], [5, 7], [35, 1], [2, 2]], np.int32)
    ids = skewed_ids(int(grids.prod(axis=1).sum()), alphabet, 2, seed=3)
    codec = ContextCodec.fit(ids, grids, alphabet)
    data, lengths = codec.encode(ids, grids)
    order = np.random.default_rng(0).permutation(len(grids))
    pieces, streams = (np.split(a, np.cumsum(n))[: len(grids)] for a, n in ((ids, grids.prod(axis=1)), (data, lengths)))
    shuffled, shuffled_lengths = codec.encode(np.concatenate([pieces[i] for i in order]), grids[order])
    np.testing.assert_array_equal(shuffled, np.concatenate([streams[i] for i in order]))
    np.testing.assert_array_equal(shuffled_lengths, lengths[order])


def test_the_largest_alphabet_round_trips() -> None:
    alphabet, grids = 1 << 20, np.full((3, 1), 2000, np.int32)
    ids = skewed_ids(6000, alphabet, 1, seed=0)
    for codec in (PackCodec(alphabet), ContextCodec.fit(ids, grids, alphabet)):
        np.testing.assert_array_equal(codec.decode(*codec.encode(ids, grids), grids), ids)


def test_an_alphabet_of_one_id_needs_no_bytes() -> None:
    grids, ids = np.array([[3, 4], [1, 0]], np.int32), np.zeros(12, np.uint16)
    for codec in (PackCodec(1), ContextCodec.fit(ids, grids, 1)):
        data, lengths = codec.encode(ids, grids)
        assert len(data) == 0
        assert lengths.tolist() == [0, 0]
        assert codec.decode(data, lengths, grids).tolist() == [0] * 12


def test_packed_ids_are_laid_out_lowest_bit_first_and_start_at_a_byte() -> None:
    data, lengths = PackCodec(5).encode(np.array([1, 2, 4, 3], np.uint16), np.array([[3], [1]], np.int32))
    assert lengths.tolist() == [2, 1]
    assert data.tolist() == [0b00_010_001, 0b1, 0b011]


def test_rows_of_a_group_share_the_stream_of_its_first_row() -> None:
    grids, ids = np.full((37, 2), 3, np.int32), skewed_ids(37 * 9, 256, 3, seed=1)
    codec = Grouped(ContextCodec.fit(ids, grids, 256), 16)
    data, lengths = codec.encode(ids, grids)
    assert np.flatnonzero(lengths).tolist() == [0, 16, 32]
    tail = codec.decode(data[lengths[:16].sum() :], lengths[16:], grids[16:])
    np.testing.assert_array_equal(tail, ids[16 * 9 :])


@pytest.mark.parametrize("grids", [np.full((8, 2), 4, np.int32), np.array([[2, 8], [4, 4]] * 4, np.int32)])
def test_a_group_with_contexts_round_trips_for_equal_and_ragged_rows(grids: np.ndarray) -> None:
    ids = skewed_ids(128, 50, 1, seed=2)
    codec = Grouped(ContextCodec(random_model(50, seed=5)), 4)
    np.testing.assert_array_equal(codec.decode(*codec.encode(ids, grids), grids), ids)


def test_ids_are_written_to_the_given_array() -> None:
    grids, ids = np.full((5, 2), 8, np.int32), skewed_ids(320, 1000, 1, seed=4)
    for codec in codecs_for(ids, grids, 1000):
        out = np.zeros(320, np.uint16)
        assert codec.decode(*codec.encode(ids, grids), grids, out) is out
        np.testing.assert_array_equal(out, ids)
        with pytest.raises(ValueError, match="contiguous uint16 array of 320"):
            codec.decode(*codec.encode(ids, grids), grids, np.zeros(320, np.int32))


def test_streams_may_lie_at_any_address_of_a_read_only_buffer() -> None:
    grids, ids = np.full((5, 2), 8, np.int32), skewed_ids(320, 1000, 1, seed=4)
    for codec in codecs_for(ids, grids, 1000):
        data, lengths = codec.encode(ids, grids)
        for shift in (0, 1, 3):
            moved = np.frombuffer(bytes(shift) + data.tobytes(), np.uint8)[shift:]
            np.testing.assert_array_equal(codec.decode(moved, lengths, grids), ids)


def test_ids_outside_the_alphabet_are_refused() -> None:
    grid = np.array([[2]], np.int32)
    ids = np.array([3, 10], np.uint16)
    for codec in codecs_for(ids - ids, grid, 10):
        with pytest.raises(InputError, match="outside the alphabet of 10"):
            codec.encode(ids, grid)
        with pytest.raises(InputError, match="pass them flat"):
            codec.encode(ids[:1], grid)
    with pytest.raises(InputError, match="outside the alphabet"):
        PackCodec(100_000).encode(np.array([-1, 5], np.int32), grid)


def test_codecs_survive_pickling_and_serve_several_threads() -> None:
    grids, ids = np.full((64, 2), 16, np.int32), skewed_ids(64 * 256, 1024, 2, seed=6)
    for codec in codecs_for(ids, grids, 1024):
        data, lengths = codec.encode(ids, grids)
        copy = pickle.loads(pickle.dumps(codec))
        with ThreadPoolExecutor(4) as pool:
            results = list(pool.map(lambda _, c=copy: c.decode(data, lengths, grids), range(8)))  # noqa: B023
        assert all((result == ids).all() for result in results)
