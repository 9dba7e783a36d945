"""Training around a frozen encoder: its features are looked at once, then only quantizer and decoder learn."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor, nn

from tokenshard.errors import SpecError
from tokenshard.tokenizers.causal_network import CausalConfig
from tokenshard.tokenizers.conv_network import AutoEncoder, StackConfig
from tokenshard.tokenizers.frozen import FrozenConfig, FrozenEncoder, frozen_network, lend_encoder, principal_axes
from tokenshard.training.crops import PixelPool
from tokenshard.training.recipe import PRESETS, TokenizerRecipe

VECTORS_A_FEATURE = 50
"""Feature vectors seen for each of their channels before their principal components are computed."""


def decoder_for(encoder: nn.Module, name: str, preset: str | None) -> StackConfig:
    """The decoder of a preset: the one given, or the one whose tokens are as large as the encoder's patches, nearly."""
    if preset is not None:
        if preset not in PRESETS:
            raise SpecError(f"--network {preset}: with an encoder given, one of {', '.join(PRESETS)}, for its decoder")
        if isinstance(PRESETS[preset], CausalConfig):
            raise SpecError(f"--network {preset}: an encoder of images cannot be part of a network of clips")
        return PRESETS[preset].decoder
    patch = frozen_network(name, encoder, PRESETS["f8"].decoder, None, False).patch
    for one in ("f4", "f8", "f16"):
        if PRESETS[one].downsample >= patch:
            return PRESETS[one].decoder
    raise SpecError(f"encoder {name!r} has patches of {patch} pixels; give a --network with a decoder for them")


def preparation(
    encoder: nn.Module, name: str, pool: PixelPool, recipe: TokenizerRecipe
) -> Callable[[AutoEncoder], None]:
    """What puts the encoder, and the principal axes of its features of the pool, into a network to be trained."""

    def prepare(network: AutoEncoder) -> None:
        borrower = network.encoder
        if not isinstance(borrower, FrozenEncoder):
            raise SpecError(f"encoder {name!r}: the recipe's network has an encoder of its own")
        lend_encoder(borrower, encoder, name)
        config = borrower.config
        mean, axes = principal_axes(_features(borrower, config, pool, recipe), config.dim, config.reweighted)
        borrower.mean.copy_(mean)
        borrower.axes.copy_(axes)

    return prepare


def _features(
    borrower: FrozenEncoder, config: FrozenConfig, pool: PixelPool, recipe: TokenizerRecipe
) -> Iterator[Tensor]:
    """Features of crops as training sees them, none of which it will draw."""
    pool = pool.to(borrower.mean.device)
    seen, step = 0, recipe.steps
    while seen < VECTORS_A_FEATURE * config.features:
        crops = pool.draw(min(recipe.batch, 32), recipe.crop, recipe.scale, recipe.seed, step)
        features = borrower.features(crops)
        yield features
        seen, step = seen + features[:, 0].numel(), step + 1
