"""Quantizers in short equal training runs: PSNR on held-out images, use of the codes, and CPU time.

    python benchmarks/quantizers.py CIFAR_FOLDER [--only NAME …] [--steps 500] [--save FOLDER] [--json]

CIFAR_FOLDER holds `train/` and `test/` with images of 32 x 32. A conv network of width 24 with tokens of 4 x 4 pixels
is trained by `TokenizerTraining`, one thread, the same seed and crops for every row: a smoke test with known figures,
not a ranking of methods. PSNR is the mean over 1,000 test images of what the saved tokenizer decodes from its ids; use
is that of their 64,000 ids (of the level used least). Alarm: whether the run said at its end that the codes collapsed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tokenshard.report.quality import psnr
from tokenshard.sources.base import Sample
from tokenshard.sources.images.decoded import decoded_images
from tokenshard.spec.images import ImageSourceSpec
from tokenshard.store import Store
from tokenshard.tokenizers.conv import ConvVQ
from tokenshard.tokenizers.conv_network import NetworkConfig, StackConfig
from tokenshard.tokenizers.folder import save_tokenizer
from tokenshard.training.crops import PixelPool
from tokenshard.training.metrics import code_statistics
from tokenshard.training.recipe import TokenizerRecipe
from tokenshard.training.tokenizer import TokenizerTraining

BY_GRADIENT: dict[str, Any] = {"dim": 64, "quantizer": "vq", "size": 1024, "ema": False, "init": "uniform"}
ROWS: dict[str, dict[str, Any]] = {
    "vq, EMA": {"dim": 8, "quantizer": "vq", "size": 1024},
    "fsq 8,5,5,5": {"dim": 4, "quantizer": "fsq", "values": [8, 5, 5, 5]},
    "rvq 4 x 256": {"dim": 8, "quantizer": "rvq", "size": 256, "depth": 4},
    "vq by gradient, uniform": BY_GRADIENT,
    "the same, balanced": {**BY_GRADIENT, "balance": 0.3},
    "simvq": {"dim": 64, "quantizer": "simvq", "size": 1024},
    "vqbridge": {"dim": 64, "quantizer": "vqbridge", "size": 1024},
    "vqbridge, no skip": {"dim": 64, "quantizer": "vqbridge", "size": 1024, "skip": False},
    "vq, EMA, balanced": {"dim": 8, "quantizer": "vq", "size": 1024, "balance": 0.3},
    "bsq, 10 bits": {"dim": 10, "quantizer": "bsq"},
}
"""What is trained; the first three have thresholds, the middle ones are measured against each other."""
WANTED = {"vq, EMA": (23.0, 0.95), "fsq 8,5,5,5": (22.8, 0.0), "rvq 4 x 256": (24.0, 0.0)}
"""Least PSNR (dB) and use."""
MOST_SECONDS = 300
IMAGES, TEST_IMAGES = 8000, 1000


def recipe(steps: int, dim: int, quantizer: str, **options: Any) -> TokenizerRecipe:
    """Width 24, f4."""
    network = NetworkConfig(
        dim=dim,
        encoder=StackConfig(channels=(24, 48, 48), blocks=(1, 1, 1)),
        decoder=StackConfig(channels=(24, 48, 48), blocks=(1, 1, 1)),
    )
    fields = {"network": network, "quantizer": quantizer, "quantizer_options": options, "crop": 32, "scale": (1, 1)}
    return TokenizerRecipe.model_validate(
        {**fields, "batch": 48, "steps": steps, "lr": 2e-3, "warmup": steps // 10, "stored": "float32"}
    )


def images(folder: Path, most: int) -> list[NDArray[np.uint8]]:
    spec = ImageSourceSpec(path=str(folder), labels="none")
    return [item.data for item in decoded_images(spec, most=most) if isinstance(item, Sample)]


def measure(
    name: str, steps: int, pool: PixelPool, test: NDArray[np.uint8], save: Path | None = None
) -> dict[str, Any]:
    options = ROWS[name]
    with tempfile.TemporaryDirectory() as scratch:
        training = TokenizerTraining(
            recipe(steps, **options), pool, PixelPool.of(test[:64]), Store(scratch), say=lambda text: None
        )
        start = time.process_time()
        made = training.run()
        seconds = time.process_time() - start
        rows = training.metrics.rows
    assert isinstance(made, ConvVQ)
    if save is not None:
        save_tokenizer(made, Store(save / re.sub("[^a-z0-9]+", "-", name.lower())), "")
    ids = made.encode(test)
    counts = [np.bincount(ids[:, level].ravel(), minlength=size) for level, size in enumerate(made.quantizer.levels)]
    statistics = [code_statistics(torch.from_numpy(level)) for level in counts]
    wanted_psnr, wanted_usage = WANTED.get(name, (0.0, 0.0))
    found = {
        "name": name,
        "psnr": round(psnr(test, made.decode(ids)), 2),
        "usage": round(min(one.usage for one in statistics), 4),
        "perplexity": round(min(one.perplexity for one in statistics), 1),
        "bits": round(sum(one.entropy for one in statistics), 2),
        "alarm": rows[-1]["collapsed"],
        "cpu_seconds": round(seconds),
    }
    kept = found["psnr"] >= wanted_psnr and found["usage"] >= wanted_usage and seconds < MOST_SECONDS
    return found | ({"kept": kept} if name in WANTED else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", choices=list(ROWS), metavar="NAME")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--save", type=Path, metavar="FOLDER", help="keep the tokenizers below")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pool = PixelPool.of(images(options.folder / "train", IMAGES))
    test = np.stack(images(options.folder / "test", TEST_IMAGES))
    if not options.json:
        print(f"{len(pool):,} images, {options.steps} steps of 48; load {os.getloadavg()[0]:.1f}")
    for name in options.only or ROWS:
        row = measure(name, options.steps, pool, test, options.save)
        line = "  ".join(f"{key} {value}" for key, value in row.items() if key != "name")
        print(json.dumps(row) if options.json else f"{name:<26}{line}", flush=True)


if __name__ == "__main__":
    main()
