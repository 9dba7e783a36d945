"""Training of tokenizers on grids: errors are weighed in the unit of the grid, over cells that have a value."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tokenshard.quantizers.base import Quantized, straight_through
from tokenshard.spec.recipe import Losses
from tokenshard.tokenizers.grid_conv import GridVQ
from tokenshard.tokenizers.grid_network import vectors_to_depth
from tokenshard.tokenizers.trained import TrainedTokenizer
from tokenshard.training.fields import FieldBatch, FieldPool
from tokenshard.training.learner import Learner, Reconstructed, laid_out
from tokenshard.training.metrics import MOST, SIDE, code_statistics
from tokenshard.training.tokenizer import Step, TokenizerTraining

SHOWN = 6


class GridLearner(Learner):
    """A :class:`~.fields.FieldBatch` in, what the decoder draws out. Patches below the floor have no vector."""

    def forward(self, batch: FieldBatch, frozen: bool) -> Reconstructed:  # type: ignore[override]
        with torch.autocast(batch.cells.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            with torch.set_grad_enabled(not frozen):
                z = self.network.encoder(laid_out(batch.cells)).float()
                gathered, place = used_first(z, batch.used)
                quantized: Quantized = self.quantizer(gathered)
                ids = quantized.ids.flatten(2).gather(2, place[:, None].expand(-1, quantized.ids.shape[1], -1))
                ids = ids.reshape(len(z), -1, *z.shape[2:])
                vectors = straight_through(z, vectors_to_depth(self.quantizer, ids, batch.depth))
                vectors = vectors * batch.used[:, None]
            made = self.network.decoder(laid_out(torch.cat([vectors, batch.frame], 1)).requires_grad_())
        return Reconstructed(made.float(), quantized.loss, quantized.ids)


def used_first(z: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
    """Latents [B, dim, rows, columns] with those of used patches [B, rows, columns] alone, over and over, so that a
    quantizer learns of no others; and where in them those of each patch are [B, rows * columns]."""
    flat = used.flatten(1)
    order = flat.long().argsort(dim=1, descending=True, stable=True)
    count = flat.sum(1, keepdim=True).clamp_min(1)
    taken = order.gather(1, torch.arange(flat.shape[1], device=z.device)[None] % count)
    found = z.flatten(2).gather(2, taken[:, None].expand(-1, z.shape[1], -1)).reshape(z.shape)
    return found, (flat.long().cumsum(1) - 1).clamp_min(0)


def field_loss(made: Tensor, batch: FieldBatch, losses: Losses) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The weighted loss of what was drawn [B, 1, h, w], and mean |error| and error² of valid cells without gradient.

    The gradient term is of differences between neighbours that both have a value.
    """
    valid = batch.valid
    count = valid.sum().clamp_min(1)
    error = (made * batch.scale - batch.rest) * valid
    l1, l2 = error.abs().sum() / count, error.square().sum() / count
    loss = losses.l1 * l1 + losses.l2 * l2
    if losses.gradient:
        for axis in (2, 3):
            both = valid.narrow(axis, 1, valid.shape[axis] - 1) * valid.narrow(axis, 0, valid.shape[axis] - 1)
            loss = loss + losses.gradient * (error.diff(dim=axis).abs() * both).sum() / both.sum().clamp_min(1)
    return loss, (l1.detach(), l2.detach())


class GridTraining(TokenizerTraining):
    """A run on :class:`~.fields.FieldPool`."""

    def _learner(self) -> Learner:
        return GridLearner(self.network, self.quantizer, self.recipe.precision)

    def _kind(self) -> type[TrainedTokenizer]:
        return GridVQ

    def _reconstructed(self, part: slice, frozen: bool) -> Step:
        recipe = self.recipe
        batch = cast(FieldPool, self.pool).draw(recipe.batch, recipe.crop, recipe.seed, self.step, part)
        made, quantizer_loss, ids = self._forward(batch, frozen)
        loss, (l1, l2) = field_loss(made, batch, recipe.losses)
        return Step(loss, quantizer_loss, ids, {"l1": l1, "l2": l2}, made, batch.rest)

    @torch.no_grad()
    def _validated(self) -> tuple[dict[str, float], bytes]:
        """MAE and RMSE in the unit of the grid, PSNR of the range of each window (mean), bits of shapes a patch."""
        pool = cast(FieldPool, self.held_out)
        learner = GridLearner(self.average.network, self.quantizer, "fp32")
        learning = self.quantizer.training
        learner.eval()
        side = max(pool.lattice.side, SIDE // pool.lattice.side * pool.lattice.side)
        counts = [torch.zeros(size, device=self.device) for size in self.quantizer.levels]
        sums, psnr, shown = np.zeros(3), [], []
        for field in pool.centres(side, MOST):
            batch = pool.batch([field])
            made, _, ids = learner(batch, True)
            error = ((made * batch.scale - batch.rest) * batch.valid)[0, 0].double().cpu().numpy() * pool.metres
            cells = float(batch.valid.sum())
            if not cells:
                continue
            sums += np.abs(error).sum(), np.square(error).sum(), cells
            mse = max(float(np.square(error).sum()) / cells, 1e-20)
            psnr.append(20 * math.log10(max(float(np.nanmax(field) - np.nanmin(field)), 1e-9)) - 10 * math.log10(mse))
            for level, plane in zip(counts, ids.unbind(1), strict=True):
                level += torch.bincount(plane[:, : int(batch.used.sum())].flatten(), minlength=len(level))
            shown.append(_shaded(field, field + error))
        self.quantizer.train(learning)
        figures = {
            "mae": sums[0] / max(sums[2], 1),
            "rmse": math.sqrt(sums[1] / max(sums[2], 1)),
            "psnr": float(np.mean(psnr)),
            "val_entropy": sum(code_statistics(level).entropy for level in counts),
        }
        return figures, _picture(shown[:SHOWN])

    def _told(self, row: Mapping[str, Any]) -> str:
        held_out = f"  held-out MAE {row['mae']:.4g}" if "mae" in row else ""
        return f"train MAE {row['l1'] * cast(FieldPool, self.pool).metres:.4g}{held_out}"


def _shaded(field: NDArray[np.float64], made: NDArray[np.float64]) -> NDArray[np.uint8]:
    """A field above what became of it, as grey levels of its own range."""
    both = np.concatenate([field, made])
    low, high = float(np.nanmin(field)), float(np.nanmax(field))
    grey = np.clip((both - low) / max(high - low, 1e-9), 0, 1)
    return np.where(np.isnan(both), 0, 30 + 225 * grey).astype(np.uint8)


def _picture(shown: list[NDArray[np.uint8]]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.concatenate(shown, axis=1)).save(file, "PNG")
    return file.getvalue()
