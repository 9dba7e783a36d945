"""Tokenizers with an encoder that others trained, which stays as it is: only quantizer and decoder are learned.

Features of the encoder are projected to their principal components over the training images, which may be weighted by
their spread, and quantized (the ideas of DINO-Tok and of VQRAE, arXiv:2511.23386). The encoder is not part of the
tokenizer's folder, only the SHA-256 of its weights: decoding does without it, and encoding needs it to be given again.
It is code, so that it is imported only where the user names it; a name in a stored file imports nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from tokenshard.errors import FormatError, SpecError
from tokenshard.spec.base import Document
from tokenshard.tokenizers.conv_network import Decoder, Pixels, StackConfig, Width

PROBE = 224
"""Side of the image an encoder is tried on."""


class FrozenConfig(Document):
    """An encoder that is not part of the tokenizer, the components of its features, and a decoder."""

    architecture: Literal["frozen"]
    encoder: str = Field(min_length=1, max_length=500, description="what it was called where it was trained with")
    encoder_sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="of its weights")
    patch: int = Field(ge=1, le=256, description="pixels of its input that a vector of features stands for, an axis")
    features: int = Field(ge=1, le=1 << 16, description="channels of its output")
    dim: Width = Field(description="components of the features that are quantized")
    reweighted: bool = Field(default=False, description="components count in proportion to their variance")
    decoder: StackConfig

    @model_validator(mode="after")
    def _fewer_components(self) -> Self:
        if self.dim > self.features:
            raise ValueError(f"{self.features} features do not have {self.dim} components; choose a smaller dim")
        return self

    @property
    def downsample(self) -> int:
        """Pixels a token covers along each axis."""
        return self.decoder.downsample

    @property
    def pixels(self) -> Pixels:
        """What goes into the encoder is converted there."""
        return "signed"

    def modules(self) -> tuple[nn.Module, nn.Module]:
        """Encoder without what it borrows, and decoder with random weights."""
        return FrozenEncoder(self), Decoder(self.decoder, self.dim, "none")


class Borrowed:
    """A module that is used but neither copied nor saved with what uses it."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module.eval().requires_grad_(False)
        self._device: torch.device | None = None

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Any:
        """What the module answers, on the device of the images."""
        if images.device != self._device:
            self.module.to(images.device)
            self._device = images.device
        return self.module(images)

    def __deepcopy__(self, _: dict[int, Any]) -> Borrowed:
        return self


class FrozenEncoder(nn.Module):
    """float [B, 3, height, width] in [-1, 1], sizes multiples of f -> components [B, dim, height / f, width / f].

    The borrowed encoder gets images in [0, 1]. Where its patches are not of f pixels, they are resized first.
    """

    mean: Tensor
    axes: Tensor

    def __init__(self, config: FrozenConfig) -> None:
        super().__init__()
        self.config = config
        self.borrowed: Borrowed | None = None
        self.register_buffer("mean", torch.zeros(config.features))
        self.register_buffer("axes", torch.eye(config.dim, config.features))

    def forward(self, x: Tensor) -> Tensor:
        rows = self.features(x) - self.mean[:, None, None]
        return torch.einsum("bchw,dc->bdhw", rows, self.axes)

    def features(self, x: Tensor) -> Tensor:
        """float32 [B, features, rows, columns] of the borrowed encoder. Raises SpecError where there is none."""
        config = self.config
        if self.borrowed is None:
            raise SpecError(
                f"encoding with this tokenizer needs the encoder it was trained with, {config.encoder!r} (SHA-256 of "
                f"its weights {config.encoder_sha256[:16]}…), which is not part of it; give it with --encoder"
            )
        size = tuple(side // config.downsample * config.patch for side in x.shape[2:])
        images = (x + 1) / 2
        if size != tuple(x.shape[2:]):
            images = functional.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
        found = self.borrowed(images)
        expected = (len(x), config.features, size[0] // config.patch, size[1] // config.patch)
        if not isinstance(found, Tensor) or tuple(found.shape) != expected:
            raise SpecError(
                f"encoder {config.encoder!r} answered {_shown(found)} for images {list(images.shape)}; expected "
                f"{list(expected)}"
            )
        return found.float()


def frozen_network(
    name: str, encoder: nn.Module, decoder: StackConfig, dim: int | None, reweighted: bool
) -> FrozenConfig:
    """The description of a network around an encoder, found out by trying it on one image.

    Raises :class:`SpecError` when the encoder does not answer with a grid of features [1, C, rows, columns].
    """
    found = Borrowed(encoder)(torch.zeros(1, 3, PROBE, PROBE))
    if not isinstance(found, Tensor) or found.ndim != 4 or len(found) != 1 or found.shape[2] != found.shape[3]:
        raise SpecError(
            f"encoder {name!r} answered {_shown(found)} for images [1, 3, {PROBE}, {PROBE}]; expected features [1, "
            "channels, rows, columns]"
        )
    patch, rest = divmod(PROBE, found.shape[2])
    if rest:
        raise SpecError(f"encoder {name!r} made {found.shape[2]} rows of {PROBE} pixels; expected equal patches")
    features = found.shape[1]
    if dim is not None and dim > features:
        raise SpecError(f"encoder {name!r}: {features} features do not have {dim} components; choose a smaller dim")
    return FrozenConfig(
        architecture="frozen",
        encoder=name,
        encoder_sha256=encoder_sha256(encoder),
        patch=patch,
        features=features,
        dim=features if dim is None else dim,
        reweighted=reweighted,
        decoder=decoder,
    )


def encoder_sha256(encoder: nn.Module) -> str:
    """Over names, types, shapes and bytes of all weights and buffers that it saves."""
    digest = hashlib.sha256()
    for name, tensor in sorted(encoder.state_dict().items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def lend_encoder(encoder: FrozenEncoder, lent: nn.Module, name: str) -> None:
    """Give an encoder what it borrows. Raises :class:`FormatError` when that has other weights than it was."""
    found = encoder_sha256(lent)
    if found != encoder.config.encoder_sha256:
        raise FormatError(
            f"encoder {name!r} has weights of SHA-256 {found[:16]}…; the tokenizer was trained with "
            f"{encoder.config.encoder!r}, {encoder.config.encoder_sha256[:16]}…"
        )
    encoder.borrowed = Borrowed(lent)


def principal_axes(batches: Iterable[Tensor], dim: int, reweighted: bool) -> tuple[Tensor, Tensor]:
    """Mean [C] and the leading ``dim`` principal axes [dim, C] of features [B, C, rows, columns].

    Axes are scaled so that the projections have variance 1 on average; where they are reweighted, each by the standard
    deviation along it, so that squared errors count in proportion to the variance of their component.
    """
    count, total, gram = 0, torch.zeros(()).double(), torch.zeros(()).double()
    for batch in batches:
        rows = batch.movedim(1, -1).reshape(-1, batch.shape[1]).double().cpu()
        count, total, gram = count + len(rows), total + rows.sum(0), gram + rows.T @ rows
    mean = total / count
    variances, vectors = torch.linalg.eigh(gram / count - torch.outer(mean, mean))
    variances, axes = variances.flip(0)[:dim].clamp_min(0), vectors.flip(1)[:, :dim].T
    # an eigenvector has no sign of its own
    axes = axes * torch.where(axes.sum(1, keepdim=True) < 0, -1.0, 1.0)
    scale = variances.sqrt() if reweighted else torch.ones_like(variances)
    spread = (variances * scale.square()).mean().sqrt().clamp_min(1e-12)
    return mean.float(), (axes * (scale / spread)[:, None]).float()


def _shown(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
