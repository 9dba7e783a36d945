"""How a tokenizer is trained: quantizer, losses and schedule. What decides the weights, beside the images."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, JsonValue, model_validator

from tokenshard.spec.base import Document


class Losses(Document):
    """Weights of the terms of the loss. Pixels are in [-1, 1], errors of grids in the mean relief within patches."""

    l1: float = Field(default=0.2, ge=0)
    l2: float = Field(default=1.0, ge=0)
    gradient: float = Field(
        default=0.0, ge=0, description="L1 of the differences between neighbouring pixels; for grids and sharp edges"
    )
    lpips: float = Field(default=0.0, ge=0, description="perceptual distance; needs a local file of weights")
    gan: float = Field(default=0.0, ge=0, description="hinge loss of a patch discriminator that learns beside")
    gan_from: float = Field(default=0.5, ge=0, lt=1, description="share of the steps after which `gan` counts")

    @model_validator(mode="after")
    def _something_is_reconstructed(self) -> Self:
        if not self.l1 and not self.l2 and not self.lpips:
            raise ValueError("one of l1, l2 and lpips must be above 0")
        return self


class RecipeFields(Document):
    """All of a recipe but the network."""

    quantizer: str = "vq"
    quantizer_options: dict[str, JsonValue] = Field(default={"size": 1024})
    losses: Losses = Losses()
    crop: int = Field(default=128, ge=8, le=4096, description="side of the square crops, in pixels")
    scale: tuple[float, float] = Field(
        default=(0.6, 1.6),
        description="pixels of the image a pixel of a crop covers along an axis: from, to; of grids: 1",
    )
    frames: int = Field(default=9, ge=1, le=1024, description="of the clips that a temporal network learns from")
    batch: int = Field(default=64, ge=1, description="crops a step, over all workers together")
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
    def _scale_is_a_range(self) -> Self:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale {self.scale} is not a range of positive factors")
        return self

    @property
    def frozen_from(self) -> int:
        """The step from which encoder and quantizer stay as they are."""
        return self.steps - round(self.decoder_only * self.steps)

    @property
    def adversarial_from(self) -> int:
        """The step from which the discriminator learns and counts; past the end without one."""
        return round(self.losses.gan_from * self.steps) if self.losses.gan else self.steps


class RecipeSpec(RecipeFields):
    """A recipe as users write it down: the network is a name or the fields of a description, looked at in training."""

    network: str | dict[str, JsonValue] | None = Field(
        default=None,
        description="a name of `tokenshard tokenizer list`, or the fields of a network; default: f8, or with an "
        "encoder given the one whose decoder fits it",
    )
