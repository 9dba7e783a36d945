"""Accuracy against bytes: tokens beside pixels of the same budget, each as good as its bytes allow.

    python benchmarks/storage_accuracy.py IMAGES --small [--out FOLDER]
    python benchmarks/storage_accuracy.py IMAGES --device cuda [--tokenizers FOLDER …] [--minutes 10]

IMAGES holds `train` and `test`, each with a folder a class. All arms train the same transformer, with the same steps,
batches, optimizer and averaging; only the stem differs. Test images go through what the training images went through.

| arm | what is stored |
|---|---|
| original | the files |
| fewer images | some of the files, equally many of each class |
| JPEG, shared-table JPEG, WebP | all images, smaller and at lower quality, in one file; where nothing fits, fewer |
| tokens | shards; where they do not fit, of fewer images |
| tokens to pixels | the same and the decoder: images decoded from them train the model of pixels |
| tokens + MTM | the same; masked token modeling on them comes before |
| tokens + MTM + TokenAdapt | the same and a token adapter, which augments both |
| shuffled | tokens whose positions, or labels, were shuffled: the second must be at chance |

Counted are the bytes of files: shards, entropy tables, code vectors (float16), images with labels, shared tables.
Tokenizers are fitted on the training images, without labels; --tokenizers may be folders of trained ones. Settings
(side and quality, tokenizer) are chosen on a tenth of the training images, never on test images. At each budget the
tokens, the pixel arm that was best there and the one that was best on test images run with all seeds, the others with
--few-seeds. Tokens are compared with the latter.

Runs that are finished are not run again; `--minutes` stops in time, and reports what is there. FOLDER gets
`storage_accuracy.csv`, `storage_accuracy.json` and `storage_accuracy.png`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from accuracy.arms import (
    ADAPTED,
    DECODED,
    MASKED,
    ORIGINAL,
    PIXELS,
    SHUFFLED_LABELS,
    SHUFFLED_POSITIONS,
    TOKENS,
    Arms,
)
from accuracy.images import read_images
from accuracy.report import best_pixels, top1, write
from accuracy.training import Recipe
from accuracy.workers import Workers

from tokenshard.training.models.vit import SIZES

SMALL = Recipe(
    "micro",
    4,
    steps=400,
    pretrain=800,
    adapter=32,
    batch=64,
    cutmix=0.0,
    lr=2e-3,
    ema=0.99,
    device="cpu",
    precision="fp32",
)
FULL = Recipe(
    "tiny",
    8,
    steps=6000,
    pretrain=12000,
    adapter=128,
    batch=256,
    cutmix=1.0,
    lr=1e-3,
    ema=0.999,
    device="cuda",
    precision="bf16",
)
TOKENIZERS = ["patch:4x4,k=512", "patch:4x4,k=64", "patch:8x8,k=128"]


def deciding_arms(workers: Workers, budgets: list[float]) -> dict[float, str]:
    """The pixel arm of each budget that was best on held-out training images."""
    asked = [(arm, budget) for budget in budgets for arm in (TOKENS, *PIXELS)]
    found: dict[float, dict[str, float]] = {budget: {} for budget in budgets}
    for (arm, budget), choice in zip(asked, workers.results(("choice", one) for one in asked), strict=True):
        if choice is not None and arm in PIXELS:
            found[budget][arm] = choice.held_out_top1
    return {budget: max(known, key=lambda arm: known[arm]) for budget, known in found.items()}


def runs(deciding: dict[float, str], seeds: int, few_seeds: int) -> Iterator[tuple[str, float, int]]:
    """Arm, budget and seed of all runs, what decides first."""
    for seed in range(seeds):
        yield ORIGINAL, 1.0, seed
        for budget, pixel_arm in deciding.items():
            yield from ((arm, budget, seed) for arm in (MASKED, TOKENS, pixel_arm))  # the longest first
    for seed in range(few_seeds):
        yield SHUFFLED_LABELS, max(deciding), seed
        yield SHUFFLED_POSITIONS, max(deciding), seed
        for arm in (*PIXELS, DECODED, ADAPTED):
            yield from ((arm, budget, seed) for budget, pixel_arm in deciding.items() if arm != pixel_arm)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--out", type=Path, default=Path("out/storage_accuracy"))
    parser.add_argument("--small", action="store_true", help="a transformer of 0.5 M weights, few steps")
    parser.add_argument("--device", default=None, help="[default: cpu with --small, else cuda]")
    parser.add_argument("--side", type=int, default=32, help="pixels along a side of what the model sees")
    parser.add_argument(
        "--budgets", type=float, nargs="+", default=[0.1, 0.05, 0.01], help="shares of the original bytes"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--few-seeds", type=int, help="of arms that decide nothing [default: 1 with --small, else all]")
    parser.add_argument("--size", choices=list(SIZES), help="of the transformer")
    parser.add_argument("--processes", type=int, default=1, help="runs at a time")
    parser.add_argument("--steps", type=int, help="of a classifier; masked models have twice as many, choices half")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--ema", type=float, help="decay of the averaged weights")
    parser.add_argument("--cutmix", type=float, help="its alpha; 0: off")
    parser.add_argument("--tokenizers", nargs="+", default=TOKENIZERS, help="what `convert images --tokenizer` takes")
    parser.add_argument("--limit", type=int, nargs=2, metavar=("TRAIN", "TEST"), help="only so many images")
    parser.add_argument(
        "--minutes",
        type=float,
        default=float("inf"),
        help="after which no further run begins; what is finished is reported",
    )
    options = parser.parse_args()
    recipe = _recipe(options)
    train, test = read_images(options.images / "train"), read_images(options.images / "test")
    if train.classes != test.classes:
        parser.error("train and test have different classes")
    if options.limit:
        train, test = train.first(options.limit[0]), test.first(options.limit[1])
    options.out.mkdir(parents=True, exist_ok=True)
    claim(options.out, {"recipe": asdict(recipe), "side": options.side, "tokenizers": options.tokenizers})
    began, until = time.monotonic(), time.monotonic() + 60 * options.minutes
    print(f"{len(train):,} training images, {train.bytes:,} bytes; {len(test):,} test images", flush=True)
    choice_steps = max(1, recipe.steps // 2)
    make = partial(Arms, train, test, options.side, recipe, choice_steps, options.tokenizers, options.out)
    workers = Workers(make, options.processes)
    deciding = deciding_arms(workers, sorted(options.budgets, reverse=True))
    rows: list[dict[str, Any]] = []

    def run(wanted: Iterable[tuple[str, float, int]]) -> int:
        found = [row for row in workers.results(("run", (*one, until)) for one in wanted) if row is not None]
        rows.extend(found)
        return len(found)

    few_seeds = options.few_seeds or (1 if options.small else options.seeds)
    run(runs(deciding, options.seeds, few_seeds))
    for budget in deciding:  # another arm may have turned out to be better, and again with all its seeds
        while (best := best_pixels(rows, budget)) is not None:
            missing = set(range(options.seeds)) - set(top1(rows, best, budget))
            if not run((best, budget, seed) for seed in sorted(missing)):
                break
    workers.close()
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    facts: dict[str, Any] = {
        "recipe": asdict(recipe),
        "train": len(train),
        "test": len(test),
        "original_bytes": train.bytes,
        "cpu_seconds": sum(one.ru_utime + one.ru_stime for one in used),
        "wall_seconds": time.monotonic() - began,
        "load": os.getloadavg()[0],
    }
    write(rows, facts, options.out)


def claim(out: Path, said: dict[str, Any]) -> None:
    """Ends the program where the folder holds runs of another recipe."""
    file, text = out / "recipe.json", json.dumps(said, indent=1) + "\n"
    if file.exists() and file.read_text() != text:
        raise SystemExit(f"{file}: runs with other options lie here; give those, or another --out")
    file.write_text(text)


def _recipe(options: argparse.Namespace) -> Recipe:
    fields = asdict(SMALL if options.small else FULL)
    if options.steps:
        fields |= {"steps": options.steps, "pretrain": 2 * options.steps}
    given = {name: getattr(options, name) for name in ("batch", "size", "ema", "cutmix")}
    fields |= {name: value for name, value in given.items() if value is not None}
    if options.device:
        fields["device"] = options.device
        fields["precision"] = "bf16" if options.device.startswith("cuda") else "fp32"
    return Recipe(**fields)


if __name__ == "__main__":
    main()
