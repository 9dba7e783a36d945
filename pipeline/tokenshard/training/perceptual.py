"""LPIPS, the distance of two images in the features of VGG16, with weights from a local file.

Zhang et al. 2018 (arXiv:1801.03924): features of five layers, scaled to length 1 at every place; squared differences
weighted by a learned number a channel, averaged over places and added up over layers. The value is LPIPS only with the
weights of its authors (version 0.1, VGG16); with others it is a perceptual distance of the same form.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

from tokenshard.errors import FormatError
from tokenshard.store import Store

LAYERS = ((3, 64, 64), (64, 128, 128), (128, 256, 256, 256), (256, 512, 512, 512), (512, 512, 512, 512))
"""Channels of the convolutions of VGG16, by resolution; the last features of each are compared."""
PLACES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
"""Their numbers in torchvision's `features`."""
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MAX_BYTES = 1 << 30


class Lpips(nn.Module):
    """Float images [B, 3, H, W] in [-1, 1], at least 16 pixels a side -> their distances [B]."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.ModuleDict(
            {
                str(place): nn.Conv2d(inputs, outputs, 3, 1, 1)
                for places, widths in zip(PLACES, LAYERS, strict=True)
                for place, inputs, outputs in zip(places, widths, widths[1:], strict=False)
            }
        )
        self.linear = nn.ParameterList(nn.Parameter(torch.zeros(1, widths[-1], 1, 1)) for widths in LAYERS)
        self.register_buffer("shift", (2 * torch.tensor(MEAN) - 1).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", (2 * torch.tensor(DEVIATION)).view(1, 3, 1, 1), persistent=False)
        self.sha256 = ""
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
        for level, places in enumerate(PLACES):
            if level:
                x = functional.max_pool2d(x, 2)
            for place in places:
                x = functional.relu(self.features[str(place)](x))
            found.append(x)
        return found


def load_lpips(path: str, storage: dict[str, Any] | None = None) -> Lpips:
    """LPIPS with the weights of a file: safetensors, or a `.pth` of tensors alone, which is read without running code.

    It holds VGG16 as torchvision names it (`features.0.weight` …; what belongs to its classifier is left out) and the
    linear layers as the package `lpips` does (`lin0.model.1.weight` …). Raises :class:`FormatError` where it does not.
    """
    folder, _, name = path.rpartition("/")
    store = Store(folder or ("/" if path.startswith("/") else "."), storage)
    try:
        if store.size(name) > MAX_BYTES:
            raise FormatError(f"{path}: larger than the {MAX_BYTES} bytes that VGG16 and its linear layers can have")
        content = store.read(name)
    except FileNotFoundError as error:
        raise FormatError(f"{path}: no such file of LPIPS weights") from error
    try:
        if name.endswith(".safetensors"):
            weights = safetensors.torch.load(content)
        else:
            weights = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (safetensors.SafetensorError, pickle.UnpicklingError, RuntimeError, ValueError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise FormatError(f"{path}: not a file of tensors alone ({reason}); save it as safetensors") from error
    if not isinstance(weights, dict):
        raise FormatError(f"{path}: not a mapping of names to tensors")
    lpips = Lpips()
    lpips.load_state_dict(_renamed(path, weights, lpips.state_dict()))
    lpips.sha256 = hashlib.sha256(content).hexdigest()
    return lpips.eval()


def _renamed(path: str, weights: dict[str, Any], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by our names, of the shapes that are needed."""
    found = {}
    for name, tensor in own.items():
        level = name.removeprefix("linear.")
        theirs = f"lin{level}.model.1.weight" if name.startswith("linear.") else name
        value = weights.get(theirs)
        if not isinstance(value, Tensor) or value.shape != tensor.shape:
            shape = list(value.shape) if isinstance(value, Tensor) else "missing"
            raise FormatError(f"{path}: {theirs} is {shape}, expected {list(tensor.shape)}")
        found[name] = value.float()
    return found
