"""Does the loader keep a GPU busy? A classifier trained from shards, and with one batch that lies on the device.

    python benchmarks/gpu_training.py TOKENS [--sizes small base] [--samples 50000] [--out results.json]

TOKENS is a dataset of 28 x 28 codes with labels, so that a transformer with stride 2 has 196 positions; it is repeated
to `--samples` (through `import`, in its own codec), so that an epoch is long enough to be read from shards. One run of
the package's own loop, bf16 and compiled, with all augmentation: blocks of steps take their batches in turn from the
loader and from memory of the device. A block ends when the device has done its work. The first of each kind, which
compiles, is not counted; the ratio is that of the medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accuracy.tokens import codes_of, labels_of, rewrite

from tokenshard.spec.job import TrainClassifier, build_job
from tokenshard.store import Store
from tokenshard.training.classifier import ClassifierTask
from tokenshard.training.codes import read_labels
from tokenshard.training.loop import Batches, Learning
from tokenshard.training.models.classifier import ClassifierConfig, TokenClassifier
from tokenshard.training.setting import ModelSetting, device_of

WANTED = 0.97


class InTurn:
    """Batches of a loader and one that stays on the device, in blocks of steps that are timed."""

    def __init__(self, loader: Batches, device: torch.device, steps: int) -> None:
        self._loader, self._device, self._steps = loader, device, steps
        self.global_batch_size = loader.global_batch_size
        self.rates: dict[str, list[float]] = {"loader": [], "resident": []}
        """steps a second, by block"""

    def epoch_length(self, epoch: int) -> int:
        return self._loader.epoch_length(epoch)

    def state_dict(self) -> dict[str, Any]:
        return self._loader.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._loader.load_state_dict(state)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        batches = self._epochs()
        first = next(batches)
        resident = {name: value.to(self._device) for name, value in first.items() if isinstance(value, torch.Tensor)}
        while True:
            yield from self._block("loader", batches)
            yield from self._block("resident", iter(lambda: resident, None))

    def _epochs(self) -> Iterator[dict[str, Any]]:
        while True:
            yield from self._loader

    def _block(self, kind: str, batches: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        self._wait()
        started = time.perf_counter()
        for _ in range(self._steps):
            yield next(batches)
        self._wait()
        self.rates[kind].append(self._steps / (time.perf_counter() - started))

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def repeated(tokens: Path, samples: int, folder: Path) -> Path:
    """The dataset with its samples repeated to so many."""
    codes, labels = codes_of(tokens), labels_of(tokens)
    order = np.arange(samples) % len(codes)
    rewrite(tokens, codes[order], labels[order], folder)
    return folder


def measure(tokens: Path, size: str, arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Steps a second of both kinds of batches."""
    device = device_of(arguments.device)
    fields = {
        "source": {"path": str(tokens)},
        "output": str(scratch / size),
        "model": {"size": size},
        "batch": arguments.batch,
        "steps": 2 * arguments.block * (arguments.pairs + 1) + 1,
        "precision": "bf16",
        "engine": {"device": arguments.device, "compile": arguments.compile},
        "log": {"every": 10**6, "checkpoint_every": 10**6},
    }
    job = build_job(TrainClassifier, fields)
    setting = ModelSetting(job, device, lambda text: None)
    labels = read_labels(setting.train, job.label, job.classes)
    module = TokenClassifier(ClassifierConfig(encoder=setting.encoder(job.model), classes=labels.classes))
    assert setting.codes.codebooks is not None
    module.encoder.embedding.fill(setting.codes.codebooks)
    batches = InTurn(setting.loader(job.label), device, arguments.block)
    Learning(
        job, ClassifierTask(module, job, None, device), batches, Store(job.output), device, lambda text: None
    ).run()
    rates = {kind: found[1:] for kind, found in batches.rates.items()}
    medians = {kind: statistics.median(found) for kind, found in rates.items()}
    return {
        "size": size,
        "positions": int(np.prod(module.config.encoder.grid)) // module.config.encoder.stride**2,
        "batch": arguments.batch,
        "steps_per_second": rates,
        "images_per_second": {kind: median * arguments.batch for kind, median in medians.items()},
        "ratio": medians["loader"] / medians["resident"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokens", type=Path)
    parser.add_argument("--sizes", nargs="+", default=["small", "base"])
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--block", type=int, default=60, help="steps")
    parser.add_argument("--pairs", type=int, default=3, help="blocks of each kind that count")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        tokens = repeated(arguments.tokens, arguments.samples, Path(scratch) / "tokens")
        for size in arguments.sizes:
            rows.append(measure(tokens, size, arguments, Path(scratch)))
            images = rows[-1]["images_per_second"]
            print(
                f"{size}: {images['loader']:,.0f} images/s from shards, {images['resident']:,.0f} with a resident "
                f"batch, ratio {rows[-1]['ratio']:.3f} (wanted: at least {WANTED})",
                flush=True,
            )
            if arguments.out:
                device = torch.cuda.get_device_name() if arguments.device == "cuda" else arguments.device
                arguments.out.write_text(json.dumps({"device": device, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
