"""Residual ids level by level: better pictures for more bytes, from a trained tokenizer to what is read of a shard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

import tokenshard
from tokenshard.report.quality import psnr
from tokenshard.shards.stats import dataset_stats
from tokenshard.spec.job import Transcode, build_job
from tokenshard.store import Store
from tokenshard.tokenizers.conv_network import NetworkConfig, StackConfig
from tokenshard.training.crops import PixelPool
from tokenshard.training.recipe import TokenizerRecipe
from tokenshard.training.tokenizer import TokenizerTraining

pytestmark = pytest.mark.integration
LOCAL: dict[str, Any] = {"engine": {"kind": "local", "workers": 0}}
DEPTH = 3
STATE_BITS = 24
"""Of the coder's state, a stream (measured where the codec is)."""


@pytest.fixture(scope="module")
def photos() -> dict[str, Any]:
    """Photographs that are not those of the training."""
    return {f"{name}.png": getattr(skimage.data, name)()[:192, :256] for name in ("astronaut", "coffee")}


@pytest.fixture(scope="module")
def tokens(photos: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A dataset of a residual tokenizer of three levels, trained for a few seconds."""
    root = tmp_path_factory.mktemp("levels")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    stack = StackConfig(stem=4, channels=(24,), blocks=(1,))
    fields: dict[str, Any] = {
        "network": NetworkConfig(dim=6, encoder=stack, decoder=stack),
        "quantizer": "rvq",
        "quantizer_options": {"size": 64, "depth": DEPTH, "start": 40},
        "crop": 32,
        "batch": 8,
        "steps": 150,
        "warmup": 20,
        "lr": 4e-3,
    }
    pools = PixelPool.of([skimage.data.chelsea(), skimage.data.rocket()]), PixelPool.of([skimage.data.chelsea()[:64]])
    TokenizerTraining(TokenizerRecipe.model_validate(fields), *pools, Store(root / "rvq"), say=lambda text: None).run()
    (root / "photos").mkdir()
    for name, photo in photos.items():
        Image.fromarray(photo).save(root / "photos" / name)
    tokenshard.convert_images(root / "photos", root / "tokens", str(root / "rvq"), codec="context", **LOCAL)
    yield root / "tokens"
    torch.set_num_threads(threads)


def test_each_level_makes_the_picture_better_and_the_second_by_0_8_db(tokens: Path, photos: dict[str, Any]) -> None:
    ds = tokenshard.open(tokens)
    found = []
    for depth in range(1, DEPTH + 1):
        values = []
        for name, photo in photos.items():
            codes = ds[ds.index(name)]["codes"][None, :depth]
            values.append(psnr(photo, ds.tokenizer.decode(codes, photo.shape[:2])[0]))
        found.append(values)
    gains = np.diff(np.array(found), axis=0)
    assert (gains > 0).all(), found
    assert gains[0].mean() >= 0.8, found


def test_fewer_levels_are_fewer_bytes_read_and_fewer_stored(tokens: Path, tmp_path: Path) -> None:
    ds = tokenshard.open(tokens)
    chunks = ds.manifest.shards[0].row_groups[0].codes
    read = [ds.read_group(0, depth).streams for depth in range(1, DEPTH + 1)]
    for depth, streams in enumerate(read, 1):
        assert [stream.nbytes for stream in streams] == [chunk.length for chunk in chunks[:depth]]
    sizes = []
    for depth in range(1, DEPTH + 1):
        out = tmp_path / str(depth)
        source = {"path": str(tokens), "levels": depth}
        tokenshard.run(build_job(Transcode, {"source": source, "output": str(out), "codec": "context", **LOCAL}))
        small = tokenshard.open(out)
        sizes.append(small.manifest.totals.token_bytes)
        codes, whole = (one.codes([0])[0].reshape(-1, 48, 64) for one in (small, ds))
        assert np.array_equal(codes, whole[:depth])
        assert small.tokenizer.decode(codes[None]).shape == (1, 192, 256, 3)
    assert sizes == sorted(set(sizes))


def test_the_stored_tables_code_each_level_within_2_percent_of_its_entropy(tokens: Path) -> None:
    ds = tokenshard.open(tokens)
    for level in dataset_stats(ds)["levels"]:
        ids = ds.manifest.totals.ids / DEPTH
        bits = level["bits_per_token"] - STATE_BITS * len(ds) / ids
        assert bits <= 1.02 * level["order0_entropy"], level
