"""Small damage of a shard is undone bit for bit, with the CRCs and checksums it was written with."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenshard.codecs.choose import load_codec
from tokenshard.shards.manifest import read_manifest
from tokenshard.shards.reader import ShardReader
from tokenshard.shards.restore import _explanations, restore

SHARD = "data/job-000000.parquet"


@given(st.binary(min_size=1, max_size=300), st.integers(0, 299), st.integers(1, 255), st.integers(0, 255))
def test_every_change_of_two_bytes_is_among_those_that_explain_the_crc(
    data: bytes, place: int, first: int, second: int
) -> None:
    place %= len(data)
    pattern = bytes([first, second]) if second and place + 1 < len(data) else bytes([first])
    damaged = bytearray(data)
    for offset, bits in enumerate(pattern):
        damaged[place + offset] ^= bits
    found = _explanations(len(data), zlib.crc32(bytes(damaged)) ^ zlib.crc32(data))
    assert (place, pattern) in found
    assert len(found) <= 2


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from shards.conftest import token_rows, write_dataset

    rows = token_rows(400, codecs=("context", "pack", "zstd"), varied=True)
    store = write_dataset(tmp_path_factory.mktemp("restore") / "tokens", [rows], row_group_bytes=8 << 10)
    manifest = read_manifest(store)
    reader = ShardReader(store, manifest.shards[0], lambda spec: load_codec(spec, rows.models.get(spec.model or "")))
    return reader, store.read(SHARD)


def damaged_at(data: bytes, places: list[int], rng: np.random.Generator, longest: int = 2) -> bytes:
    out = bytearray(data)
    for place in places:
        for offset in range(int(rng.integers(1, longest + 1))):
            out[place + offset] ^= int(rng.integers(1, 256))
    return bytes(out)


def test_two_wrong_bytes_in_any_column_are_put_right(shard: Any) -> None:
    reader, data = shard
    rng = np.random.default_rng(0)
    assert len(reader.chunks) > 2
    for name in reader.schema.names:
        start, end = reader.chunks[1][name]
        place = end - 3 if end - start < 40 else int(rng.integers(end - (end - start) // 4, end - 2))
        found = restore(reader, damaged_at(data, [place], rng))
        assert found.complete, name
        assert found.data == data
        assert place <= found.changes[0].place <= place + 1


def test_every_page_may_have_its_own_damage(shard: Any) -> None:
    reader, data = shard
    rng = np.random.default_rng(1)
    places = [chunks[name][1] - 5 for chunks in reader.chunks for name in ("codes_0", "codes_1", "key", "caption")]
    found = restore(reader, damaged_at(data, places, rng))
    assert found.complete
    assert len(found.changes) == len(places)


def test_larger_damage_stays_and_smaller_damage_elsewhere_is_still_undone(shard: Any) -> None:
    reader, data = shard
    rng = np.random.default_rng(2)
    small, large = reader.chunks[0]["codes_0"][1] - 9, reader.chunks[1]["codes_1"][1] - 60
    damaged = bytearray(damaged_at(data, [small], rng))
    damaged[large : large + 50] = rng.bytes(50)
    found = restore(reader, bytes(damaged))
    assert not found.complete
    assert found.data[: large - 200] == data[: large - 200]
    assert found.data[large : large + 50] == damaged[large : large + 50]


def test_what_is_whole_or_only_too_long_needs_no_change(shard: Any) -> None:
    reader, data = shard
    assert restore(reader, data) == (data, (), True)
    # a page header has no checksum: nothing is guessed
    start = reader.chunks[0]["codes_1"][0]
    assert not restore(reader, damaged_at(data, [start + 1], np.random.default_rng(3), 1)).complete
