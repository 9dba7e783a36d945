"""The `conv` tokenizer: a convolutional encoder, a quantizer, and a convolutional decoder (VQGAN family), trained by
`tokenshard tokenizer train`.

Images of any size: edges are mirrored up to whole tokens, and cut off again by ``decode``. On the CPU images go through
the network one by one in float32, so that ids depend neither on the batch nor on the number of threads.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tokenshard.errors import FormatError, InputError
from tokenshard.tokenizers.causal_network import CausalConfig
from tokenshard.tokenizers.conv_network import to_signed, to_uint8, to_unit
from tokenshard.tokenizers.grid_network import GridNetworkConfig
from tokenshard.tokenizers.networks import Network
from tokenshard.tokenizers.patch_network import PatchLocalConfig
from tokenshard.tokenizers.tiling import Span, reach, spans
from tokenshard.tokenizers.trained import (
    MAX_WHOLE_PIXELS,
    TrainedTokenizer,
    pad_edges,
)

DECODE_PIXELS = 1 << 21
"""Larger images go through the network in tiles."""
TILE = 1024
"""Side of a tile in pixels, without its halo."""
CANVAS = 32
"""Patches along each side of the square in which a patch-local encoder gets them: always the same shape, so that the
arithmetic is always the same."""


class ConvVQ(TrainedTokenizer):
    """A trained convolutional tokenizer of images."""

    kind = "conv"
    modality = "image"

    @cached_property
    def _halo_in(self) -> int | None:
        """Tokens around a tile that its ids depend on; None: on all of the image."""
        seen = reach(self.network.encoder)
        return None if seen is None else -(-seen // self.config.network.downsample)

    @cached_property
    def _halo_out(self) -> int | None:
        """Tokens around a tile that its pixels depend on; None: on all of the image."""
        return reach(self.network.decoder)

    @classmethod
    def cells(cls, network: Network) -> tuple[int, ...]:
        if isinstance(network, CausalConfig):
            raise FormatError("config.network: a causal network is one of clips, of a tokenizer of kind 'video'")
        if isinstance(network, GridNetworkConfig):
            raise FormatError("config.network: is one of grids, of a tokenizer of kind 'grid-conv'")
        return network.downsample, network.downsample

    def with_part(self, part: Literal["encoder", "decoder"], module: nn.Module) -> ConvVQ:
        """The same tokenizer with another module in the place of its encoder or decoder, e.g. to study a layer."""
        made = copy.copy(self)
        if part == "encoder":
            made._encoder = module
        else:
            made._decoder = module
        return made

    def encode(self, images: NDArray[np.uint8]) -> NDArray[Any]:
        """uint8 [B, height, width, 3] -> uint16 (int32 above 65,536 codes) [B, levels, rows, columns].

        Edges are mirrored below and to the right up to whole tokens. Large images are encoded in tiles, with as much
        around each as the network sees. Raises :class:`InputError` on other arrays, and on images that are too large
        for a network that sees all of them at once.
        """
        if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8 or 0 in images.shape[1:]:
            raise InputError(
                f"expected images uint8 [batch, height, width, 3], not {images.dtype} {list(images.shape)}"
            )
        side = self.config.network.downsample
        shape = (len(images), len(self.quantizer.levels), *self.grid(*images.shape[1:3]))
        ids = np.empty(shape, self._id_dtype())
        if isinstance(self.config.network, PatchLocalConfig):
            self._encode_patches(pad_edges(images, side), ids)
            return ids
        step = self._at_once(images.shape[1] * images.shape[2])
        for start in range(0, len(images), step):
            batch = pad_edges(images[start : start + step], side)
            for down, right in self._windows(ids.shape[2], ids.shape[3], self._halo_in):
                pixels = self._to_device(batch[:, down.read(side), right.read(side)])
                found = self.encode_tensor(pixels)[..., down.inside(1), right.inside(1)]
                ids[start : start + step, :, down.kept(1), right.kept(1)] = found.cpu().numpy()
        return ids

    def _encode_patches(self, images: NDArray[np.uint8], ids: NDArray[Any]) -> None:
        """Fill ids [B, levels, rows, columns] of images of whole patches, a canvas of patches at a time."""
        side = self.config.network.downsample
        batch, levels, rows, columns = ids.shape
        patches = images.reshape(batch, rows, side, columns, side, 3)
        count = CANVAS * CANVAS * (1 if self.device.type == "cpu" else 64)
        for start in range(0, batch * rows * columns, count):
            places = np.arange(start, min(start + count, batch * rows * columns))
            image, row, column = np.unravel_index(places, (batch, rows, columns))
            canvas = np.zeros((count, side, side, 3), np.uint8)
            canvas[: len(places)] = patches[image, row, :, column]
            canvas = canvas.reshape(-1, CANVAS, CANVAS, side, side, 3).swapaxes(2, 3)
            found = self.encode_tensor(self._to_device(canvas.reshape(-1, CANVAS * side, CANVAS * side, 3)))
            flat = found.movedim(1, -1).reshape(-1, levels)[: len(places)]
            ids[image, :, row, column] = flat.cpu().numpy()

    def _windows(self, rows: int, columns: int, halo: int | None) -> Iterator[tuple[Span, Span]]:
        """Tiles of a grid with that halo in tokens; one where the image is small, or (halo None) has to be whole."""
        side = self.config.network.downsample
        pixels = rows * columns * side**2
        if halo is None and pixels > MAX_WHOLE_PIXELS:
            raise InputError(
                f"an image of {rows * side}x{columns * side} pixels is too large for this tokenizer: its network has "
                f"normalization or attention over the whole image, so it cannot be tiled, and takes at most "
                f"{MAX_WHOLE_PIXELS:,} pixels at once; give smaller images (--size) or another tokenizer"
            )
        tile = max(1, TILE // side) if halo is not None and pixels > DECODE_PIXELS else max(rows, columns)
        for down in spans(rows, tile, halo or 0):
            for right in spans(columns, tile, halo or 0):
                yield down, right

    @torch.inference_mode()
    def encode_tensor(self, pixels: Tensor) -> Tensor:
        """uint8 [B, 3, height, width] on the device, sizes multiples of f -> int64 ids [B, levels, rows, columns]."""
        with self._precision():
            z = self._encoder(to_signed(pixels) if self.config.network.pixels == "signed" else to_unit(pixels))
        return self.quantizer.encode(z.float())

    def decode(self, codes: NDArray[Any], size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
        """Ids [B, levels, rows, columns] -> uint8 [B, height, width, 3], cropped to ``size`` (height, width).

        Of a residual quantizer the first levels alone will do.
        Raises :class:`FormatError` on ids outside a codebook or a size the grid cannot have come from.
        """
        self._check(codes, size)
        side = self.config.network.downsample
        height, width = size or (codes.shape[2] * side, codes.shape[3] * side)
        images = np.empty((len(codes), height, width, 3), np.uint8)
        step = self._at_once(height * width)
        for start in range(0, len(codes), step):
            for down, right in self._windows(codes.shape[2], codes.shape[3], self._halo_out):
                window = codes[start : start + step, :, down.read(1), right.read(1)]
                pixels = self.decode_tensor(torch.from_numpy(window.astype(np.int64)).to(self.device))
                pixels = pixels[:, :, down.inside(side), right.inside(side)]
                place = images[start : start + step, down.kept(side), right.kept(side)]
                place[:] = pixels[:, :, : place.shape[1], : place.shape[2]].permute(0, 2, 3, 1).cpu().numpy()
        return images

    @torch.inference_mode()
    def decode_tensor(self, ids: Tensor) -> Tensor:
        """int64 ids [B, levels, rows, columns] on the device -> uint8 [B, 3, rows * f, columns * f]."""
        vectors = self.quantizer.vectors(ids)
        with self._precision():
            pixels = self._decoder(vectors)
        return to_uint8(pixels, self.config.network.pixels)
