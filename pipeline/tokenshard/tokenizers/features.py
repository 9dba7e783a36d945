"""Features of frozen encoders: of a tokenizer of images before it quantizes, or of an encoder that a user lends.

Frames go through a network one by one, so that what comes out does not depend on the batch.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import nn

from tokenshard.errors import FormatError, InputError, SpecError
from tokenshard.spec.base import StoredDocument
from tokenshard.spec.tokenizer import TokenizerSpec
from tokenshard.tokenizers.base import Tokenizer
from tokenshard.tokenizers.conv import ConvVQ
from tokenshard.tokenizers.conv_network import to_signed, to_unit
from tokenshard.tokenizers.frozen import PROBE, Borrowed, FrozenEncoder, encoder_sha256
from tokenshard.tokenizers.patch import SCALE, PatchTokenizer
from tokenshard.tokenizers.registry import tokenizer_class

MAX_PIXELS = 1 << 22
"""Of a frame, which a network sees as a whole."""


class TokenizerConfig(StoredDocument):
    """The features are those of a tokenizer, which is stored with them."""

    kind: Literal["tokenizer"] = "tokenizer"
    tokenizer: TokenizerSpec
    dim: int = Field(ge=1, le=1 << 16, description="channels of a feature")


class LentConfig(StoredDocument):
    """The features are those of an encoder that is not stored: whoever encodes lends it again."""

    kind: Literal["lent"] = "lent"
    name: str = Field(min_length=1, max_length=500, description="what it was called")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="of its weights")
    patch: int = Field(ge=1, le=256, description="pixels that a feature stands for, an axis")
    dim: int = Field(ge=1, le=1 << 16, description="channels of a feature")


FeaturesConfig = Annotated[TokenizerConfig | LentConfig, Field(discriminator="kind")]


class Features(Protocol):
    """A frozen encoder."""

    @property
    def config(self) -> TokenizerConfig | LentConfig: ...

    @property
    def downsample(self) -> tuple[int, int]:
        """Pixels that a feature stands for along each axis."""
        ...

    @property
    def numerics(self) -> str:
        """Numerics mode that the features depend on."""
        ...

    def __call__(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 [frames, height, width, 3] -> features [frames, rows, columns, d]."""
        ...

    def tensors(self) -> dict[str, NDArray[Any]]:
        """The weights, where they are stored."""
        ...


class PatchFeatures:
    """The principal components of patches, whole numbers, as a `patch` tokenizer has them."""

    def __init__(self, tokenizer: PatchTokenizer) -> None:
        self.tokenizer = tokenizer
        self.downsample, self.numerics = tokenizer.patch, tokenizer.spec.numerics
        self.config = TokenizerConfig(tokenizer=tokenizer.spec, dim=len(tokenizer.components))

    def __call__(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        height, width = self.downsample
        frames = padded(frames, self.downsample, "edge")
        rows, columns = frames.shape[1] // height, frames.shape[2] // width
        patches = frames.reshape(len(frames), rows, height, columns, width, 3).swapaxes(2, 3)
        flat = patches.reshape(len(frames), rows, columns, -1).astype(np.float64) - 128
        found: NDArray[np.float32] = np.floor(flat @ (self.tokenizer.components.T / SCALE) + 0.5).astype(np.float32)
        return found

    def tensors(self) -> dict[str, NDArray[Any]]:
        return self.tokenizer.tensors()


class NetworkFeatures:
    """The latent vectors of a `conv` tokenizer before they are quantized."""

    def __init__(self, tokenizer: ConvVQ) -> None:
        if isinstance(tokenizer.network.encoder, FrozenEncoder):
            raise SpecError("the encoder of this tokenizer is not part of it; give clip-codebook that --encoder itself")
        self.tokenizer, self._encoder = tokenizer, tokenizer.network.encoder
        self.downsample = (tokenizer.config.network.downsample,) * 2
        self.numerics = "fp32"
        self.config = TokenizerConfig(tokenizer=tokenizer.spec, dim=tokenizer.config.network.dim)

    def __call__(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        convert = to_signed if self.tokenizer.config.network.pixels == "signed" else to_unit
        frames = padded(frames, self.downsample)
        return _one_by_one(frames, lambda pixels: self._encoder(convert(pixels)))

    def tensors(self) -> dict[str, NDArray[Any]]:
        return self.tokenizer.tensors()


class LentFeatures:
    """The features of an encoder that takes images [B, 3, height, width] in [0, 1]; None until it is lent."""

    numerics = "fp32"

    def __init__(self, config: LentConfig, encoder: Borrowed | None = None) -> None:
        self.config, self.encoder = config, encoder
        self.downsample = (config.patch, config.patch)

    @classmethod
    def of(cls, name: str, encoder: nn.Module) -> LentFeatures:
        """Raises SpecError where it does not answer with a grid of features [1, d, rows, columns]."""
        lent = Borrowed(encoder)
        found = lent(torch.zeros(1, 3, PROBE, PROBE))
        shape = tuple(getattr(found, "shape", ()))
        if len(shape) != 4 or shape[0] != 1 or shape[2] != shape[3] or not shape[2] or PROBE % shape[2]:
            raise SpecError(
                f"encoder {name!r} answered {list(shape)} for images [1, 3, {PROBE}, {PROBE}]; expected features [1, "
                "channels, rows, columns] of equal patches"
            )
        config = LentConfig(name=name, sha256=encoder_sha256(encoder), patch=PROBE // shape[2], dim=shape[1])
        return cls(config, lent)

    def lend(self, name: str, encoder: nn.Module) -> LentFeatures:
        """With the encoder. Raises FormatError where it has other weights than the one the features are of."""
        found = encoder_sha256(encoder)
        if found != self.config.sha256:
            raise FormatError(
                f"encoder {name!r} has weights of SHA-256 {found[:16]}…; the clips were encoded with "
                f"{self.config.name!r}, {self.config.sha256[:16]}…"
            )
        return LentFeatures(self.config, Borrowed(encoder))

    def __call__(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        if self.encoder is None:
            raise SpecError(
                f"encoding needs the encoder {self.config.name!r} (SHA-256 of its weights {self.config.sha256[:16]}…), "
                "which is not part of the tokenizer; give it with --encoder"
            )
        encoder = self.encoder
        return _one_by_one(padded(frames, self.downsample), lambda pixels: encoder(to_unit(pixels)))

    def tensors(self) -> dict[str, NDArray[Any]]:
        return {}


def features_of(tokenizer: Tokenizer) -> PatchFeatures | NetworkFeatures:
    """Those of a tokenizer of images. Raises SpecError where it has none that can be clustered."""
    if isinstance(tokenizer, PatchTokenizer):
        return PatchFeatures(tokenizer)
    if isinstance(tokenizer, ConvVQ):
        return NetworkFeatures(tokenizer)
    raise SpecError(f"a {tokenizer.spec.kind!r} tokenizer has no features to cluster; use a patch or conv tokenizer")


def stored_features(config: TokenizerConfig | LentConfig, tensors: dict[str, NDArray[Any]]) -> Features:
    """Made again from what is stored. Raises FormatError where the two do not fit."""
    if isinstance(config, LentConfig):
        if tensors:
            raise FormatError("weights are stored of an encoder that is lent")
        return LentFeatures(config)
    made = features_of(tokenizer_class(config.tokenizer.kind).from_tensors(config.tokenizer, tensors))
    if made.config.dim != config.dim:
        raise FormatError(f"its features have {made.config.dim} channels, not {config.dim}")
    return made


@torch.inference_mode()
def _one_by_one(frames: NDArray[np.uint8], answer: Any) -> NDArray[np.float32]:
    if frames.shape[1] * frames.shape[2] > MAX_PIXELS:
        raise InputError(f"frames of {frames.shape[1]}x{frames.shape[2]} pixels; give smaller ones (--size)")
    found = []
    for frame in frames:
        pixels = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)[None]
        found.append(answer(pixels)[0].permute(1, 2, 0).float().numpy())
    return np.stack(found)


def padded(
    frames: NDArray[np.uint8], patch: tuple[int, int], mode: Literal["edge", "reflect"] = "reflect"
) -> NDArray[np.uint8]:
    """Frames [B, height, width, 3] with pixels added below and to the right up to whole patches."""
    below, right = -frames.shape[1] % patch[0], -frames.shape[2] % patch[1]
    return np.pad(frames, ((0, 0), (0, below), (0, right), (0, 0)), mode=mode) if below or right else frames
