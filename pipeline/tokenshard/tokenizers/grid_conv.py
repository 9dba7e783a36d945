"""The `grid-conv` tokenizer: the means and gains of `grid`, and shapes by a trained network and a quantizer.

Trained by `tokenshard tokenizer train` on grids. Its arithmetic is float32: ids are the same for any cut of a grid on
one kind of machine, and cells are not promised bit for bit on another, so no cells are coded together with them.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from tokenshard.errors import FormatError, SpecError
from tokenshard.quantizers.base import Quantizer
from tokenshard.tokenizers import lapped
from tokenshard.tokenizers.conv_network import AutoEncoder
from tokenshard.tokenizers.grid_codes import Codes, LatticeTokenizer, shape_sizes
from tokenshard.tokenizers.grid_network import (
    REACH,
    GridNetworkConfig,
    frame_of,
    planes_of,
    spread,
    vectors_to_depth,
)
from tokenshard.tokenizers.grid_split import GAINS, rest_of
from tokenshard.tokenizers.networks import Network
from tokenshard.tokenizers.trained import ConvConfig, Numerics, TrainedTokenizer


class GridVQ(TrainedTokenizer, LatticeTokenizer):
    """A trained tokenizer of grids. A patch has as many shapes as its gain has octaves, as those of `grid`."""

    kind = "grid-conv"
    modality = "grid"
    encode = LatticeTokenizer.encode
    decode = LatticeTokenizer.decode

    def __init__(
        self,
        config: ConvConfig,
        network: AutoEncoder,
        quantizer: Quantizer,
        numerics: Numerics = "fp32",
        device: str | torch.device = "cpu",
        compiled: bool = False,
        tables: tuple[str, ...] = (),
    ) -> None:
        super().__init__(config, network, quantizer, numerics, device, compiled, tables)
        if numerics == "int8":
            raise SpecError("a grid-conv tokenizer has no int8 mode; use fp32 or bf16")
        described = self._network
        assert described.frame is not None, "checked by `cells`"
        side = described.downsample
        self.patch, self.ring = (side, side), described.ring
        self.step, self.floor, self.means = described.frame.step, described.frame.floor, described.frame.means
        self.codebooks_of_shapes = len(self.quantizer.levels)
        self.surface = np.rint(self.network.decoder.get_buffer("surface").cpu().numpy()).astype(np.int32)

    @classmethod
    def cells(cls, network: Network) -> tuple[int, ...]:
        if not isinstance(network, GridNetworkConfig):
            raise FormatError("config.network: not a network of grids, as tokenizers of kind 'grid-conv' have")
        if network.frame is None:
            raise FormatError("config.network: has no frame, so it was never trained")
        return network.downsample, network.downsample

    @classmethod
    def quantized(cls, network: Network, levels: tuple[int, ...]) -> tuple[int, ...]:
        found = shape_sizes(levels)
        frame = cast(GridNetworkConfig, network).frame
        if found is None or frame is None or found[0] != frame.means:
            raise FormatError(f"levels {list(levels)} are not those of a grid-conv tokenizer")
        return found[1]

    @property
    def levels(self) -> tuple[int, ...]:
        return self.means, GAINS, *(size + 1 for size in self.quantizer.levels)

    @property
    def _network(self) -> GridNetworkConfig:
        return cast(GridNetworkConfig, self.config.network)

    @cached_property
    def _seen(self) -> tuple[int, int]:
        return self._network.seen

    def codebooks(self) -> tuple[NDArray[np.float32], ...]:
        """None are known: raises :class:`SpecError`."""
        raise SpecError("ids of a grid-conv tokenizer are means and gains too, which stand for no vectors")

    @torch.inference_mode()
    def codes(self, field: NDArray[Any]) -> Codes:
        around, side = self._seen[0], self.patch[0]
        rows, columns = self.grid(*field.shape)
        sizes = zip((rows, columns), field.shape, strict=True)
        edge = [(around * side, (count + around) * side - size) for count, size in sizes]
        found = rest_of(np.pad(field, edge, constant_values=np.nan), self.patch, self.surface, self.floor)
        planes = planes_of(found, self.patch, self.floor)
        with self._precision():
            z = self._encoder(torch.from_numpy(planes.cells)[None].to(self.device))
        ids = self.quantizer.encode(z.float())[0].cpu().numpy()
        place = (slice(around, around + rows), slice(around, around + columns))
        level = np.arange(len(ids))[:, None, None]
        shapes = np.where(found.gains > level, ids + 1, 0)
        return Codes(found.there, found.means, found.gains, shapes).part(place)

    @torch.inference_mode()
    def field(self, codes: Codes) -> NDArray[np.float64]:
        around, side = self._seen[1], self.patch[0]
        rows, columns = codes.there.shape
        whole = codes.surrounded(around)
        there, means, gains, shapes = whole.there, whole.means, whole.gains, whole.shapes
        ids, depth = (torch.from_numpy(plane)[None].to(self.device) for plane in (shapes - 1, (shapes > 0).sum(0)))
        vectors = vectors_to_depth(self.quantizer, ids.clamp_min(0), depth)
        frame = torch.from_numpy(frame_of(there, means, gains, self.floor))[None].to(self.device)
        with self._precision():
            drawn = self._decoder(torch.cat([vectors, frame], 1))
        bend = drawn[0, 0].float().clamp(-REACH, REACH).cpu().numpy().astype(np.float64)
        surface = lapped.joined(lapped.surfaces(means, there, self.surface), self.patch)
        cells = surface + np.rint(bend * spread(gains, self.patch, self.floor))
        cells[~np.repeat(np.repeat(there, side, 0), side, 1)] = np.nan
        found: NDArray[np.float64] = cells / lapped.UNIT
        return found[around * side : (around + rows) * side, around * side : (around + columns) * side]
