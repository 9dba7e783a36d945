"""The figures of a dataset are those of its files and ids."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from tokenshard.shards.dataset import open_dataset
from tokenshard.shards.stats import dataset_stats, stored_levels


def test_figures_follow_from_files_and_ids(make_rows, make_dataset) -> None:
    rows = make_rows(256, alphabet=16, codecs=("pack", "zstd"))
    skewed = (np.random.default_rng(0).random(rows.batch.ids[0].size) ** 3 * 16).astype(np.uint16)
    rows.batch.ids[0][:] = skewed
    stats = dataset_stats(open_dataset(make_dataset(rows, row_group_bytes=2 << 10).root))
    json.dumps(stats)
    share = np.bincount(skewed, minlength=16) / skewed.size
    level = stats["levels"][0]
    assert level["bits_per_token"] == 4.0
    assert level["order0_entropy"] == pytest.approx(-sum(p * math.log2(p) for p in share if p))
    assert level["codes_used"] == 16
    assert stats["codec"] == "pack+zstd"
    assert stats["num_tokens"] == 2 * skewed.size
    assert stats["bytes_per_sample"] == stats["bytes"] / 256
    assert stats["file_bits_per_token"] == 8 * stats["bytes"] / stats["num_tokens"]
    parts = ("key_bytes", "length_bytes", "code_framing_bytes", "metadata_bytes", "footer_bytes")
    streams = stats["bits_per_token"] * stats["num_tokens"] / 8
    assert sum(stats[part] for part in parts) + streams == pytest.approx(stats["bytes"])
    assert all(stats[part] > 0 for part in parts)


def test_a_sample_decodes_only_part_of_the_row_groups(make_rows, make_dataset) -> None:
    ds = open_dataset(make_dataset(make_rows(640), row_group_bytes=4 << 10).root)
    stats = dataset_stats(ds, sample=64)
    assert stats["decoded_samples"] == 64
    assert dataset_stats(ds)["decoded_samples"] == 640
    assert stats["bits_per_token"] == dataset_stats(ds)["bits_per_token"]


@pytest.mark.parametrize("codec", ["context", "pack", "zstd"])
def test_each_level_says_what_its_ids_cost_and_could_cost(codec: str, make_rows, make_dataset) -> None:
    rows = make_rows(256, alphabet=100, codecs=("pack", codec))
    dataset = open_dataset(make_dataset(rows, row_group_bytes=2 << 10).root)
    stats = dataset_stats(dataset)
    json.dumps(stats)
    first, second = stats["levels"]
    ids = rows.batch.ids[1].size
    assert first["log2_alphabet"] == second["log2_alphabet"] == math.log2(100)
    assert (first["context_bits"], first["model_bytes"]) == (None, 0)
    assert second["codec"] == codec
    assert second["bits_per_token"] == 8 * second["stream_bytes"] / ids
    assert (second["model_bytes"] > 0) == (second["context_bits"] is not None) == (codec == "context")
    assert (second["length_bytes"] > 0) == (second["framing_bytes"] > 0) == (codec != "zstd")
    everything = sum(second[part] for part in ("stream_bytes", "framing_bytes", "length_bytes", "model_bytes"))
    assert second["bits_per_token_in_all"] == 8 * everything / ids
    if codec == "context":  # random ids: what the tables say is what is paid, but for 24 bits a stream
        assert second["bits_per_token"] == pytest.approx(second["context_bits"] + 24 * 256 / ids, abs=0.02)
    assert sum(level["framing_bytes"] for level in stats["levels"]) == stats["code_framing_bytes"]
    assert sum(level["model_bytes"] for level in stats["levels"]) == stats["model_bytes"]
    stored = stored_levels(dataset.manifest)
    assert all(entry.items() <= level.items() for entry, level in zip(stored, stats["levels"], strict=True))


@pytest.mark.parametrize(("codec", "rank"), [("multiset", 1), ("copy", 3)])
def test_models_that_say_nothing_of_their_bits_are_counted_all_the_same(
    codec: str, rank: int, make_rows, make_dataset
) -> None:
    rows = make_rows(192, alphabet=100, codecs=(codec,), rank=rank, stream=5)
    stats = dataset_stats(open_dataset(make_dataset(rows, row_group_bytes=2 << 10).root))
    json.dumps(stats)
    (level,) = stats["levels"]
    assert (level["codec"], level["context_bits"]) == (codec, None)
    assert level["model_bytes"] == stats["model_bytes"] == sum(map(len, rows.models.values()))
    assert 0 < level["bits_per_token"] < level["bits_per_token_in_all"]
    assert stats["packed"].keys() == {"residual"}
    assert 5 * 192 < stats["packed_bytes"] < 5 * 192 + 2000
    parts = ("key_bytes", "length_bytes", "code_framing_bytes", "metadata_bytes", "packed_bytes", "footer_bytes")
    assert sum(stats[part] for part in parts) + level["stream_bytes"] == stats["bytes"]
