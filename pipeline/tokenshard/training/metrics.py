"""Figures of a training run while it runs: codebook use, PSNR on held-out images, sample pictures, CSV and JSONL."""

from __future__ import annotations

import csv
import io
import json
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tokenshard.quantizers.base import Quantizer
from tokenshard.store import Store
from tokenshard.tokenizers.conv_network import AutoEncoder, to_signed, to_uint8
from tokenshard.training.crops import PixelPool

SIDE = 192
"""Pixels of the windows that are validated on."""
MOST = 64
SHOWN = 6


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


@torch.no_grad()
def validate(
    network: AutoEncoder, quantizer: Quantizer, pool: PixelPool, output: Store, picture: str
) -> tuple[float, float]:
    """PSNR (dB, mean over images) and entropy (bits a place of the grid) on windows in the middle of images.

    Writes some of them, original above reconstruction, to ``picture`` (PNG).
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
        error = (made.float() - batch.float()).square().mean((1, 2, 3)).clamp_min(1e-10)
        values += (10 * torch.log10(255**2 / error)).tolist()
        for level, ids in zip(counts, quantized.ids.unbind(1), strict=True):
            level += torch.bincount(ids.flatten(), minlength=len(level))
        if len(shown) < SHOWN:
            shown += torch.cat([batch, made], 2).unbind(0)
    quantizer.train(training)
    canvas = torch.cat(shown[:SHOWN], 2).permute(1, 2, 0).cpu().numpy()
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(canvas)).save(file, "PNG")
    output.put(picture, file.getvalue())
    return float(np.mean(values)), sum(code_statistics(level).entropy for level in counts)


class MetricsLog:
    """Rows of figures, kept as `<name>.jsonl` and `<name>.csv`."""

    def __init__(self, output: Store, name: str) -> None:
        self._output, self._name = output, name
        self.rows: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        """One more row, in memory until :meth:`write`."""
        self.rows.append(row)

    def write(self) -> None:
        """Replace both files."""
        lines = "".join(json.dumps(row) + "\n" for row in self.rows)
        self._output.put(f"{self._name}.jsonl", lines.encode())
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        table = io.StringIO()
        writer = csv.DictWriter(table, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        self._output.put(f"{self._name}.csv", table.getvalue().encode())

    def read(self, step: int) -> None:
        """Take over the rows up to ``step`` of an earlier run."""
        if self._output.exists(f"{self._name}.jsonl"):
            rows = map(json.loads, self._output.read(f"{self._name}.jsonl").decode().splitlines())
            self.rows = [row for row in rows if row["step"] <= step]
