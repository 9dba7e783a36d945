"""A training run that takes a second: tiny network, few steps, photographs of scikit-image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import skimage.data

from tokenshard.store import Store
from tokenshard.tokenizers.conv_network import NetworkConfig, StackConfig
from tokenshard.training.crops import PixelPool
from tokenshard.training.recipe import TokenizerRecipe
from tokenshard.training.tokenizer import TokenizerTraining

TINY = NetworkConfig(
    dim=4,
    encoder=StackConfig(stem=4, channels=(16,), blocks=(1,)),
    decoder=StackConfig(stem=4, channels=(16,), blocks=(1,)),
)
STEPS = 40


def tiny(**changes: Any) -> TokenizerRecipe:
    fields: dict[str, Any] = {"network": TINY, "quantizer_options": {"size": 32}, "crop": 32, "batch": 4}
    return TokenizerRecipe.model_validate({**fields, "steps": STEPS, "warmup": 5, "lr": 3e-3, **changes})


def photos() -> tuple[PixelPool, PixelPool]:
    """To train on, and held out."""
    shown = [skimage.data.coffee()[:200, :300], skimage.data.chelsea()[:150], skimage.data.rocket()[:64, :64]]
    return PixelPool.of(shown), PixelPool.of([skimage.data.astronaut()[:160, :160]])


def training(recipe: TokenizerRecipe, pools: tuple[PixelPool, PixelPool], out: Path | str, **options: Any) -> Any:
    return TokenizerTraining(recipe, *pools, Store(out), **{"say": lambda text: None, **options})
