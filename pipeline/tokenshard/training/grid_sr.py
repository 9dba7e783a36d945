"""Training of networks that double the resolution of grids, always measured beside bicubic interpolation, in metres."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from tokenshard.loading.decoding import Batch
from tokenshard.spec.job import TrainGridSr
from tokenshard.training.augment.draws import Draws
from tokenshard.training.codes import CodeSpace
from tokenshard.training.gain import gain_over
from tokenshard.training.grid_pairs import CropLoader, Pair, filled, least_squares, read_pairs
from tokenshard.training.models.upscaler import Upscaler, UpscalerConfig, bicubic
from tokenshard.training.setting import Outcome, Setting, open_tokens

SSIM_SIDE = 7
"""Of the windows of structural similarity: all cells alike, as in scikit-image."""


@dataclass
class UpscalingTask:
    """The size of errors, and of errors of differences, in units of what bicubic interpolation leaves."""

    module: Upscaler
    val: Sequence[Pair]
    scale: float
    gradient: float
    device: torch.device

    def loss(self, batch: Batch, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        coarse, fine, there = (batch[name].to(self.device) for name in ("coarse", "fine", "there"))
        middle = coarse.mean(dim=(2, 3), keepdim=True)  # heights of thousands of metres cost digits
        error = torch.where(there, self.module(coarse - middle) - (fine - middle), 0.0) / self.scale
        loss = error.abs().mean()
        if self.gradient:
            loss = loss + self.gradient * (error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean())
        return loss, {"mae": error.detach().abs().mean() * self.scale}

    def validate(self, module: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(module, Upscaler)
        return figures(module, self.val, self.device)


@torch.inference_mode()
def figures(module: Callable[[Tensor], Tensor], pairs: Sequence[Pair], device: torch.device) -> dict[str, float]:
    """MAE and RMSE in metres and SSIM of an upscaler and of bicubic interpolation, over all cells with a value.

    SSIM takes the range of heights of each field. `val_rmse_ratio`: that of the upscaler to that of bicubic.
    """
    found: dict[str, float] = {}
    for name, make in (("", module), ("bicubic_", bicubic)):
        sums, similar, count, windows = np.zeros(2), 0.0, 0, 0
        for pair in pairs:
            middle = float(pair.coarse.mean())
            coarse = torch.from_numpy(pair.coarse - np.float32(middle))[None, None].to(device)
            made = make(coarse)[0, 0].cpu().numpy().astype(np.float64) + middle
            error = (made - pair.fine)[pair.there]
            sums += np.abs(error).sum(), (error * error).sum()
            count += error.size
            share, number = _similarity(pair.fine.astype(np.float64), made, pair.there)
            similar, windows = similar + share, windows + number
        found |= {f"val_{name}mae": sums[0] / count, f"val_{name}rmse": math.sqrt(sums[1] / count)}
        found[f"val_{name}ssim"] = similar / windows if windows else math.nan
    found["val_rmse_ratio"] = found["val_rmse"] / max(found["val_bicubic_rmse"], 1e-12)
    return {name: float(value) for name, value in found.items()}


def _similarity(truth: NDArray[np.float64], made: NDArray[np.float64], there: NDArray[np.bool_]) -> tuple[float, int]:
    """The sum of structural similarities (Wang et al. 2004) of windows without a gap, and the number of windows."""
    if min(truth.shape) < SSIM_SIDE:
        return 0.0, 0
    span = float(np.ptp(truth[there])) or 1.0
    middle = float(truth[there].mean())
    a, b, whole = (
        torch.from_numpy(one)[None, None] for one in (truth - middle, made - middle, there.astype(np.float64))
    )
    index = similarity(a, b, span)  # means are compared from the middle of the heights on, as a grey level would be
    usable = functional.avg_pool2d(whole, SSIM_SIDE, 1) > 1 - 1e-9
    return float(index[usable].sum()), int(usable.sum())


def similarity(truth: Tensor, made: Tensor, span: float) -> Tensor:
    """Structural similarity of all windows of fields [B, 1, h, w] whose values lie in a range of that size."""

    def mean(field: Tensor) -> Tensor:
        return functional.avg_pool2d(field, SSIM_SIDE, 1)

    mean_a, mean_b = mean(truth), mean(made)
    unbiased = SSIM_SIDE**2 / (SSIM_SIDE**2 - 1)
    var_a, var_b = ((mean(x * x) - m * m) * unbiased for x, m in ((truth, mean_a), (made, mean_b)))
    both = (mean(truth * made) - mean_a * mean_b) * unbiased
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    return (2 * mean_a * mean_b + c1) * (2 * both + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))


@torch.inference_mode()
def upscaled(module: Callable[[Tensor], Tensor], heights: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """A field [h, w] (NaN: no value) at twice its resolution [2 h, 2 w]; cells of NaN stay without a value."""
    there = ~np.isnan(heights)
    if not there.any():
        return np.full((2 * heights.shape[0], 2 * heights.shape[1]), np.nan)
    middle = float(heights[there].mean())
    field = filled(heights.astype(np.float64), there) - np.float32(middle)
    made: NDArray[np.float64] = module(torch.from_numpy(field)[None, None])[0, 0].numpy().astype(np.float64) + middle
    made[~np.repeat(np.repeat(there, 2, 0), 2, 1)] = np.nan
    return made


def train_grid_sr(job: TrainGridSr, device: torch.device, say: Callable[[str], None]) -> Outcome:
    """Train the upscaler of a job, or go on with it; says whether it gains over bicubic interpolation."""
    setting = Setting(job, device, say)
    pairs = read_pairs(setting.train, job.source)
    val = pairs
    if job.source.val is not None:
        setting.datasets["val"] = open_tokens(job.source.val, job.storage)
        val = read_pairs(setting.datasets["val"], job.source)
    config = UpscalerConfig(
        width=job.model.width, depth=job.model.depth, level=job.source.level, input=job.source.input
    )
    torch.manual_seed(job.seed)
    module = Upscaler(config)
    module.fill(torch.from_numpy(least_squares(pairs, job.seed)).float())
    start = figures(module, val, torch.device("cpu"))
    setting.say(
        f"RMSE {start['val_rmse']:.2f} m of the linear map, {start['val_bicubic_rmse']:.2f} m of bicubic interpolation"
    )
    scale = max(figures(module, pairs, torch.device("cpu"))["val_bicubic_mae"], 1e-6)
    loader = CropLoader(pairs, job.model.crop, job.batch, job.seed, setting.rank, setting.world)
    task = UpscalingTask(module, val, scale, job.model.gradient, device)
    manifest = setting.train.manifest
    codes = CodeSpace((), (loader.crop, loader.crop), None, manifest.tokenizer.fingerprint)
    document = setting.document("grid-sr", codes, config.model_dump(mode="json"))
    outcome = setting.learn(codes, task, loader, document)
    if (verdict := verdict_of(outcome)) is not None:
        setting.say(verdict)
    return outcome


def verdict_of(outcome: Outcome) -> str | None:
    """Whether a run gains over bicubic interpolation; None where it has not come to its end."""
    ratio = outcome.metrics.get("val_rmse_ratio")
    if ratio is None:
        return None
    return gain_over("bicubic", ratio)
