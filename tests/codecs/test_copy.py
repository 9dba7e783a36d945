"""The `copy` codec: clips come back, what does not move costs nearly nothing, and damage is found."""

from __future__ import annotations

import pickle
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference_decoder import decode_copied, read_copy_model
from tokenshard.codecs.base import id_dtype
from tokenshard.codecs.choose import choose_codec, load_codec
from tokenshard.codecs.context import ContextCodec
from tokenshard.codecs.copy import CopyCodec
from tokenshard.errors import FormatError, InputError, SpecError


def clip(frames: int, side: int, alphabet: int, moving: float, seed: int) -> np.ndarray:
    """A clip in which that share of places gets another id from frame to frame, in runs."""
    rng = np.random.default_rng(seed)
    ids = np.repeat(rng.integers(0, alphabet, (side, -(-side // 3))), 3, axis=1)[:, :side]
    out = [ids]
    for _ in range(frames - 1):
        changed = rng.random((side, side)) < moving
        out.append(np.where(changed, rng.integers(0, alphabet, (side, side)), out[-1]))
    return np.stack(out)


def flat(clips: list[np.ndarray], alphabet: int) -> tuple[np.ndarray, np.ndarray]:
    ids = np.concatenate([one.ravel() for one in clips]) if clips else np.zeros(0)
    return ids.astype(id_dtype(alphabet)), np.array([one.shape for one in clips], np.int32).reshape(-1, 3)


@cache
def fitted(alphabet: int) -> CopyCodec:
    return CopyCodec.fit(*flat([clip(4, 9, alphabet, 0.3, 1)], alphabet), alphabet)


@settings(max_examples=40, deadline=None)
@given(
    shapes=st.lists(st.tuples(*[st.integers(0, 6)] * 3), max_size=5),
    alphabet=st.sampled_from([1, 2, 5, 33, 1024, 70_000]),
    seed=st.integers(0, 1 << 30),
)
def test_clips_of_any_shape_come_back_also_from_the_reference_decoder(
    shapes: list[tuple[int, int, int]], alphabet: int, seed: int
) -> None:
    rng, codec = np.random.default_rng(seed), fitted(alphabet)
    ids, grids = flat([rng.integers(0, min(alphabet, 3), shape) for shape in shapes], alphabet)
    data, lengths = codec.encode(ids, grids)
    assert np.array_equal(codec.decode(data, lengths, grids), ids)
    model = read_copy_model(codec.model_bytes())
    edges = np.concatenate([[0], np.cumsum(lengths)])
    read = [
        decode_copied(model, data[a:b].tobytes(), tuple(grid))
        for (a, b), grid in zip(pairwise(edges.tolist()), grids.tolist(), strict=True)
    ]
    assert [one for stream in read for one in stream] == ids.tolist()


def test_a_clip_alone_decodes_to_its_slice_of_the_block() -> None:
    clips = [clip(frames, 7, 100, 0.2, frames) for frames in (1, 5, 3, 8)]
    ids, grids = flat(clips, 100)
    codec = CopyCodec.fit(ids, grids, 100)
    block = codec.open_block(*codec.encode(ids, grids), grids)
    for row, one in enumerate(clips):
        assert np.array_equal(block.sample(row), one.ravel())


def test_what_does_not_move_costs_nearly_nothing() -> None:
    ids, grids = flat([clip(16, 32, 1024, 0.02, seed) for seed in range(40)], 1024)
    still, still_grids = flat([np.repeat(clip(1, 64, 1024, 0, 99), 16, axis=0)], 1024)
    codec = CopyCodec.fit(ids, grids, 1024)
    first = codec.encode(*flat([clip(1, 64, 1024, 0, 99)], 1024))[0]
    whole = codec.encode(still, still_grids)[0]
    assert 8 * (len(whole) - len(first)) / (15 * 64 * 64) < 0.05


def test_clips_cost_less_than_with_two_neighbours() -> None:
    ids, grids = flat([clip(8, 32, 256, 0.2, seed) for seed in range(40)], 256)
    copy, context = CopyCodec.fit(ids, grids, 256), ContextCodec.fit(ids, grids, 256)
    assert len(copy.encode(ids, grids)[0]) < 0.95 * len(context.encode(ids, grids)[0])


def test_clips_get_it_where_it_is_smallest_and_it_comes_back_from_its_spec() -> None:
    ids, grids = flat([clip(8, 32, 256, 0.1, seed) for seed in range(40)], 256)
    chosen = choose_codec(ids, grids, 256)
    assert chosen.codec.name == "copy"
    again = load_codec(chosen.spec("codes"), chosen.codec.model_bytes())
    assert np.array_equal(again.decode(*chosen.codec.encode(ids, grids), grids), ids)
    with pytest.raises(FormatError, match="missing or damaged"):
        load_codec(chosen.spec("codes"), None)


def test_it_is_for_clips() -> None:
    ids, grids = flat([clip(4, 8, 16, 0.1, 0)], 16)
    codec = CopyCodec.fit(ids, grids, 16)
    with pytest.raises(InputError, match="grids of rank 3, not of rank 2"):
        codec.encode(ids, grids[:, :2].copy())
    with pytest.raises(SpecError, match="for clips"):
        choose_codec(ids, np.array([[16, 16]], np.int32), 16, "copy")
    with pytest.raises(InputError, match="outside the alphabet"):
        codec.encode(ids + np.uint16(16), grids)


def test_equal_pilots_give_equal_models_that_survive_pickling() -> None:
    ids, grids = flat([clip(8, 16, 64, 0.3, seed) for seed in range(10)], 64)
    first, second = (CopyCodec.fit(ids, grids, 64) for _ in range(2))
    assert first.model_bytes() == second.model_bytes()
    assert np.array_equal(pickle.loads(pickle.dumps(first)).encode(ids, grids)[0], first.encode(ids, grids)[0])


def test_nearly_all_damaged_streams_are_found_and_no_other_id_appears() -> None:
    ids, grids = flat([clip(6, 12, 200, 0.3, seed) for seed in range(200)], 200)
    codec = CopyCodec.fit(ids, grids, 200)
    data, lengths = codec.encode(ids, grids)
    rng, missed = np.random.default_rng(5), 0
    starts = np.cumsum(lengths) - lengths
    for _ in range(10):
        damaged = data.copy()
        damaged[starts + rng.integers(0, lengths)] ^= rng.integers(1, 256, len(lengths)).astype(np.uint8)
        read, found = codec.try_decode(damaged, lengths, grids)
        assert read.max() < 200
        missed += int((~found).sum())
    assert missed < 10
    noise = rng.integers(0, 256, len(data)).astype(np.uint8)
    assert codec.try_decode(noise, lengths, grids)[1].mean() > 0.99


def test_lengths_that_cannot_be_are_refused() -> None:
    ids, grids = flat([clip(3, 4, 16, 0.3, 0)], 16)
    codec = CopyCodec.fit(ids, grids, 16)
    data, lengths = codec.encode(ids, grids)
    with pytest.raises(FormatError, match="add up"):
        codec.decode(data, lengths + 2, grids)
    with pytest.raises(FormatError, match="odd number"):
        codec.decode(data[:-1], lengths - 1, grids)
    with pytest.raises(FormatError, match="rank 3"):
        codec.decode(data, lengths, np.array([[4, 12]], np.int32))


def test_any_changed_byte_of_a_model_file_is_found() -> None:
    ids, grids = flat([clip(4, 8, 16, 0.3, 0)], 16)
    data = CopyCodec.fit(ids, grids, 16).model_bytes()
    for place in range(0, len(data), max(1, len(data) // 60)):
        with pytest.raises(FormatError, match="codec model"):
            CopyCodec.from_model(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    with pytest.raises(FormatError, match="codec model"):
        CopyCodec.from_model(data[:20])
