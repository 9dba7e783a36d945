"""Levels that are coded beside the level before: a level brings along what it needs, whatever part is asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import xxhash

from tokenshard.codecs.context import ContextCodec
from tokenshard.codecs.fit import Earlier
from tokenshard.errors import FormatError, SpecError
from tokenshard.shards.dataset import open_dataset
from tokenshard.shards.manifest import read_manifest
from tokenshard.shards.schema import code_names
from tokenshard.shards.verify import verify
from tokenshard.spec.codec import CodecSpec
from tokenshard.store import Store

SHARD = "data/job-000000.parquet"
ALPHABETS = (100, 300, 90, 300)


def residual_levels(total: int, seed: int) -> list[np.ndarray]:
    """Flat ids of four levels; each follows from the level before in seven places of ten."""
    rng = np.random.default_rng(seed)
    levels = [rng.integers(0, ALPHABETS[0], total).astype(np.uint16)]
    for alphabet in ALPHABETS[1:]:
        follows = rng.random(total) < 0.7
        levels.append(np.where(follows, levels[-1] * 3 % alphabet, rng.integers(0, alphabet, total)).astype(np.uint16))
    return levels


@cache
def models() -> tuple[ContextCodec, ...]:
    """One codec a level, fitted on other samples; those of levels 1 and 3 need the level before."""
    pilot, grids = residual_levels(100_000, seed=1), np.full((1000, 2), 10, np.int32)
    codecs = []
    for level, alphabet in enumerate(ALPHABETS):
        earlier = Earlier(pilot[level - 1], ALPHABETS[level - 1]) if level % 2 else None
        codecs.append(ContextCodec.fit(pilot[level], grids, alphabet, earlier=earlier, expected_ids=10**9))
    return tuple(codecs)


def residual_rows(template: Any, groups: tuple[int, ...] = (1, 1, 1, 1), codec_of_third: str = "context") -> Any:
    """The rows of ``template`` with four residual levels."""
    levels = residual_levels(int(template.grids.prod(axis=1).sum()), seed=2)
    specs, stored = [], {}
    for level, (name, group) in enumerate(zip(code_names(4), groups, strict=True)):
        if level == 2 and codec_of_third != "context":
            specs.append(CodecSpec(column=name, codec=codec_of_third, alphabet=ALPHABETS[level]))
            continue
        model = models()[level].model_bytes()
        sha256 = hashlib.sha256(model).hexdigest()
        stored[sha256] = model
        specs.append(
            CodecSpec(
                column=name,
                codec="context",
                alphabet=ALPHABETS[level],
                model=sha256,
                group=group,
                needs_earlier=models()[level].needs_earlier,
            )
        )
    return replace(
        template,
        columns=template.columns.model_copy(update={"codes": tuple(specs)}),
        batch=replace(template.batch, ids=tuple(levels)),
        models=stored,
    )


def test_levels_one_and_three_are_those_that_need_the_level_before() -> None:
    assert [codec.needs_earlier for codec in models()] == [False, True, False, True]


LAYOUTS = {
    "alone": {},
    "in groups": {"groups": (16, 16, 16, 16)},
    "in groups of different sizes": {"groups": (1, 16, 4, 8)},
    "beside a list": {"codec_of_third": "zstd"},
    "beside packed ids": {"codec_of_third": "pack", "groups": (2, 1, 1, 16)},
}


@pytest.fixture(params=[(layout, varied) for layout in LAYOUTS for varied in (False, True)], ids=str)
def dataset(request: Any, make_rows: Callable, make_dataset: Callable) -> tuple[Store, Any, list[np.ndarray]]:
    """(store of 300 rows in several row groups, its rows, codes [levels, *grid] of each)"""
    layout, varied = request.param
    rows = residual_rows(make_rows(300, codecs=("pack",) * 4, varied=varied, side=6), **LAYOUTS[layout])
    store = make_dataset(rows, row_group_bytes=4 << 10)
    return store, rows, rows.samples()


def test_all_levels_of_all_samples_come_back(dataset) -> None:
    store, _, samples = dataset
    ds = open_dataset(store.root)
    assert ds.num_row_groups > 2
    assert all(map(np.array_equal, ds.codes(range(300)), samples))
    parts = [sample for part in ds.iter_codes() for sample in part]
    assert all(map(np.array_equal, parts, samples))


def test_single_samples_and_shuffled_subsets_equal_slices_of_the_whole(dataset) -> None:
    store, _, samples = dataset
    for number in (0, 17, 63, 64, 299):
        assert np.array_equal(open_dataset(store.root)[number]["codes"], samples[number])
    ds, rng = open_dataset(store.root), np.random.default_rng(0)
    for order in (rng.permutation(300), rng.integers(0, 300, 50), np.array([5, 5, 4, 299, 4])):
        assert all(map(np.array_equal, ds.codes(order), (samples[n] for n in order)))


def test_the_first_levels_are_read_without_the_later_ones(dataset) -> None:
    store, rows, _ = dataset
    reader = open_dataset(store.root).reader(0)
    first = reader.entry.row_groups[0].rows
    sizes = rows.grids[:first].prod(axis=1)
    for levels in (1, 2, 3, 4):
        group = reader.read_group(0, levels)
        assert len(group.streams) == levels
        for order in (None, np.array([3, 60, 0, 3])):
            got = group.decode(order)
            for ids, stored in zip(got, rows.batch.ids, strict=False):
                pieces = np.split(stored[: sizes.sum()], np.cumsum(sizes)[:-1])
                wanted = pieces if order is None else [pieces[n] for n in order]
                assert np.array_equal(ids, np.concatenate(wanted))


def test_deep_verification_decodes_them(dataset) -> None:
    store, rows, _ = dataset
    report = verify(store, deep=True)
    assert report.errors == ()
    assert report.ids == 4 * len(rows.batch.ids[0])


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_a_flipped_bit_of_any_level_is_found_and_only_levels_up_to_it_are_lost(
    make_rows, make_dataset, level: int
) -> None:
    rows = residual_rows(make_rows(100, codecs=("pack",) * 4, side=6))
    store = make_dataset(rows)
    chunk = read_manifest(store).shards[0].row_groups[0].codes[level]
    damaged = bytearray(store.read(SHARD))
    damaged[chunk.offset + chunk.length // 2] ^= 8
    store.put(SHARD, bytes(damaged))
    reader = open_dataset(store.root).reader(0)
    with pytest.raises(FormatError, match=rf"row group 0 .*codes_{level} damaged"):
        reader.read_group(0)
    before = reader.read_group(0, level).decode()
    assert all(map(np.array_equal, before, rows.batch.ids))
    assert any(f"codes_{level}" in error for error in verify(store, deep=True).errors)


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_streams_that_fit_their_checksums_but_are_damaged_are_found_when_decoded(
    make_rows, make_dataset, change_manifest, level: int
) -> None:
    """Wrong ids of one level derail the level that is coded beside it; neither may leave its arrays."""
    store = make_dataset(residual_rows(make_rows(100, codecs=("pack",) * 4, side=6)))
    intact = store.read(SHARD)
    chunk = read_manifest(store).shards[0].row_groups[0].codes[level]
    data, rng = bytearray(intact), np.random.default_rng(level)
    for place in rng.integers(chunk.offset, chunk.offset + chunk.length, 200).tolist():
        data[place] = int(rng.integers(256))
    store.put(SHARD, bytes(data))

    def fit(document: dict) -> None:
        shard = document["shards"][0]
        shard["sha256"] = hashlib.sha256(data).hexdigest()
        listed = shard["row_groups"][0]["codes"][level]
        listed["xxh64"] = xxhash.xxh64(data[chunk.offset : chunk.offset + chunk.length]).hexdigest()

    change_manifest(store, fit)
    with pytest.raises(FormatError, match=rf"row group 0 .*column codes_{level}: .* streams are damaged"):
        open_dataset(store.root).codes(range(100))
    assert any("streams are damaged" in error for error in verify(store, deep=True).errors)


def test_bytes_do_not_depend_on_how_rows_are_cut_into_batches(make_rows, make_shard, tmp_path: Path) -> None:
    rows = residual_rows(make_rows(200, codecs=("pack",) * 4, varied=True, side=6), groups=(1, 16, 4, 8))
    whole = make_shard(rows, row_group_bytes=8 << 10)
    for number, cuts in enumerate(((1, 37, 130), (64, 65))):
        assert make_shard(rows, tmp_path / f"{number}.parquet", cuts=cuts, row_group_bytes=8 << 10) == whole


def test_a_first_level_cannot_need_an_earlier_one_and_other_codecs_never_do(make_rows, make_shard) -> None:
    rows = residual_rows(make_rows(20, codecs=("pack",) * 4, side=6), codec_of_third="pack")
    codes = rows.columns.codes
    first = codes[1].model_copy(update={"column": "codes"})
    with pytest.raises(SpecError, match="first code column cannot need"):
        rows.columns.model_copy(update={"codes": (first,)}).checked()
    for change in ({"needs_earlier": True}, {"group": 16}, {"model": "0" * 64}):
        changed = codes[2].model_copy(update=change)
        with pytest.raises(SpecError, match="only the context codec"):
            rows.columns.model_copy(update={"codes": (*codes[:2], changed, codes[3])}).checked()


def test_a_shard_whose_footer_does_not_say_so_is_refused(make_rows, make_shard, tmp_path: Path) -> None:
    rows = residual_rows(make_rows(50, codecs=("pack",) * 4, side=6))
    entry = make_shard(rows)
    assert pq.read_metadata(tmp_path / entry.path).metadata[b"tokenshard.columns"].count(b'"needs_earlier":true') == 2
    spec = rows.columns.codes[1].model_copy(update={"needs_earlier": False})
    with pytest.raises(FormatError, match="differ on whether the level before is needed"):
        rows.codec(spec)
