"""The network whose features the Fréchet Inception distance is defined with, with weights from a local file.

Inception-v3 (Szegedy et al. 2015, arXiv:1512.00567) as Google released it in 2015 and Heusel et al. 2017
(arXiv:1706.08500) took it for FID. It is not the network of torchvision: average pools leave out the border, and the
pool of the last block takes maxima. Names of tensors are those of its port to PyTorch (`pt_inception-2015-12-05`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from tokenshard.errors import FormatError
from tokenshard.tokenizers.checkpoints.tensors import Weights, read_weights

SIDE = 299
FEATURES = 2048
CLASSES = 1008
"""Of the classifier, which is not used: torchvision's has 1,000."""
MAX_BYTES = 1 << 29


class Convolution(NamedTuple):
    """Without bias, followed by batch normalization and ReLU."""

    name: str
    source: str
    """the convolution before; "": what comes into the block, "pool": the same pooled"""
    channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    """1: padded to the size before; 2: not padded"""


class Block(NamedTuple):
    """Convolutions side by side. Those that no other one follows are joined, in this order."""

    convolutions: tuple[Convolution, ...]
    pool: str = "mean"
    """of windows of 3x3: `mean` and `max` at every place; `halved`: maxima at every second one, joined as they are"""


def _a(pooled: int) -> Block:
    return Block(
        (
            Convolution("branch1x1", "", 64),
            Convolution("branch5x5_1", "", 48),
            Convolution("branch5x5_2", "branch5x5_1", 64, (5, 5)),
            Convolution("branch3x3dbl_1", "", 64),
            Convolution("branch3x3dbl_2", "branch3x3dbl_1", 96, (3, 3)),
            Convolution("branch3x3dbl_3", "branch3x3dbl_2", 96, (3, 3)),
            Convolution("branch_pool", "pool", pooled),
        )
    )


def _c(inner: int) -> Block:
    return Block(
        (
            Convolution("branch1x1", "", 192),
            Convolution("branch7x7_1", "", inner),
            Convolution("branch7x7_2", "branch7x7_1", inner, (1, 7)),
            Convolution("branch7x7_3", "branch7x7_2", 192, (7, 1)),
            Convolution("branch7x7dbl_1", "", inner),
            Convolution("branch7x7dbl_2", "branch7x7dbl_1", inner, (7, 1)),
            Convolution("branch7x7dbl_3", "branch7x7dbl_2", inner, (1, 7)),
            Convolution("branch7x7dbl_4", "branch7x7dbl_3", inner, (7, 1)),
            Convolution("branch7x7dbl_5", "branch7x7dbl_4", 192, (1, 7)),
            Convolution("branch_pool", "pool", 192),
        )
    )


def _e(pool: str) -> Block:
    return Block(
        (
            Convolution("branch1x1", "", 320),
            Convolution("branch3x3_1", "", 384),
            Convolution("branch3x3_2a", "branch3x3_1", 384, (1, 3)),
            Convolution("branch3x3_2b", "branch3x3_1", 384, (3, 1)),
            Convolution("branch3x3dbl_1", "", 448),
            Convolution("branch3x3dbl_2", "branch3x3dbl_1", 384, (3, 3)),
            Convolution("branch3x3dbl_3a", "branch3x3dbl_2", 384, (1, 3)),
            Convolution("branch3x3dbl_3b", "branch3x3dbl_2", 384, (3, 1)),
            Convolution("branch_pool", "pool", 192),
        ),
        pool,
    )


BLOCKS: Mapping[str, Block] = {
    "Mixed_5b": _a(32),
    "Mixed_5c": _a(64),
    "Mixed_5d": _a(64),
    "Mixed_6a": Block(
        (
            Convolution("branch3x3", "", 384, (3, 3), 2),
            Convolution("branch3x3dbl_1", "", 64),
            Convolution("branch3x3dbl_2", "branch3x3dbl_1", 96, (3, 3)),
            Convolution("branch3x3dbl_3", "branch3x3dbl_2", 96, (3, 3), 2),
        ),
        "halved",
    ),
    "Mixed_6b": _c(128),
    "Mixed_6c": _c(160),
    "Mixed_6d": _c(160),
    "Mixed_6e": _c(192),
    "Mixed_7a": Block(
        (
            Convolution("branch3x3_1", "", 192),
            Convolution("branch3x3_2", "branch3x3_1", 320, (3, 3), 2),
            Convolution("branch7x7x3_1", "", 192),
            Convolution("branch7x7x3_2", "branch7x7x3_1", 192, (1, 7)),
            Convolution("branch7x7x3_3", "branch7x7x3_2", 192, (7, 1)),
            Convolution("branch7x7x3_4", "branch7x7x3_3", 192, (3, 3), 2),
        ),
        "halved",
    ),
    "Mixed_7b": _e("mean"),
    "Mixed_7c": _e("max"),
}


class ConvolutionUnit(nn.Sequential):
    """Convolution, batch normalization and ReLU."""

    def __init__(self, inputs: int, channels: int, kernel: tuple[int, int], stride: int, padded: bool) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2) if padded else 0
        self.conv = nn.Conv2d(inputs, channels, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(channels, eps=0.001)
        self.relu = nn.ReLU()


class Mixed(nn.Module):
    """A block [B, inputs, H, W] -> [B, outputs, H, W], or half of H and W."""

    def __init__(self, block: Block, inputs: int) -> None:
        super().__init__()
        self._block = block
        widths = {"": inputs, "pool": inputs}
        for one in block.convolutions:
            unit = ConvolutionUnit(widths[one.source], one.channels, one.kernel, one.stride, one.stride == 1)
            self.add_module(one.name, unit)
            widths[one.name] = one.channels
        followed = {one.source for one in block.convolutions}
        self._joined = [one.name for one in block.convolutions if one.name not in followed]
        if block.pool == "halved":
            self._joined.append("pool")
        self.outputs = sum(widths[name] for name in self._joined)

    def forward(self, x: Tensor) -> Tensor:
        found = {"": x, "pool": self._pooled(x)}
        for one in self._block.convolutions:
            found[one.name] = self.get_submodule(one.name)(found[one.source])
        return torch.cat([found[name] for name in self._joined], 1)

    def _pooled(self, x: Tensor) -> Tensor:
        if self._block.pool == "mean":
            return functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        return functional.max_pool2d(x, 3, 2) if self._block.pool == "halved" else functional.max_pool2d(x, 3, 1, 1)


class Inception(nn.Module):
    """Float images [B, 3, 299, 299] in [-1, 1] -> features [B, 2048]: means of the last maps over all places."""

    def __init__(self, sha256: str = "") -> None:
        super().__init__()
        self.sha256 = sha256
        self.Conv2d_1a_3x3 = ConvolutionUnit(3, 32, (3, 3), 2, False)
        self.Conv2d_2a_3x3 = ConvolutionUnit(32, 32, (3, 3), 1, False)
        self.Conv2d_2b_3x3 = ConvolutionUnit(32, 64, (3, 3), 1, True)
        self.Conv2d_3b_1x1 = ConvolutionUnit(64, 80, (1, 1), 1, False)
        self.Conv2d_4a_3x3 = ConvolutionUnit(80, 192, (3, 3), 1, False)
        width = 192
        for name, block in BLOCKS.items():
            mixed = Mixed(block, width)
            self.add_module(name, mixed)
            width = mixed.outputs
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(images)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(functional.max_pool2d(x, 3, 2)))
        x = functional.max_pool2d(x, 3, 2)
        for name in BLOCKS:
            x = self.get_submodule(name)(x)
        features: Tensor = x.mean((2, 3))
        return features


def load_inception(path: str, storage: Mapping[str, Any] | None = None) -> Inception:
    """The network with the weights of a safetensors file, or of a PyTorch file of tensors alone.

    Every tensor has to have its name and shape, those of the classifier (`fc`) too. Raises
    :class:`~tokenshard.errors.FormatError` that lists what is missing or left over, and
    :class:`~tokenshard.errors.SpecError` where there is no file.
    """
    weights = read_weights(path, storage, MAX_BYTES)
    inception = Inception(weights.sha256)
    inception.load_state_dict(_checked(path, weights, inception.state_dict()))
    return inception.eval()


def _checked(path: str, weights: Weights, own: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the features; counters of batches are set to 0, as files of older programs lack them."""
    shapes = {name: list(tensor.shape) for name, tensor in own.items()}
    counters = {name for name in shapes if name.endswith(".num_batches_tracked")}
    classifier = {"fc.weight": [CLASSES, FEATURES], "fc.bias": [CLASSES]}
    needed = {name: shape for name, shape in shapes.items() if name not in counters} | classifier
    for what, names in {
        "lacks": needed.keys() - weights.tensors.keys(),
        "holds what does not belong to it:": weights.tensors.keys() - needed.keys() - counters,
    }.items():
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            raise FormatError(
                f"{path}: not the Inception network of FID (pt_inception-2015-12-05): {what} "
                f"{', '.join(sorted(names)[:5])}{more}"
            )
    for name, shape in needed.items():
        if list(weights.tensors[name].shape) != shape:
            raise FormatError(
                f"{path}: not the Inception network of FID (pt_inception-2015-12-05): {name} is "
                f"{list(weights.tensors[name].shape)}, expected {shape}"
            )
    return {name: weights.tensors[name].float() if name not in counters else torch.tensor(0) for name in shapes}
