"""Fine-tuning after masked token modeling beside training from scratch, with labels of a tenth of the images.

    python benchmarks/mtm_low_label.py IMAGES [--out FOLDER] [--seeds 3] [--pretrain 1500] [--steps 300]
        [--arms scratch fine-tuned overlap scratch-all]

IMAGES holds `train` and `test`, each with a folder a class; both become tokens of the tokenizer `default`. A fifth of
the training images of every class is held out. On them, and with the labels of the first seed, the rate of each arm is
chosen from the same settings; no test image takes part. The other four fifths are what the masked model learns from,
without labels, once. A seed has labels (a tenth of the training images), samples, augmentations and new weights of its
own.

| arm | |
|---|---|
| scratch | the network of the masked model, untrained; the same steps as fine-tuning |
| overlap | likewise, with the stem that classifiers have by default and masked models cannot have |
| fine-tuned | begun with the encoder of the masked model |
| scratch-all | scratch with as many steps as pre-training and fine-tuning have together |

Runs that are finished are not run again. FOLDER gets `mtm_low_label.json`, with every run, means and differences.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from accuracy.intervals import interval

import tokenshard
from tokenshard.spec.job import LearnJob, TrainClassifier, TrainMtm, build_job
from tokenshard.training.start import train

HELD_OUT, LABELLED = 0.2, 0.1
MASKED_MODEL = {"model": {"size": "micro", "stride": 4, "stem": "patch"}, "decoder": {"depth": 2, "head": "two-level"}}


RATES = (5e-4, 1e-3, 2e-3)
"""Of which one is chosen on held-out images, for each arm."""
ARMS = ("scratch", "fine-tuned", "overlap", "scratch-all")


def write_manifest(images: Path, file: Path, seeds: int) -> None:
    """A table of the training images: which are held out, and which have a label for a seed (`few0`, `few1` …)."""
    total = 0
    with file.open("w", newline="") as table:
        names = ["path", "label", "held", *(f"few{seed}" for seed in range(seeds))]
        writer = csv.DictWriter(table, names, lineterminator="\n")
        writer.writeheader()
        for number, folder in enumerate(sorted(path for path in images.iterdir() if path.is_dir())):
            files = sorted(folder.iterdir())
            order = np.random.default_rng([0, number]).permutation(len(files))
            held, rest = np.split(order, [round(HELD_OUT * len(files))])
            few = [np.random.default_rng([1, seed, number]).permutation(rest) for seed in range(seeds)]
            chosen = [one[: round(LABELLED * len(files))] for one in few]
            for place, path in enumerate(files):
                row = {"path": path.resolve(), "label": folder.name, "held": int(place in held)}
                writer.writerow(row | {f"few{seed}": int(place in chosen[seed]) for seed in range(seeds)})
            total += len(files)
    print(f"{total:,} training images in {file}")


class Runs:
    """All runs below a folder; a finished one is read from there."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.out: Path = options.out
        self.pretrain: int = options.pretrain
        self.steps: int = options.steps
        self.batch: int = options.batch
        self.device: str = options.device

    def masked(self) -> str:
        """The folder of the masked model."""
        output = self.out / "masked"
        source = {"path": str(self.out / "train"), "where": "held == 0", "val_where": "held == 1"}
        fields = {**MASKED_MODEL, "source": source, "steps": self.pretrain, "samples": 16}
        self._run(TrainMtm, output, 0, fields)
        return str(output)

    def classifier(self, arm: str, seed: int, lr: float, held_out: bool) -> float:
        """Top-1, in percent, on held-out training images or on the test images."""
        source: dict[str, Any] = {"path": str(self.out / "train"), "where": f"few{seed} == 1"}
        source |= {"val_where": "held == 1"} if held_out else {"val": str(self.out / "test")}
        fields: dict[str, Any] = {"source": source, "steps": self.steps, "optimizer": {"lr": lr}}
        if arm == "fine-tuned":
            fields["start"] = self.masked()
        else:
            fields["model"] = MASKED_MODEL["model"] | {"stem": "overlap" if arm == "overlap" else "patch"}
        if arm == "scratch-all":
            fields["steps"] = self.pretrain + self.steps
        output = self.out / f"{arm}-{seed}-{lr:g}-{'held-out' if held_out else 'test'}"
        return 100 * self._run(TrainClassifier, output, seed, fields)["val_top1"]

    def chosen(self, arm: str) -> tuple[float, dict[float, float]]:
        """The best rate of an arm on held-out images, and the top-1 of all; of `scratch-all` the rate of `scratch`."""
        found = {lr: self.classifier(arm.removesuffix("-all"), 0, lr, True) for lr in RATES}
        return max(found, key=lambda lr: found[lr]), found

    def _run(self, kind: type[LearnJob], output: Path, seed: int, fields: dict[str, Any]) -> dict[str, float]:
        common = {"output": str(output), "seed": seed, "batch": self.batch, "engine": {"device": self.device}}
        before = time.process_time()
        outcome = train(build_job(kind, {**fields, **common, "log": {"every": 100, "checkpoint_every": 500}}))
        if outcome.steps:
            print(f"{output.name}: {time.process_time() - before:.0f} CPU seconds  {outcome.metrics}", flush=True)
        return outcome.metrics


def convert(options: argparse.Namespace) -> None:
    """Training and test images as tokens of one tokenizer."""
    manifest = options.out / "train.csv"
    if manifest.exists():
        return
    write_manifest(options.images / "train", manifest, options.seeds)
    tokenshard.convert_images(manifest, options.out / "train", tokenizer="default")
    [tokenizer] = (options.out / "train" / "tokenizer").iterdir()
    tokenshard.convert_images(options.images / "test", options.out / "test", tokenizer=str(tokenizer))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--out", type=Path, default=Path("out/mtm_low_label"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pretrain", type=int, default=1500, help="steps of masked token modeling")
    parser.add_argument("--steps", type=int, default=300, help="steps of a classifier")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    if "fine-tuned" not in options.arms:
        parser.error("--arms: fine-tuned is what the others are compared with")
    options.out.mkdir(parents=True, exist_ok=True)
    convert(options)
    runs = Runs(options)
    arms: dict[str, dict[str, Any]] = {}
    for arm in options.arms:
        lr, tried = runs.chosen(arm)
        top1 = [runs.classifier(arm, seed, lr, False) for seed in range(options.seeds)]
        arms[arm] = {"lr": lr, "held_out_top1": tried, "top1": top1, "mean": asdict(interval(top1))}
    for arm, row in arms.items():
        gain = interval(np.subtract(arms["fine-tuned"]["top1"], row["top1"]).tolist())
        row["fine_tuned_above"] = asdict(gain)
        print(f"{arm:12} rate {row['lr']:g}: {interval(row['top1'])} % top-1; fine-tuned is {gain} above")
    report = {"pretrain_steps": options.pretrain, "steps": options.steps, "batch": options.batch, "arms": arms}
    (options.out / "mtm_low_label.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
