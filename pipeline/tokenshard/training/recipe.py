"""What `tokenshard tokenizer train` is told: the network, the quantizer, the losses and the schedule."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, JsonValue, model_validator

from tokenshard.spec.base import Document
from tokenshard.tokenizers.conv_network import NetworkConfig, StackConfig
from tokenshard.tokenizers.networks import Network
from tokenshard.tokenizers.patch_network import PatchLocalConfig

PRESETS: dict[str, NetworkConfig | PatchLocalConfig] = {
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
    "vqgan-f16": NetworkConfig(
        dim=256,
        norm="group",
        encoder=StackConfig(channels=(128, 128, 256, 256, 512), blocks=(2, 2, 2, 2, 2), middle=2, attention=True),
        decoder=StackConfig(channels=(128, 128, 256, 256, 512), blocks=(3, 3, 3, 3, 3), middle=2, attention=True),
    ),
}
"""Networks by name: small ones that a CPU encodes at tens of images a second (`patch-f8` patch by patch), and VQGAN's
(72 M weights)."""


class Losses(Document):
    """Weights of the terms of the loss; pixels are in [-1, 1]."""

    l1: float = Field(default=0.2, ge=0)
    l2: float = Field(default=1.0, ge=0)
    gradient: float = Field(default=0.0, ge=0, description="L1 of the differences between neighbouring pixels")


class TokenizerRecipe(Document):
    """A training run. Equal recipes on equal images give equal weights on the CPU."""

    network: Network = PRESETS["f8"]
    quantizer: str = "vq"
    quantizer_options: dict[str, JsonValue] = Field(default={"size": 1024})
    losses: Losses = Losses()
    crop: int = Field(default=128, ge=8, le=4096, description="side of the square crops, in pixels")
    scale: tuple[float, float] = Field(
        default=(0.6, 1.6), description="pixels of the image a pixel of a crop covers along an axis: from, to"
    )
    batch: int = Field(default=64, ge=1)
    steps: int = Field(default=20_000, ge=1)
    lr: float = Field(default=1e-3, gt=0)
    warmup: int = Field(default=500, ge=0, description="steps until the full learning rate")
    decoder_only: float = Field(
        default=0.2, ge=0, lt=1, description="share of the steps, at the end, that train only the decoder"
    )
    ema: float = Field(default=0.999, ge=0, lt=1, description="decay of the averaged weights, which are kept")
    clip: float = Field(default=1.0, gt=0, description="largest norm of the gradient")
    seed: int = Field(default=0, ge=0)
    precision: Literal["fp32", "bf16"] = "fp32"
    stored: Literal["float16", "float32"] = "float16"

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.crop % self.network.downsample:
            raise ValueError(f"crop {self.crop} is not a multiple of {self.network.downsample}")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale {self.scale} is not a range of positive factors")
        return self

    @property
    def frozen_from(self) -> int:
        """The step from which encoder and quantizer stay as they are."""
        return self.steps - round(self.decoder_only * self.steps)
