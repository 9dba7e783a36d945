"""The `video` tokenizer: a causal network of clips and a quantizer, trained by `tokenshard tokenizer train`.

The first frame is one step of the token grid, each n frames after it are one more. Clips go through the network group
by group, with what its blocks keep of the group before, so that on a CPU the arithmetic of a group is the same whatever
follows: the ids of the beginning of a clip are the beginning of its ids, bit for bit, and memory does not grow with its
length.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tokenshard.errors import FormatError, InputError
from tokenshard.tokenizers.causal_network import CausalConfig, CausalStack, group_count
from tokenshard.tokenizers.conv_network import to_signed, to_uint8
from tokenshard.tokenizers.networks import Network
from tokenshard.tokenizers.trained import MAX_WHOLE_PIXELS, TrainedTokenizer, pad_edges


class VideoVQ(TrainedTokenizer):
    """A trained tokenizer of clips."""

    kind = "video"
    modality = "video"

    @classmethod
    def cells(cls, network: Network) -> tuple[int, ...]:
        if not isinstance(network, CausalConfig):
            raise FormatError("config.network: not a causal network, as tokenizers of kind 'video' have")
        return network.frames, network.downsample, network.downsample

    @property
    def frames(self) -> int:
        """Frames of a group."""
        return cast(CausalConfig, self.config.network).frames

    def encode(self, images: NDArray[np.uint8]) -> NDArray[Any]:
        """Clips uint8 [B, frames, height, width, 3] -> uint16 (int32) [B, levels, 1 + ceil((frames - 1) / n), …].

        A last group that is not complete gets the last frame once more; edges are mirrored up to whole tokens. Raises
        :class:`InputError` on other arrays, and on frames that are too large.
        """
        if images.ndim != 5 or images.shape[4] != 3 or images.dtype != np.uint8 or 0 in images.shape[1:]:
            raise InputError(
                f"expected clips uint8 [batch, frames, height, width, 3], not {images.dtype} {list(images.shape)}"
            )
        count, rows, columns = group_count(images.shape[1], self.frames), *self.grid(*images.shape[2:4])
        self._check_size(rows, columns)
        ids = np.empty((len(images), len(self.quantizer.levels), count, rows, columns), self._id_dtype())
        step = self._at_once(self.frames * images.shape[2] * images.shape[3])
        for start in range(0, len(images), step):
            past = None
            for group in range(count):
                pixels = self._to_device(self._group(images[start : start + step], group))
                found, past = self._encode_group(pixels.reshape(-1, 3 * self.frames, *pixels.shape[2:]), past)
                ids[start : start + step, :, group] = found.cpu().numpy()
        return ids

    def _group(self, clips: NDArray[np.uint8], group: int) -> NDArray[np.uint8]:
        """Frames of a group of each clip, padded to whole tokens: [B * n, height, width, 3]."""
        places = np.arange(1 - self.frames, 1) + group * self.frames
        frames = clips[:, np.clip(places, 0, clips.shape[1] - 1)]
        return pad_edges(frames.reshape(-1, *clips.shape[2:]), self.config.network.downsample)

    @torch.inference_mode()
    def _encode_group(self, pixels: Tensor, past: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        """uint8 [B, n * 3, height, width] -> int64 ids [B, levels, rows, columns]."""
        with self._precision():
            z, past = self._encoder(to_signed(pixels), past)
        return self.quantizer.encode(z.float()), past

    def decode(self, codes: NDArray[Any], size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
        """Ids [B, levels, 1 + k, rows, columns] -> uint8 [B, 1 + n * k, height, width, 3], cropped to ``size``.

        Frames that completed the last group are among them. Of a residual quantizer the first levels alone will do.
        Raises :class:`FormatError` on ids outside a codebook or a size the grid cannot have come from.
        """
        self._check(codes, size)
        if not codes.shape[2]:
            raise FormatError("a clip of ids has at least one step of time")
        self._check_size(*codes.shape[3:])
        side, n = self.config.network.downsample, self.frames
        height, width = size or (codes.shape[3] * side, codes.shape[4] * side)
        clips = np.empty((len(codes), 1 + n * (codes.shape[2] - 1), height, width, 3), np.uint8)
        step = self._at_once(n * height * width)
        for start in range(0, len(codes), step):
            past = None
            for group in range(codes.shape[2]):
                ids = torch.from_numpy(codes[start : start + step, :, group].astype(np.int64)).to(self.device)
                pixels, past = self._decode_group(ids, past)
                frames = pixels.reshape(-1, n, 3, *pixels.shape[2:]).movedim(2, -1)[:, :, :height, :width].cpu().numpy()
                first = 1 + n * (group - 1)
                clips[start : start + step, max(0, first) : first + n] = frames[:, max(0, -first) :]
        return clips

    @torch.inference_mode()
    def _decode_group(self, ids: Tensor, past: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        """int64 ids [B, levels, rows, columns] -> uint8 [B, n * 3, rows * f, columns * f]."""
        vectors = self.quantizer.vectors(ids)
        with self._precision():
            pixels, past = self._decoder(vectors, past)
        return to_uint8(pixels), past

    def _called(self, half: nn.Module) -> Callable[..., Any]:
        return cast(CausalStack, half).step

    def _check_size(self, rows: int, columns: int) -> None:
        side = self.config.network.downsample
        if rows * columns * side**2 > MAX_WHOLE_PIXELS:
            raise InputError(
                f"frames of {rows * side}x{columns * side} pixels are too large for a video tokenizer, which takes at "
                f"most {MAX_WHOLE_PIXELS:,} pixels a frame; give smaller ones (--size)"
            )
