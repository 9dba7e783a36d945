"""The VQ-VAE of arXiv:2504.14372, which doubles the resolution of tiles of bathymetry: a baseline, built from facts.

What differs, and why: a tile and its finer one are brought to [0, 1] by the least and largest height of the *coarse*
tile (each by its own leaves no metres), so that finer cells may lie outside and there is no sigmoid at the end; a code
stands for all channels of a position (there a reshape without a permute lets it stand for 256 positions of a channel,
at the same number of codes); codes are the nearest ones in training as in use (there training mixes them by a
temperature), so the pull towards them counts in full; no reward or price on how evenly codes are used.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from itertools import islice, pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from tokenshard.quantizers.base import Quantized
from tokenshard.quantizers.vq import VQ
from tokenshard.training.grid_pairs import CropLoader, Pair
from tokenshard.training.grid_sr import similarity

SIDE = 32
"""Coarse cells of a side of a tile."""
BLOCKS = 3
"""Attention blocks at the end of the encoder."""
LAST_BLOCKS = 2
"""Attention blocks of the decoder before the finer grid is made."""
LEAST_SPAN = 1.0
"""Metres: flat tiles are not blown up further."""
SIMILARITY = 10.0
"""Weight of structural similarity in the loss."""
WARMUP = 0.05
"""Share of the steps in which the rate rises, and in which there are no codes yet."""


@dataclass(frozen=True)
class Shape:
    """Channels of the encoder, from the first layer to the last; the codebook."""

    widths: tuple[int, ...] = (32, 64, 128, 256)
    codes: int = 512
    dim: int = 256


class AttentionBlock(nn.Module):
    """[B, C, h, w] -> the same: a residual branch under a mask that is made at half the resolution (Wang et al. 2017,
    arXiv:1704.06904)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(_conv(width, width), nn.ReLU(), _conv(width, width))
        self.mask = nn.Sequential(nn.MaxPool2d(2), _conv(width, width), nn.ReLU(), _conv(width, width))
        self.weigh = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        mask = functional.interpolate(self.mask(x), size=x.shape[2:], mode="bilinear")
        found: Tensor = x + self.trunk(x) * (1 + self.weigh(mask).sigmoid())
        return found


class VQVAE(nn.Module):
    """Heights float [B, 1, h, w] -> [B, 1, 2 h, 2 w], both in metres; one code a coarse cell."""

    def __init__(self, shape: Shape, seed: int, start: int) -> None:
        """``start``: training steps before there are codes."""
        super().__init__()
        first, last, dim = shape.widths[0], shape.widths[-1], shape.dim
        rising = [layer for pair in pairwise(shape.widths) for layer in (_conv(*pair), nn.ReLU())]
        self.encoder = nn.Sequential(
            _conv(1, first, 9), nn.ReLU(), *rising, *(AttentionBlock(last) for _ in range(BLOCKS)), _conv(last, dim)
        )
        self.quantizer = VQ(dim, shape.codes, seed=seed, start=start)
        falling = [
            layer
            for inputs, outputs in pairwise((dim, *reversed(shape.widths)))
            for layer in (_conv(inputs, outputs), nn.ReLU(), AttentionBlock(outputs))
        ]
        self.decoder = nn.Sequential(
            *falling,
            *(AttentionBlock(first) for _ in range(LAST_BLOCKS)),
            nn.Upsample(scale_factor=2, mode="bilinear"),
            _conv(first, 1, 9),
        )

    def forward(self, coarse: Tensor) -> Tensor:
        low, span = ranges(coarse)
        made, _ = self.normalised((coarse - low) / span)
        return made * span + low

    def normalised(self, coarse: Tensor) -> tuple[Tensor, Quantized]:
        """The same of tiles in [0, 1], and their codes."""
        found: Quantized = self.quantizer(self.encoder(coarse))
        return self.decoder(found.vectors), found


class Uncertainty(nn.Module):
    """Weights of places in a tile: the (1 - alpha) quantile of absolute errors in its block over their mean, both as
    moving averages."""

    high: Tensor
    mean: Tensor

    def __init__(self, side: int, block: int = 4, alpha: float = 0.05, decay: float = 0.99) -> None:
        super().__init__()
        self.block, self.alpha, self.decay = block, alpha, decay
        for name in ("high", "mean"):
            self.register_buffer(name, torch.zeros(side // block, side // block))

    @torch.no_grad()
    def forward(self, error: Tensor) -> Tensor:
        """Weights [side, side] after errors [B, 1, side, side]."""
        rows, columns = self.high.shape
        parts = error.abs().reshape(len(error), rows, self.block, columns, self.block)
        parts = parts.permute(1, 3, 0, 2, 4).reshape(rows, columns, -1)
        decay = self.decay if self.mean.any() else 0.0
        self.high.lerp_(parts.quantile(1 - self.alpha, dim=2), 1 - decay)
        self.mean.lerp_(parts.mean(2), 1 - decay)
        weights = self.high / self.mean.clamp_min(1e-12)
        return weights.repeat_interleave(self.block, 0).repeat_interleave(self.block, 1)


def loss_of(module: VQVAE, uncertainty: Uncertainty, coarse: Tensor, fine: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of a batch of tiles in metres [B, 1, side, side] and [B, 1, 2 side, 2 side], and their mean error."""
    low, span = ranges(coarse)
    truth = (fine - low) / span
    made, quantized = module.normalised((coarse - low) / span)
    error = made - truth
    squares = (uncertainty(error.detach()) * error.square()).mean()
    unlike = 1 - similarity(truth, made, 1.0).mean()
    return squares + SIMILARITY * unlike + quantized.loss, (error.detach().abs() * span).mean()


def train(pairs: list[Pair], shape: Shape, steps: int, batch: int, lr: float, seed: int) -> VQVAE:
    """A model of random tiles of pairs: a function of the pairs, the numbers and the seed."""
    torch.manual_seed(seed)
    warmup = max(1, int(WARMUP * steps))
    module, uncertainty = VQVAE(shape, seed, start=warmup), Uncertainty(2 * SIDE)
    optimizer = torch.optim.Adam(module.parameters(), lr)

    def rate(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    loader = CropLoader(pairs, SIDE, batch, seed, 0, 1)
    for step, tiles in enumerate(islice(loader, steps), 1):
        loss, mae = loss_of(module, uncertainty, tiles["coarse"], tiles["fine"])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps:
            print(f"step {step}/{steps} loss {loss.item():.4f} MAE {mae.item():.2f} m", file=sys.stderr, flush=True)
    return module.eval()


def ranges(coarse: Tensor) -> tuple[Tensor, Tensor]:
    """Least height of each tile, and how far the largest is from it, [B, 1, 1, 1]."""
    low = coarse.amin(dim=(2, 3), keepdim=True)
    return low, (coarse.amax(dim=(2, 3), keepdim=True) - low).clamp_min(LEAST_SPAN)


def widths_of(text: str) -> tuple[int, ...]:
    """`32,64` as numbers."""
    return tuple(int(part) for part in text.split(","))


def _conv(inputs: int, outputs: int, side: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, side, padding=side // 2, padding_mode="replicate")
