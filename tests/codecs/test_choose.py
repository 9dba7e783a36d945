"""A column gets the codec that is smallest on its own pilot, and the simplest of those as small."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from blocks import skewed_ids

from tokenshard.codecs.choose import choose_codec, load_codec
from tokenshard.codecs.zstd import ZstdCodec
from tokenshard.errors import FormatError, SpecError

GRIDS = np.full((400, 2), 16, np.int32)


def test_uniform_ids_are_packed() -> None:
    chosen = choose_codec(skewed_ids(400 * 256, 1024, 0, seed=1), GRIDS, 1024)
    assert chosen.codec.name == "pack"
    assert chosen.sizes["pack"] == 10
    assert list(chosen.sizes) == ["pack", "zstd", "context"]


def test_skewed_ids_get_the_context_codec() -> None:
    chosen = choose_codec(skewed_ids(400 * 256, 1024, 3, seed=1), GRIDS, 1024)
    assert chosen.codec.name == "context"
    assert chosen.sizes["context"] < 0.9 * chosen.sizes["pack"]


def test_repeating_text_gets_zstd() -> None:
    rng = np.random.default_rng(0)
    phrases = rng.integers(0, 1024, (50, 64))
    ids = phrases[rng.integers(0, 50, 400 * 4)].reshape(-1).astype(np.uint16)
    assert choose_codec(ids, GRIDS, 1024).codec.name == "zstd"


def test_a_tiny_dataset_does_not_pay_for_tables_but_a_sample_of_a_large_one_does() -> None:
    ids, grids = skewed_ids(10 * 256, 64, 2, seed=1), GRIDS[:10]
    assert choose_codec(ids, grids, 64).codec.name == "pack"
    assert choose_codec(ids, grids, 64, expected_ids=10**9).codec.name == "context"


def test_samples_under_64_ids_are_grouped() -> None:
    ids = skewed_ids(3200 * 16, 256, 6, seed=2)
    grids = np.full((3200, 2), 4, np.int32)
    chosen = choose_codec(ids, grids, 256, expected_ids=10**8)
    spec = chosen.spec("codes")
    assert (spec.codec, spec.group) == ("context", 16)
    data, lengths = chosen.codec.encode(ids, grids)
    alone = choose_codec(ids, np.full((800, 2), 8, np.int32), 256, "context").codec.encode(ids, grids)[0]
    assert len(data) < len(alone) - 2 * len(grids)
    np.testing.assert_array_equal(load_codec(spec, chosen.codec.model_bytes()).decode(data, lengths, grids), ids)


@pytest.mark.parametrize("want", ["pack", "zstd", "context"])
def test_a_wanted_codec_is_taken_and_comes_back_from_its_spec(want: str) -> None:
    ids = skewed_ids(400 * 256, 1000, 0, seed=1)
    chosen = choose_codec(ids, GRIDS, 1000, want=want)
    assert list(chosen.sizes) == [chosen.codec.name] == [want]
    again = load_codec(chosen.spec("codes_1"), chosen.codec.model_bytes())
    assert again.layout == chosen.codec.layout == ("list" if want == "zstd" else "binary")
    np.testing.assert_array_equal(again.decode(*chosen.codec.encode(ids, GRIDS), GRIDS), ids)


def test_an_unknown_codec_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(SpecError, match="choose auto, pack, zstd, context"):
        choose_codec(skewed_ids(256, 10, 0, seed=1), GRIDS[:1], 10, want="gzip")


@pytest.mark.parametrize("samples", [0, 1, 4, 5])
def test_pilots_of_few_samples_are_enough(samples: int) -> None:
    assert choose_codec(skewed_ids(samples * 256, 16, 0, seed=1), GRIDS[:samples], 16).codec.name == "pack"


def test_equal_pilots_give_equal_choices() -> None:
    ids = skewed_ids(400 * 256, 1024, 3, seed=1)
    first, second = (choose_codec(ids, GRIDS, 1024) for _ in range(2))
    assert first.spec("codes") == second.spec("codes")
    assert first.sizes == second.sizes


def test_a_missing_or_foreign_model_is_refused() -> None:
    chosen, other = (choose_codec(skewed_ids(400 * 256, 64, skew, seed=1), GRIDS, 64, "context") for skew in (1, 2))
    spec = chosen.spec("codes")
    for model in (None, other.codec.model_bytes()):
        with pytest.raises(FormatError, match=f"{spec.model}.tsm; it is missing or damaged"):
            load_codec(spec, model)
    with pytest.raises(FormatError, match="alphabet of 65, its model one of 64"):
        load_codec(spec.model_copy(update={"alphabet": 65}), chosen.codec.model_bytes())


def test_the_zstd_estimate_is_near_what_parquet_writes_with_or_without_a_dictionary() -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rng = np.random.default_rng(0)
    phrases = rng.integers(0, 1024, (50, 61)).astype(np.uint16)
    text = phrases[rng.integers(0, 50, 1700)].reshape(-1)[: 400 * 256]
    for ids, dictionary in ((text, False), *((skewed_ids(400 * 256, 1024, skew, seed=1), True) for skew in (0, 2, 8))):
        column = pa.ListArray.from_arrays(np.arange(401, dtype=np.int32) * 256, pa.array(ids))
        sizes = []
        for use_dictionary in (False, True):
            sink, options = pa.BufferOutputStream(), {"compression_level": 9, "use_dictionary": use_dictionary}
            pq.write_table(pa.table({"codes": column}), sink, compression="zstd", data_page_size=1 << 30, **options)
            metadata = pq.ParquetFile(pa.BufferReader(sink.getvalue())).metadata
            sizes.append(metadata.row_group(0).column(0).total_compressed_size)
        assert ZstdCodec.prefers_dictionary(ids) == (sizes[1] < sizes[0]) == dictionary
        assert ZstdCodec(1024).parquet_bytes(ids) == pytest.approx(min(sizes), rel=0.04)


def test_choosing_imports_no_compiler_and_no_room_above() -> None:
    program = (
        "import sys, tokenshard.codecs.choose;"
        "print([m for m in ('numba', 'torch', 'pyarrow', 'ray', 'faiss') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
