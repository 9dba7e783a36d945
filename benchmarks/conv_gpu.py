"""Encoding speed of conv networks on a GPU: images/s of 256x256 uint8 images that are on the device already.

    python benchmarks/conv_gpu.py --out results.json [--networks f8 f16 vqgan-f16] [--seconds 3]

Weights are random: speed does not depend on them. One line a network and mode: fp32 (TF32 off) and bf16, each plain
and compiled; the median of at least ten batches, timed with device events after warm-up.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from tokenshard.quantizers.registry import make_quantizer
from tokenshard.tokenizers.conv import ConvVQ
from tokenshard.tokenizers.conv_network import AutoEncoder, parameter_count
from tokenshard.tokenizers.trained import ConvConfig, Numerics
from tokenshard.training.recipe import PRESETS

SIDE = 256
CODES = 1024


def random_tokenizer(name: str) -> ConvVQ:
    """An untrained tokenizer with the network of that preset."""
    torch.manual_seed(0)
    quantizer = make_quantizer("vq", dim=PRESETS[name].dim, size=CODES).exported()
    config = ConvConfig(
        network=PRESETS[name], quantizer="lookup", quantizer_options=quantizer.options(), stored="float16"
    )
    return ConvVQ(config, AutoEncoder(PRESETS[name]), quantizer)


def images_per_second(tokenizer: ConvVQ, batch: int, seconds: float) -> float:
    """Median over batches of random images."""
    images = torch.randint(0, 256, (batch, 3, SIDE, SIDE), dtype=torch.uint8, device=tokenizer.device)
    for _ in range(3):
        tokenizer.encode_tensor(images)
    torch.cuda.synchronize()
    times: list[float] = []
    started = time.monotonic()
    while len(times) < 10 or time.monotonic() - started < seconds:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        tokenizer.encode_tensor(images)
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1000)
    return batch / statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--networks", nargs="+", default=["f8", "f16", "vqgan-f16"], choices=list(PRESETS))
    parser.add_argument("--seconds", type=float, default=3.0)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device: nothing to measure")
        return
    rows: list[dict[str, Any]] = []
    modes: list[tuple[Numerics, bool]] = [("fp32", False), ("bf16", False), ("bf16", True)]
    for name in arguments.networks:
        base = random_tokenizer(name)
        batch = 32 if name.startswith("vqgan") else 256
        for numerics, compiled in modes:
            rate = images_per_second(base.on("cuda", numerics, compiled), batch, arguments.seconds)
            weights = parameter_count(base.network.encoder)
            row = {"network": name, "encoder_weights": weights, "numerics": numerics, "compiled": compiled}
            rows.append({**row, "batch": batch, "images_per_second": round(rate, 1)})
            print(json.dumps(rows[-1]), flush=True)
            if arguments.out:
                arguments.out.write_text(json.dumps({"device": torch.cuda.get_device_name(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
