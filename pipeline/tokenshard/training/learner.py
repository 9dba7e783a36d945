"""What learns: network and quantizer as one module, whose forward is that of a training step, and its average."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tokenshard.quantizers.base import Quantized, Quantizer
from tokenshard.tokenizers.conv_network import AutoEncoder


class Reconstructed(NamedTuple):
    """What a step makes of its images."""

    images: Tensor
    """float32 [B, 3, H, W]; of clips [B, 3, T, H, W]"""
    quantizer_loss: Tensor
    """float32 scalar"""
    ids: Tensor
    """int64 [B, levels, *grid]"""


class Learner(nn.Module):
    """Float images or clips in, reconstructions out. ``precision`` bf16 computes the network under autocast."""

    def __init__(self, network: AutoEncoder, quantizer: Quantizer, precision: str) -> None:
        super().__init__()
        self.network, self.quantizer, self.precision = network, quantizer, precision

    def forward(self, images: Tensor, frozen: bool) -> Reconstructed:
        """``frozen``: encoder and quantizer are as they are; only the decoder gets gradients."""
        device = images.device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.precision == "bf16"):
            with torch.set_grad_enabled(not frozen):
                z = self.network.encoder(laid_out(images))
                quantized: Quantized = self.quantizer(z.float())
            # a compiled decoder would be compiled again for an input without gradient
            made = self.network.decoder(laid_out(quantized.vectors).requires_grad_())
        return Reconstructed(made.float(), quantized.loss, quantized.ids)

    def freeze(self) -> None:
        """From now on only the decoder learns."""
        self.network.encoder.requires_grad_(False)
        self.quantizer.requires_grad_(False)


class Average:
    """A network whose weights follow those of another, faster in the beginning."""

    def __init__(self, network: AutoEncoder, decay: float) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False)
        self._decay = decay

    @torch.no_grad()
    def follow(self, network: AutoEncoder, step: int, decoder_only: bool) -> None:
        """One step closer to it, after ``step`` steps before."""
        kept = min(self._decay, (step + 1) / (step + 10))
        mine, own = (self.network.decoder, network.decoder) if decoder_only else (self.network, network)
        torch._foreach_lerp_(list(mine.parameters()), list(own.parameters()), 1 - kept)


def laid_out(x: Tensor) -> Tensor:
    """Images in the layout of memory that convolutions of the device are fast with; clips as they are."""
    return x if x.device.type == "cpu" or x.ndim > 4 else x.contiguous(memory_format=torch.channels_last)


def as_images(x: Tensor) -> Tensor:
    """Images [B, 3, H, W] as they are; the frames of clips [B, 3, T, H, W] as images."""
    return x if x.ndim == 4 else x.transpose(1, 2).flatten(0, 1)
