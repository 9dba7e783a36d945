"""A network of grids: it sees what the means of patches leave of a field, and draws that from vectors and means.

A field is split as by the `grid` tokenizer: means of patches, the surface that they suggest, and the gain of what is
left (see :mod:`.grid_split`). What is left, divided by the gain of its patch, goes through a convolutional encoder; the
decoder is also given the means around a patch, so it starts from the surface and learns what that lacks. Both see a
bounded number of cells, so tiles that overlap agree about them.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor, nn

from tokenshard.quantizers.base import Quantizer
from tokenshard.spec.base import Document
from tokenshard.spec.grids import HALO
from tokenshard.tokenizers import lapped
from tokenshard.tokenizers.conv_network import StackConfig, StacksConfig, convolution, levels_down, levels_up
from tokenshard.tokenizers.grid_codes import MAX_MEANS
from tokenshard.tokenizers.grid_fit import MAX_FLOOR
from tokenshard.tokenizers.grid_split import Rest
from tokenshard.tokenizers.tiling import reach

PLANES = 3
"""Of cells that the encoder sees: what is left in gains, which cells are valid, the gain of the patch."""
FRAME, GAIN = 11, 9
"""Of patches that the decoder sees beside vectors: the means around in gains, which are there, gain / 4 (at the place
GAIN), used or not."""
LARGEST_FRAME = 16.0
MAX_PATCH = 16
REACH = 64.0
"""What the decoder draws is clipped to so many gains."""


class Frame(Document):
    """What cells are measured in. Found from the fields of the training where it is not said."""

    step: float = Field(gt=0, allow_inf_nan=False, description="of means, in the unit of the grid")
    floor: int = Field(ge=1, le=MAX_FLOOR, description="least gain of a patch that has a shape, in 1 / 64 steps")
    means: int = Field(ge=4, le=MAX_MEANS, description="ids of means")


class GridNetworkConfig(StacksConfig):
    """Encoder and decoder of fields."""

    architecture: Literal["grid"]
    frame: Frame | None = Field(default=None, description="of a trained one")

    @model_validator(mode="after")
    def _fits_a_halo(self) -> Self:
        if not 2 <= self.downsample <= MAX_PATCH:
            raise ValueError(f"patches of grids have 2 to {MAX_PATCH} cells a side, not {self.downsample}")
        if self.encoder.attention or self.decoder.attention:
            raise ValueError("a network of grids has no attention: tiles could not be decoded apart")
        if self.ring * self.downsample > HALO:
            raise ValueError(
                f"the network sees {self.ring * self.downsample} cells around a patch, more than the {HALO} that tiles "
                "come with; take fewer blocks"
            )
        return self

    @property
    def seen(self) -> tuple[int, int]:
        """Patches around its own that an id depends on through the encoder, and cells through the decoder."""
        with torch.device("meta"):
            encoder, decoder = self.modules()
        cells, tokens = reach(encoder), reach(decoder)
        assert cells is not None, "a chain of convolutions"
        assert tokens is not None, "a chain of convolutions"
        return -(-cells // self.downsample), tokens

    @property
    def ring(self) -> int:
        """Patches around a tile: those whose vectors count, what their ids see, and means around the last of these."""
        return sum(self.seen) + 1

    def modules(self) -> tuple[nn.Module, nn.Module]:
        """Encoder and decoder, with random weights."""
        return GridEncoder(self.encoder, self.dim), GridDecoder(self.decoder, self.dim)


class GridEncoder(nn.Sequential):
    """float [B, PLANES, height, width], sizes multiples of f -> latents [B, dim, height / f, width / f]."""

    def __init__(self, config: StackConfig, dim: int) -> None:
        layers = levels_down(config, PLANES, "none")
        super().__init__(*layers, nn.SiLU(), convolution(config.channels[-1], dim))


class GridDecoder(nn.Sequential):
    """Quantized latents and frame [B, dim + FRAME, rows, columns] -> float [B, 1, rows * f, columns * f] in gains.

    Starts as zero: the surface of the means. ``surface`` is that of :mod:`.lapped`, which is fitted, not trained.
    """

    surface: Tensor

    def __init__(self, config: StackConfig, dim: int) -> None:
        super().__init__(convolution(dim + FRAME, config.channels[-1]), *levels_up(config, 1, "none"))
        last = next(layer for layer in reversed(list(self)) if isinstance(layer, nn.Conv2d))
        nn.init.zeros_(last.weight)
        assert last.bias is not None, "as `convolution` makes it"
        nn.init.zeros_(last.bias)
        self.register_buffer("surface", torch.zeros(8, config.downsample**2))


def vectors_to_depth(quantizer: Quantizer, ids: Tensor, depth: Tensor) -> Tensor:
    """float32 [B, dim, rows, columns] of the first levels of ids [B, L, rows, columns], so many as ``depth`` says."""
    levels = ids.shape[1]
    found = torch.zeros(len(ids), quantizer.dim, *ids.shape[2:], device=ids.device)
    for count in range(1, levels + 1):
        chosen = (depth == count) if count < levels else (depth >= levels)
        found = torch.where(chosen[:, None], quantizer.vectors(ids[:, :count]), found)
    return found


class Planes(NamedTuple):
    """A field as the network is given it; all float32 but ``scale`` and ``rest``."""

    cells: NDArray[np.float32]
    """[PLANES, h, w]"""
    frame: NDArray[np.float32]
    """[FRAME, rows, columns]"""
    scale: NDArray[np.float64]
    """[h, w]: what the decoder draws in, 1 / 64 steps"""
    rest: NDArray[np.float64]
    """[h, w] in 1 / 64 steps; 0 where there is no value"""


def planes_of(found: Rest, patch: tuple[int, int], floor: int) -> Planes:
    """The planes of a field that was split."""
    own = least_scales(found.gains, floor)[..., None]
    rest = lapped.joined(found.rest, patch)
    cells = [found.rest / own, found.valid, np.broadcast_to(found.gains[..., None] / 4, found.rest.shape)]
    return Planes(
        np.stack([lapped.joined(plane.astype(np.float64), patch) for plane in cells]).astype(np.float32),
        frame_of(found.there, found.means, found.gains, floor),
        spread(found.gains, patch, floor),
        rest,
    )


def least_scales(gains: NDArray[np.int64], floor: int) -> NDArray[np.float64]:
    """The gain of each id in units; half the floor for id 0."""
    found: NDArray[np.float64] = np.ldexp(float(floor), gains - 1)
    return found


def frame_of(
    there: NDArray[np.bool_], means: NDArray[np.float64], gains: NDArray[np.int64], floor: int
) -> NDArray[np.float32]:
    """What the decoder sees of patches beside their vectors: float32 [FRAME, rows, columns]."""
    around = lapped.differences(means, there) * lapped.UNIT / least_scales(gains, floor)[..., None]
    around = np.clip(around, -LARGEST_FRAME, LARGEST_FRAME) / 4
    return np.stack([*np.moveaxis(around, 2, 0), there, gains / 4, gains > 0]).astype(np.float32)


def spread(gains: NDArray[np.int64], patch: tuple[int, int], floor: int) -> NDArray[np.float64]:
    """Scales of cells [rows h, columns w] in units: gains in octaves, linear between the middles of patches."""
    octaves: NDArray[np.float64] = np.pad(gains.astype(np.float64), 1, mode="edge")
    for axis, side in enumerate(patch):
        place = (np.arange((octaves.shape[axis] - 2) * side) + 0.5) / side + 0.5
        low = np.floor(place).astype(np.int64)
        share = np.expand_dims(place - low, 1 - axis)
        octaves = octaves.take(low, axis) * (1 - share) + octaves.take(low + 1, axis) * share
    scales: NDArray[np.float64] = floor * np.exp2(octaves - 1)
    return scales
