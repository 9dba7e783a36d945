"""Figures of a training run while it runs: codebook use, PSNR on held-out images, sample pictures, CSV and JSONL."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tokenshard.quantizers.base import Quantizer
from tokenshard.quantizers.distributed import rank_and_world, summed
from tokenshard.store import Store
from tokenshard.tokenizers.conv_network import AutoEncoder, to_signed, to_uint8
from tokenshard.training.clips import Pool
from tokenshard.training.events import EventFiles, WandbRun

SIDE = 192
"""Pixels of the windows that are validated on."""
MOST = 64
SHOWN = 6
COLLAPSED = 0.05
"""Below this perplexity, as a share of the codebook size, the alarm is raised."""


class CodeStatistics(NamedTuple):
    """How the codes of one codebook are used by a sample of ids."""

    usage: float
    """share of the codes that occur"""
    perplexity: float
    """2 to the entropy: how many equally frequent codes would be as hard to guess"""
    entropy: float
    """bits an id, without context"""


def code_statistics(counts: Tensor) -> CodeStatistics:
    """Of occurrences by code [K]."""
    share = counts.double() / counts.sum().clamp_min(1)
    entropy = float(-(share * share.clamp_min(1e-300).log2()).sum())
    return CodeStatistics(float((counts > 0).double().mean()), 2.0**entropy, entropy)


class RunningMetrics:
    """Means of the terms of the loss and use of the codes since the last row, over all processes."""

    def __init__(self, levels: tuple[int, ...], device: torch.device) -> None:
        self._counts = [torch.zeros(size, device=device) for size in levels]
        self._sums: dict[str, Tensor] = {}
        self._steps: dict[str, int] = {}

    @torch.no_grad()
    def add(self, terms: Mapping[str, Tensor], ids: Tensor) -> None:
        """Terms and ids [B, levels, *grid] of one step. Does not wait for the device."""
        for name, term in terms.items():
            self._sums[name] = self._sums[name] + term if name in self._sums else term
            self._steps[name] = self._steps.get(name, 0) + 1
        for counts, level in zip(self._counts, ids.unbind(1), strict=True):
            counts += torch.bincount(level.flatten(), minlength=len(counts))

    def take(self) -> dict[str, Any]:
        """The figures, as a row of the log has them; the next ones start anew. All processes must ask."""
        means = torch.stack([self._sums[name] / self._steps[name] for name in self._sums])
        means, *all_counts = summed(means, *self._counts)
        row: dict[str, Any] = dict(zip(self._sums, (means / rank_and_world()[1]).tolist(), strict=True))
        statistics = [code_statistics(counts) for counts in all_counts]
        row["train_psnr"] = 10 * math.log10(4 / max(row["l2"], 1e-10))
        row["usage"] = min(one.usage for one in statistics)
        row["perplexity"] = min(one.perplexity for one in statistics)
        row["entropy"] = sum(one.entropy for one in statistics)
        ids = float(all_counts[0].sum())
        row["collapsed"] = any(
            len(counts) >= 16 and one.perplexity < COLLAPSED * min(len(counts), ids / 20)
            for counts, one in zip(all_counts, statistics, strict=True)
        )
        for counts in self._counts:
            counts.zero_()
        self._sums, self._steps = {}, {}
        return row


@torch.no_grad()
def validate(network: AutoEncoder, quantizer: Quantizer, pool: Pool) -> tuple[float, float, bytes]:
    """PSNR (dB, mean over images) and entropy (bits a place of the grid) on windows in the middle of images.

    Also some of them, original above reconstruction, as a picture (PNG); of a clip its last frame.
    """
    training = quantizer.training
    quantizer.eval()
    unit = network.downsample
    images = pool.centres(max(unit, SIDE // unit * unit), MOST)
    values: list[float] = []
    shown: list[Tensor] = []
    counts = [torch.zeros(size, device=images.device) for size in quantizer.levels]
    for batch in torch.split(images, 8):
        quantized = quantizer(network.encoder(to_signed(batch)))
        made = to_uint8(network.decoder(quantized.vectors))
        error = (made.float() - batch.float()).square().flatten(1).mean(1).clamp_min(1e-10)
        values += (10 * torch.log10(255**2 / error)).tolist()
        for level, ids in zip(counts, quantized.ids.unbind(1), strict=True):
            level += torch.bincount(ids.flatten(), minlength=len(level))
        if len(shown) < SHOWN:
            pair = torch.cat([batch, made], -2)
            shown += (pair if pair.ndim == 4 else pair[:, :, -1]).unbind(0)
    quantizer.train(training)
    canvas = torch.cat(shown[:SHOWN], 2).permute(1, 2, 0).cpu().numpy()
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(canvas)).save(file, "PNG")
    return float(np.mean(values)), sum(code_statistics(level).entropy for level in counts), file.getvalue()


class MetricsLog:
    """Rows of figures as `metrics.jsonl` and `metrics.csv` in a folder of the output, and pictures beside them.

    tensorboard: the same also as event files for TensorBoard; wandb: also to this project of Weights & Biases. Raises
    :class:`SpecError` where they are not installed
    """

    def __init__(self, output: Store, folder: str, tensorboard: bool = False, wandb: str | None = None) -> None:
        self._output, self._folder = output, folder
        self._events = EventFiles(output, f"{folder}/tensorboard") if tensorboard else None
        self._wandb = None if wandb is None else WandbRun(wandb, output.root)
        self.rows: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any], picture: bytes | None = None) -> None:
        """One more row, with sample reconstructions (PNG); all of it can be read at once."""
        self.rows.append(row)
        if picture is not None:
            self._output.put(f"{self._folder}/samples-{row['step']:08d}.png", picture)
        lines = "".join(json.dumps(one) + "\n" for one in self.rows)
        self._output.put(f"{self._folder}/metrics.jsonl", lines.encode())
        names = list(dict.fromkeys(name for one in self.rows for name in one))
        table = io.StringIO()
        writer = csv.DictWriter(table, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        self._output.put(f"{self._folder}/metrics.csv", table.getvalue().encode())
        for outlet in (self._events, self._wandb):
            if outlet is not None:
                outlet.write(row, picture)

    def close(self) -> None:
        """Nothing more will come."""
        if self._wandb is not None:
            self._wandb.close()

    def read(self, step: int) -> None:
        """Take over the rows up to ``step`` of an earlier run."""
        name = f"{self._folder}/metrics.jsonl"
        if self._output.exists(name):
            rows = map(json.loads, self._output.read(name).decode().splitlines())
            self.rows = [row for row in rows if row["step"] <= step]


def last_figures(output: Store, folder: str) -> dict[str, Any]:
    """The last value of each figure in the log of a run; nothing where there is none."""
    name = f"{folder}/metrics.jsonl"
    found: dict[str, Any] = {}
    if output.exists(name):
        for line in output.read(name).decode().splitlines():
            found |= json.loads(line)
    return found
