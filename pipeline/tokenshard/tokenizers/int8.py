"""Convolutions in eight bits: the `int8` numerics mode of conv tokenizers, and what a report on single layers needs.

Weights are rounded once, with one scale an output channel (absmax / 127); inputs at each call, to 256 steps from the
least to the largest value of an image (Nagel et al. 2021, arXiv:2106.08295). Sums are integers, the rest of the network
stays float32. On x86 CPUs oneDNN computes it, half as fast again as float32; elsewhere the same integers go through a
float convolution.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

LARGEST = 127
_TINY = torch.finfo(torch.float32).tiny
_FAST = hasattr(torch.ops.onednn, "qconv2d_pointwise") and "onednn" in torch.backends.quantized.supported_engines


class Int8Convolution(nn.Module):
    """A convolution with weights and inputs in eight bits; float32 [B, C, H, W] goes in and comes out."""

    weight: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        weight = convolution.weight.detach().float()
        scale = weight.abs().amax((1, 2, 3)).clamp_min(_TINY) / LARGEST
        bias = convolution.bias if convolution.bias is not None else torch.zeros_like(scale)
        self.register_buffer("weight", (weight / scale[:, None, None, None]).round())
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias.detach().clone())
        self._stride, self._padding = list(convolution.stride), [int(side) for side in convolution.padding]
        self._packed: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if _FAST and x.device.type == "cpu":
            return torch.cat([self._integers(image) for image in torch.split(x, 1)])
        step, zero = _steps(x)
        inputs = _rounded(x, 1 / step, zero) - zero
        sums = functional.conv2d(inputs, self.weight, None, self._stride, self._padding)
        return sums * (self.scale[:, None, None] * step) + self.bias[:, None, None]

    def _integers(self, x: Tensor) -> Tensor:
        """One image [1, C, H, W], with integer products."""
        if self._packed is None:
            self._packed = torch.ops.onednn.qconv_prepack(
                self.weight.to(torch.int8), self.scale, 1.0, 0, self._stride, self._padding, [1, 1], 1, None
            )
        step, zero = (value.item() for value in _steps(x))
        rounded = _rounded(x, 1 / step, zero).to(torch.uint8)
        zeros = torch.zeros(len(self.scale), dtype=torch.int8)
        made = torch.ops.onednn.qconv2d_pointwise(
            rounded, step, int(zero), self._packed, self.scale, zeros, self.bias, self._stride, self._padding,
            [1, 1], 1, 1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        return cast(Tensor, made)


def _steps(x: Tensor) -> tuple[Tensor, Tensor]:
    """The size of a step of each image of [B, C, H, W], and the number of steps below zero, float32 [B, 1, 1, 1]."""
    low, high = x.amin((1, 2, 3), keepdim=True).clamp_max(0), x.amax((1, 2, 3), keepdim=True).clamp_min(0)
    step = ((high - low) / 255).clamp_min(_TINY)
    return step, (-low / step).round()


def _rounded(x: Tensor, steps_in_one: Tensor | float, zero: Tensor | float) -> Tensor:
    """Numbers of steps from the least value, 0 to 255; as few passes over memory as may be."""
    return (x * steps_in_one).add_(zero + 0.5).floor_().clamp_(0, 255)


def convolutions(network: nn.Module) -> dict[str, nn.Conv2d]:
    """The convolutions of a network by name, in the order in which they are computed."""
    return {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}


def in_int8(network: nn.Module, names: Collection[str] | None = None) -> nn.Module:
    """A copy of a network with these convolutions in eight bits; by default all but the first and the last, which cost
    little and matter most."""
    made = copy.deepcopy(network)
    for name in list(convolutions(network))[1:-1] if names is None else names:
        parent, _, child = name.rpartition(".")
        holder = made.get_submodule(parent)
        setattr(holder, child, Int8Convolution(cast(nn.Conv2d, getattr(holder, child))))
    return made
