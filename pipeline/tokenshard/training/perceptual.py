"""LPIPS, the distance of two images in the features of VGG16 or AlexNet, with weights from local files.

Zhang et al. 2018 (arXiv:1801.03924): features of five layers, scaled to length 1 at every place; squared differences
weighted by a learned number a channel, averaged over places and added up over layers. The value is LPIPS only with the
weights of its authors (version 0.1); with others it is a perceptual distance of the same form.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from tokenshard.errors import FormatError
from tokenshard.tokenizers.checkpoints.tensors import Weights, read_weights

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MAX_BYTES = 1 << 30


class Stage(NamedTuple):
    """Convolutions, each with a ReLU; the last features are compared."""

    places: tuple[int, ...]
    """their numbers in torchvision's `features`"""
    channels: tuple[int, ...]
    """of the input, then of each"""
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    pool: int = 0
    """side of the windows whose maxima come first, every second one; 0: all places"""


NETWORKS: Mapping[str, tuple[Stage, ...]] = {
    "vgg": (
        Stage((0, 2), (3, 64, 64)),
        Stage((5, 7), (64, 128, 128), pool=2),
        Stage((10, 12, 14), (128, 256, 256, 256), pool=2),
        Stage((17, 19, 21), (256, 512, 512, 512), pool=2),
        Stage((24, 26, 28), (512, 512, 512, 512), pool=2),
    ),
    "alex": (
        Stage((0,), (3, 64), kernel=11, stride=4, padding=2),
        Stage((3,), (64, 192), kernel=5, padding=2, pool=3),
        Stage((6,), (192, 384), pool=3),
        Stage((8,), (384, 256)),
        Stage((10,), (256, 256)),
    ),
}
"""By the names of the package `lpips`."""
LEAST_SIDE: Mapping[str, int] = {"vgg": 16, "alex": 31}
"""Pixels a side of the smallest image that has features of every layer."""


class Lpips(nn.Module):
    """Float images [B, 3, H, W] in [-1, 1] of at least ``least_side`` pixels a side -> their distances [B]."""

    shift: Tensor
    scale: Tensor

    def __init__(self, network: str = "vgg", sha256: str = "") -> None:
        super().__init__()
        self.network, self.sha256, self.least_side = network, sha256, LEAST_SIDE[network]
        self._stages = NETWORKS[network]
        self.features = nn.ModuleDict(
            {
                str(place): nn.Conv2d(inputs, outputs, stage.kernel, stage.stride, stage.padding)
                for stage in self._stages
                for place, inputs, outputs in zip(stage.places, stage.channels, stage.channels[1:], strict=False)
            }
        )
        self.linear = nn.ParameterList(nn.Parameter(torch.zeros(1, one.channels[-1], 1, 1)) for one in self._stages)
        self.register_buffer("shift", (2 * torch.tensor(MEAN) - 1).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", (2 * torch.tensor(DEVIATION)).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)

    def forward(self, made: Tensor, images: Tensor) -> Tensor:
        total = made.new_zeros(len(made))
        for a, b, weight in zip(self._layers(made), self._layers(images), self.linear, strict=True):
            difference = (functional.normalize(a, dim=1) - functional.normalize(b, dim=1)).square()
            total = total + (weight * difference).sum(1).mean((1, 2))
        return total

    def _layers(self, images: Tensor) -> list[Tensor]:
        x = (images - self.shift) / self.scale
        found = []
        for stage in self._stages:
            if stage.pool:
                x = functional.max_pool2d(x, stage.pool, 2)
            for place in stage.places:
                x = functional.relu(self.features[str(place)](x))
            found.append(x)
        return found


def load_lpips(path: str, storage: Mapping[str, Any] | None = None) -> Lpips:
    """LPIPS with the weights of a file, or of the files in a folder: safetensors, or PyTorch files of tensors alone.

    They hold VGG16 or AlexNet as torchvision names them (`features.0.weight` …; what belongs to the classifier is left
    out) and the linear layers as the package `lpips` does (`lin0.model.1.weight` …). Raises
    :class:`~tokenshard.errors.FormatError` where they do not, and :class:`~tokenshard.errors.SpecError` where there
    are none.
    """
    weights = read_weights(path, storage, MAX_BYTES)
    first = weights.tensors.get("features.0.weight")
    lpips = Lpips("alex" if first is not None and first.shape[-1] == 11 else "vgg", weights.sha256)
    lpips.load_state_dict(_renamed(path, weights, lpips.state_dict()))
    return lpips.eval()


def _renamed(path: str, weights: Weights, own: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by our names, of the shapes that are needed."""
    found = {}
    for name, tensor in own.items():
        level = name.removeprefix("linear.")
        theirs = f"lin{level}.model.1.weight" if name.startswith("linear.") else name
        value = weights.tensors.get(theirs)
        if value is None or value.shape != tensor.shape:
            shape = "missing" if value is None else list(value.shape)
            raise FormatError(f"{path}: {theirs} is {shape}, expected {list(tensor.shape)}")
        found[name] = value.float()
    return found
