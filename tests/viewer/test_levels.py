"""Of ids of several levels, each can be left out, made coarser, and looked at by itself."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tokenshard
from tokenshard.report.quality import psnr
from tokenshard.store import Store
from tokenshard.tokenizers.conv_network import NetworkConfig, StackConfig
from tokenshard.training.crops import PixelPool
from tokenshard.training.recipe import TokenizerRecipe
from tokenshard.training.tokenizer import TokenizerTraining
from viewing import LOCAL, Browser, viewing

DEPTH = 3


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """Two photographs in ids of three levels, of a residual tokenizer that was trained for a second."""
    data = pytest.importorskip("skimage.data")
    root = tmp_path_factory.mktemp("levels")
    stack = StackConfig(stem=4, channels=(16,), blocks=(1,))
    fields: dict[str, Any] = {
        "network": NetworkConfig(dim=6, encoder=stack, decoder=stack),
        "quantizer": "rvq",
        "quantizer_options": {"size": 32, "depth": DEPTH, "start": 10},
        "crop": 32,
        "batch": 8,
        "steps": 40,
        "warmup": 5,
        "lr": 4e-3,
    }
    pools = PixelPool.of([data.chelsea()]), PixelPool.of([data.chelsea()[:64]])
    TokenizerTraining(TokenizerRecipe.model_validate(fields), *pools, Store(root / "rvq"), say=lambda text: None).run()
    (root / "photos").mkdir()
    for name in ("chelsea", "coffee"):
        Image.fromarray(getattr(data, name)()[100:164, 100:180]).save(root / "photos" / f"{name}.png")
    tokenshard.convert_images(root / "photos", root / "tokens", str(root / "rvq"), codec="context", **LOCAL)
    return root / "tokens"


@pytest.fixture(scope="module")
def levels(tokens: Path) -> Iterator[Browser]:
    with viewing(tokens) as browser:
        yield browser


def test_fewer_levels_are_those_that_the_dataset_would_have(levels: Browser, tokens: Path) -> None:
    assert levels.get("rates")["levels"] == DEPTH
    dataset = tokenshard.open(tokens)
    sample = dataset[1]
    full = dataset.tokenizer.decode(sample["codes"][None], (64, 80))[0]
    stored = []
    for depth in range(1, DEPTH + 1):
        expected = dataset.tokenizer.decode(sample["codes"][None, :depth], (64, 80))[0]
        shown = np.asarray(Image.open(io.BytesIO(levels.ask(f"/api/samples/1/rate.png?levels={depth}").body)))
        assert np.array_equal(shown, expected)
        found = levels.get(f"samples/1/rate?levels={depth}")
        assert found["psnr"] == pytest.approx(psnr(full, expected))
        assert found["same"] == (depth == DEPTH)
        stored.append(found["stored_bits"])
    assert 0 < stored[0] < stored[1] < stored[2]
    both = levels.get("samples/1/rate?levels=2&codes=8")
    assert both["stored_bits"] is None
    assert both["psnr"] < levels.get("samples/1/rate?levels=2")["psnr"]


def test_each_level_has_a_codebook_and_only_the_first_has_pictures(levels: Browser, tokens: Path) -> None:
    codes = tokenshard.open(tokens)
    for level in range(DEPTH):
        found = levels.get(f"codebook/{level}?count=256&order=number")
        counts = sum(np.bincount(sample["codes"][level].ravel(), minlength=32) for sample in (codes[0], codes[1]))
        assert [one["count"] for one in found["codes"]] == counts.tolist()
        assert found["pictures"] == (level == 0)
        assert levels.get(f"samples/0/codes?level={level}")["ids"] == codes[0]["codes"][level].ravel().tolist()
    assert levels.ask("/api/codebook/1/strip.png").status == 404
    assert levels.ask("/api/codebook/0/strip.png").status == 200


def test_storage_has_figures_of_each_level(levels: Browser) -> None:
    found = levels.get("storage")
    assert [level["column"] for level in found["levels"]] == [f"codes_{level}" for level in range(DEPTH)]
    assert sum(column["role"] == "code" for column in found["columns"]) == DEPTH
