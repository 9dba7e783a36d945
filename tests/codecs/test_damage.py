"""Damaged streams and model files: an error or ids inside the alphabet, never a crash, a hang or a foreign byte."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zstandard
from blocks import random_model, skewed_ids

from tokenshard.codecs.context import ContextCodec
from tokenshard.codecs.grouped import Grouped
from tokenshard.codecs.model import MAGIC, ContextModel
from tokenshard.codecs.pack import PackCodec
from tokenshard.codecs.zstd import ZstdCodec
from tokenshard.errors import FormatError

SAMPLES = 10_000
GRIDS = np.full((SAMPLES, 2), 8, np.int32)
ALPHABET = 300


def context_codec(contexts: bool, ids: np.ndarray) -> ContextCodec:
    return ContextCodec(random_model(ALPHABET, 3)) if contexts else ContextCodec.fit(ids, GRIDS, ALPHABET)


def damaged_streams(data: np.ndarray, lengths: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Every stream damaged in its own way: a flipped bit, a foreign byte, words lost or added, or nothing but noise."""
    streams = []
    kinds = rng.integers(0, 6, len(lengths))
    for stream, kind in zip(np.split(data.copy(), np.cumsum(lengths)[:-1]), kinds, strict=True):
        at = rng.integers(len(stream))
        if kind <= 1:
            stream[at] ^= 1 << rng.integers(8)
        elif kind == 2:
            stream[at] ^= rng.integers(1, 256)
        elif kind == 3:
            stream = stream[: 2 * rng.integers(len(stream) // 2)]
        elif kind == 4:
            stream = np.concatenate([stream, rng.integers(0, 256, 2 * rng.integers(1, 9), np.uint8)])
        else:
            stream = rng.integers(0, 256, 2 * rng.integers(1, 99), np.uint8)
        streams.append(stream)
    return np.concatenate(streams), np.array([len(stream) for stream in streams], np.int32)


@pytest.mark.parametrize(("contexts", "found"), [(False, 0.98), (True, 0.98)])
def test_nearly_all_of_60000_damaged_streams_are_found_and_no_other_id_appears(contexts: bool, found: float) -> None:
    rng = np.random.default_rng(7)
    ids = skewed_ids(SAMPLES * 64, ALPHABET, 1, seed=1)
    codec = context_codec(contexts, ids)
    data, lengths = codec.encode(ids, GRIDS)
    misses = 0
    for _ in range(6):
        decoded, damaged = codec.try_decode(*damaged_streams(data, lengths, rng), GRIDS)
        assert decoded.max() < ALPHABET
        misses += SAMPLES - damaged.sum()
    assert misses <= (1 - found) * 6 * SAMPLES


@pytest.mark.parametrize(("contexts", "found"), [("auto", 0.999), ("none", 0.98)])
def test_single_flipped_bits_are_found_by_the_end_of_the_stream_alone(contexts: str, found: float) -> None:
    """16,000 streams with one flipped bit each; order-0 ones hide the more, the evener the ids."""
    rng, grids = np.random.default_rng(3), np.full((1000, 2), 32, np.int32)
    ids = skewed_ids(1000 * 32 * 32, 1024, 1, seed=3)
    if contexts == "auto":  # ids that follow from their left neighbour four times in five
        steps = np.where(rng.random((1000, 32, 32)) < 0.8, 3, rng.integers(0, 1024, (1000, 32, 32)))
        ids = (np.cumsum(steps, axis=2) % 1024).astype(np.uint16).reshape(-1)
    codec = ContextCodec.fit(ids, grids, 1024, contexts=contexts, expected_ids=10**9)
    assert any(step.has_contexts for step in codec.model.steps) == (contexts == "auto")
    data, lengths = codec.encode(ids, grids)
    missed = 0
    for _ in range(16):
        flipped = data.copy()
        flipped[np.cumsum(lengths) - rng.integers(1, lengths + 1)] ^= (1 << rng.integers(0, 8, 1000)).astype(np.uint8)
        missed += int((~codec.try_decode(flipped, lengths, grids)[1]).sum())
    assert missed <= (1 - found) * 16_000


def test_damage_of_a_stream_does_not_touch_the_samples_beside_it() -> None:
    ids = skewed_ids(SAMPLES * 64, ALPHABET, 1, seed=1)
    codec = context_codec(False, ids)
    data, lengths = codec.encode(ids, GRIDS)
    starts = np.cumsum(lengths) - lengths
    data[starts[::7] + 5] ^= 0x40
    decoded, damaged = codec.try_decode(data, lengths, GRIDS)
    whole = np.arange(SAMPLES) % 7 != 0
    assert not damaged[whole].any()
    np.testing.assert_array_equal(decoded.reshape(SAMPLES, 64)[whole], ids.reshape(SAMPLES, 64)[whole])
    with pytest.raises(FormatError, match="streams are damaged, the first is that of sample 0 of its block"):
        codec.decode(data, lengths, GRIDS)


def test_a_damaged_sample_is_found_when_it_is_decoded_alone() -> None:
    ids = skewed_ids(SAMPLES * 64, ALPHABET, 1, seed=1)
    for contexts in (True, False):
        codec = context_codec(contexts, ids)
        data, lengths = codec.encode(ids, GRIDS)
        data[(np.cumsum(lengths) - lengths)[::7] + 5] ^= 0x40
        _, damaged = codec.try_decode(data, lengths, GRIDS)
        assert damaged[:8].tolist() == [True, *[False] * 6, True]
        block = codec.open_block(data, lengths, GRIDS)
        for sample in range(70):
            if damaged[sample]:
                with pytest.raises(FormatError, match="stream of a sample is damaged"):
                    block.sample(sample)
            else:
                np.testing.assert_array_equal(block.sample(sample), ids[64 * sample : 64 * (sample + 1)])


def test_packed_ids_above_the_alphabet_lost_bytes_and_padding_bits_are_found() -> None:
    codec, grids = PackCodec(5), np.array([[3], [2]], np.int32)
    data, lengths = codec.encode(np.array([4, 0, 4, 1, 2], np.uint16), grids)
    for damaged, message in ((data ^ 1, "outside the alphabet"), (data | [0, 0x80, 0], "padding")):
        with pytest.raises(FormatError, match=message):
            codec.decode(damaged.astype(np.uint8), lengths, grids)
    with pytest.raises(FormatError, match="add up"):
        codec.decode(data[:-1], lengths, grids)
    with pytest.raises(FormatError, match="has 1 bytes"):
        codec.decode(data[:-1], lengths - [1, 0], grids)


def test_random_packed_and_listed_bytes_give_ids_of_the_alphabet_or_an_error() -> None:
    rng = np.random.default_rng(2)
    grid = np.array([[7]], np.int32)
    outcomes = set()
    for codec in (PackCodec(5), PackCodec(70_000), ZstdCodec(60_000), ZstdCodec(70_000)):
        length = len(codec.encode(np.zeros(7, np.uint16), grid)[0])
        for _ in range(1000):
            data = rng.integers(0, 256, length, np.uint8) >> rng.integers(0, 8, dtype=np.uint8)
            try:
                outcomes.add(bool(codec.decode(data, np.array([length], np.int32), grid).max() < codec.alphabet))
            except FormatError:
                outcomes.add(None)
    assert outcomes == {True, None}


@pytest.mark.parametrize(
    ("lengths", "grids", "message"),
    [
        ([4, 4], [[1]], "2 stream lengths for 1 samples"),
        ([-4, 12], [[1], [1]], "do not add up"),
        ([4, 6], [[1], [1]], "do not add up"),
        ([3, 5], [[1], [1]], "odd number of bytes"),
        ([4, 4], [[-1], [1]], "negative side"),
        ([4, 4], [[70_000, 70_000], [1, 1]], "2\\^31 ids or more"),
    ],
)
def test_lengths_and_grids_that_cannot_be_are_refused(lengths: list[int], grids: list[list[int]], message: str) -> None:
    codec = ContextCodec.fit(np.arange(9, dtype=np.uint16), np.array([[9]], np.int32), 9)
    with pytest.raises(FormatError, match=message):
        codec.decode(np.ones(8, np.uint8), np.array(lengths, np.int32), np.array(grids, np.int32))


def test_a_stream_inside_a_group_is_refused() -> None:
    grids, ids = np.full((8, 1), 3, np.int32), np.arange(24, dtype=np.uint16)
    codec = Grouped(ContextCodec.fit(ids, grids, 24), 4)
    data, lengths = codec.encode(ids, grids)
    with pytest.raises(FormatError, match="inside a group of 4 rows"):
        codec.decode(data, np.roll(lengths, 1), grids)


def signed(body: bytes) -> bytes:
    return body + hashlib.sha256(body).digest()


@pytest.mark.parametrize("alphabet", [1, 40, 1500])
def test_any_changed_byte_of_a_model_file_is_found(alphabet: int) -> None:
    good = random_model(alphabet, 0).to_bytes()
    rng = np.random.default_rng(alphabet)
    for at in rng.integers(0, len(good), 500):
        changed = bytearray(good)
        changed[at] ^= 1 << rng.integers(8)
        with pytest.raises(FormatError):
            ContextModel.from_bytes(bytes(changed))
        with pytest.raises(FormatError):
            ContextModel.from_bytes(good[:at])


def test_a_model_file_damaged_before_it_was_signed_is_refused_or_decodes_inside_the_alphabet() -> None:
    model = random_model(40, 0)
    good = model.to_bytes()
    header_end = 16 + int.from_bytes(good[12:16], "little")
    payload = zstandard.decompress(good[header_end:-32])
    rng = np.random.default_rng(4)
    noise, lengths, grids = rng.integers(0, 256, 640, np.uint8), np.full(8, 80, np.int32), np.full((8, 2), 5, np.int32)
    outcomes = {"refused": 0, "accepted": 0}
    for _ in range(1000):
        header, arrays = bytearray(good[:header_end]), bytearray(payload)
        target = arrays if rng.random() < 0.7 else header
        one, other = rng.integers(0, len(target), 2)
        target[one] = target[other] if rng.random() < 0.5 else rng.integers(256)
        if target is arrays and rng.random() < 0.5:  # a swap keeps many sums right
            arrays[one], arrays[other] = payload[other], payload[one]
        try:
            codec = ContextCodec.from_model(signed(bytes(header) + zstandard.compress(bytes(arrays), 1)))
            ids, _ = codec.try_decode(noise, lengths, grids)
            assert ids.max() < codec.alphabet
            outcomes["accepted"] += 1
        except FormatError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 10


def test_a_model_whose_nodes_have_no_tables_is_refused() -> None:
    model = random_model(40, 0)
    none = replace(model.steps[0], tables=np.zeros_like(model.steps[0].tables))
    with pytest.raises(FormatError, match="a node without a table"):
        replace(model, steps=(none, *model.steps[1:]))


def test_a_model_that_claims_huge_arrays_is_refused_before_it_is_read() -> None:
    good = random_model(40, 0).to_bytes()
    length = int.from_bytes(good[12:16], "little")
    header = good[16 : 16 + length].replace(b'"classes":[', b'"classes":[2,256],"was":[', 1)
    header = header.replace(b'"class_maps":', b'"class_maps":60000,"before":', 1)
    body = good[:12] + len(header).to_bytes(4, "little") + header + good[16 + length : -32]
    with pytest.raises(FormatError, match=r"above the limit of 4194304"):
        ContextModel.from_bytes(signed(body))


def test_a_newer_model_version_is_refused_by_name() -> None:
    with pytest.raises(FormatError, match="version 2 needs a newer tokenshard"):
        ContextModel.from_bytes(signed(MAGIC + (2).to_bytes(4, "little") + bytes(40)))
    with pytest.raises(FormatError, match=r"not a \.tsm file"):
        ContextModel.from_bytes(b"PAR1" + bytes(100))


BOUNDS_CHECKED = """
import ctypes, mmap, sys
import numpy as np
from tokenshard.codecs.context import ContextCodec
from tokenshard.codecs.pack import PackCodec
from tokenshard.codecs.slot_tables import slot_tables
from tokenshard.errors import FormatError
saved = np.load(sys.argv[1])
for name in ("plain", "contexts", "earlier"):
    codec = ContextCodec.from_model(saved[name + "_model"].tobytes())
    earlier = saved["earlier"] if codec.needs_earlier else None
    codec.try_decode(saved[name + "_data"], saved[name + "_lengths"], saved["grids"], earlier=earlier)

def guarded(data):  # a copy that ends where a page begins that may not be read
    pages = -(-len(data) // mmap.PAGESIZE)
    whole = np.frombuffer(mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE), np.uint8)
    end = pages * mmap.PAGESIZE
    assert not ctypes.CDLL(None).mprotect(ctypes.c_void_p(whole.ctypes.data + end), mmap.PAGESIZE, 0)
    whole[end - len(data) : end] = data
    return whole[end - len(data) : end]

plain = ContextCodec.from_model(saved["plain_model"].tobytes())  # in vectors, which check no bounds
assert slot_tables(plain.model) is not None
room = guarded(np.concatenate([saved["plain_data"], np.zeros(plain.ahead, "u1")]))
try:
    plain.decode_ahead(room, saved["plain_lengths"], saved["grids"])
except FormatError:
    print("damaged")

for bits in (3, 13, 16, 17):
    packed, ids = PackCodec(1 << bits), saved["ids"].astype("i8") * 37 % (1 << bits)
    ids = ids.astype("i4" if bits > 16 else "u2")
    for samples in (1, 100):
        grids = saved["grids"][:samples] + (bits % 2)  # 64 ids, and 81: the last few of a sample are read one by one
        some = ids[: int(grids.prod(axis=1).sum())]
        data, lengths = packed.encode(some, grids)
        assert (packed.decode(guarded(data), lengths, grids) == some).all()
print("inside")
"""


@pytest.mark.integration
def test_compiled_loops_stay_inside_their_arrays_for_damaged_streams(tmp_path: Path) -> None:
    rng = np.random.default_rng(11)
    ids = skewed_ids(SAMPLES * 64, ALPHABET, 1, seed=1)
    saved = {"grids": GRIDS, "ids": ids, "earlier": ids % 70}
    beside = ContextCodec(random_model(ALPHABET, 3, earlier_alphabet=70))
    codecs = {"plain": context_codec(False, ids), "contexts": context_codec(True, ids), "earlier": beside}
    for name, codec in codecs.items():
        data, lengths = damaged_streams(*codec.encode(ids, GRIDS, ids % 70), rng)
        saved |= {f"{name}_data": data, f"{name}_lengths": lengths}
        saved[f"{name}_model"] = np.frombuffer(codec.model_bytes(), np.uint8)
    np.savez(tmp_path / "saved.npz", **saved)
    environment = os.environ | {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    arguments = [sys.executable, "-c", BOUNDS_CHECKED, str(tmp_path / "saved.npz")]
    result = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=300)
    assert result.stdout == "damaged\ninside\n", result.stderr
