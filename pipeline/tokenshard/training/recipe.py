"""A recipe with its network: what a training run is told. Networks by name."""

from __future__ import annotations

from typing import Any, Self

from pydantic import field_validator, model_validator

from tokenshard.spec.recipe import RecipeFields
from tokenshard.tokenizers.causal_network import CausalConfig
from tokenshard.tokenizers.conv_network import NetworkConfig, StackConfig
from tokenshard.tokenizers.grid_network import GridNetworkConfig
from tokenshard.tokenizers.networks import Network
from tokenshard.tokenizers.patch_network import PatchLocalConfig

PRESETS: dict[str, NetworkConfig | PatchLocalConfig | CausalConfig | GridNetworkConfig] = {
    "f8": NetworkConfig(
        dim=16,
        encoder=StackConfig(stem=4, channels=(64, 128), blocks=(1, 2)),
        decoder=StackConfig(stem=2, channels=(32, 64, 128), blocks=(2, 3, 4)),
    ),
    "f16": NetworkConfig(
        dim=16,
        encoder=StackConfig(stem=4, channels=(64, 128, 192), blocks=(1, 1, 2)),
        decoder=StackConfig(stem=2, channels=(32, 64, 128, 192), blocks=(2, 2, 2, 3)),
    ),
    "f4": NetworkConfig(
        dim=8,
        encoder=StackConfig(stem=2, channels=(48, 96), blocks=(1, 2)),
        decoder=StackConfig(stem=1, channels=(32, 64, 96), blocks=(1, 2, 3)),
    ),
    "patch-f8": PatchLocalConfig(
        architecture="patch-local",
        patch=8,
        width=256,
        blocks=2,
        dim=16,
        decoder=StackConfig(stem=2, channels=(32, 64, 128), blocks=(2, 3, 4)),
    ),
    "f4x8x8": CausalConfig(
        architecture="causal",
        frames=4,
        dim=16,
        encoder=StackConfig(stem=4, channels=(96, 192), blocks=(1, 1), middle=2),
        decoder=StackConfig(stem=2, channels=(48, 96, 192), blocks=(1, 2, 2), middle=2),
    ),
    "grid-f8": GridNetworkConfig(
        architecture="grid",
        dim=16,
        encoder=StackConfig(stem=4, channels=(64, 96), blocks=(1, 0)),
        decoder=StackConfig(stem=4, channels=(64, 96), blocks=(0, 1)),
    ),
    "vqgan-f16": NetworkConfig(
        dim=256,
        norm="group",
        encoder=StackConfig(channels=(128, 128, 256, 256, 512), blocks=(2, 2, 2, 2, 2), middle=2, attention=True),
        decoder=StackConfig(channels=(128, 128, 256, 256, 512), blocks=(3, 3, 3, 3, 3), middle=2, attention=True),
    ),
}
"""Networks by name: small ones that a CPU encodes at tens of images a second (`patch-f8` patch by patch), one of clips
by groups of four frames, one of grids, and VQGAN's (72 M weights)."""


class TokenizerRecipe(RecipeFields):
    """A training run. Equal recipes on equal images give equal weights on the CPU."""

    network: Network = PRESETS["f8"]

    @field_validator("network", mode="before")
    @classmethod
    def _by_name(cls, network: Any) -> Any:
        if isinstance(network, str):
            if network not in PRESETS:
                raise ValueError(f"no network is named {network!r}; use one of {', '.join(PRESETS)}, or its fields")
            return PRESETS[network]
        return network

    @model_validator(mode="after")
    def _crops_are_whole_tokens(self) -> Self:
        if self.crop % self.network.downsample:
            raise ValueError(f"crop {self.crop} is not a multiple of {self.network.downsample}")
        if isinstance(self.network, CausalConfig) and (self.frames - 1) % self.network.frames:
            raise ValueError(f"frames {self.frames} are not 1 and groups of {self.network.frames}")
        return self

    @property
    def temporal(self) -> bool:
        """Whether the network is one of clips."""
        return isinstance(self.network, CausalConfig)
