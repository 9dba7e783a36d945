"""Gaps of a grid filled by a masked model of tokens, beside harmonic interpolation: squares that are removed and known.

    python benchmarks/grid_gaps.py --data FOLDER [--scratch FOLDER] [--steps 1200] [--holes 40] [--side 32]

`convert grids`, `train mtm` and `grid fill --check` through the command line. The model learns from the four regions of
grid_tokens.py, each turned and mirrored (a sea has no up), and fills squares of the South China Sea. Its tokens are
means alone: `floor` is above any relief. Gains and shapes say what the means *around* a patch leave open, so beside a
hole they tell of it; a model that has seen them relies on what it lacks when it fills. All figures are printed,
whatever they show.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from grid_calibration import converted, regions, tokenshard
from numpy.typing import NDArray

TRAINED, TESTED = ("guinea", "arabia", "atlantic", "america-west"), "china"
TOKENIZER = "grid:8x8,k=2,codebooks=1,step=32,floor=30000"
TILE, CROP = 128, 8
WHOLE = f"level == 1 and height >= {8 * CROP} and width >= {8 * CROP}"
"""Tiles that hold a crop."""
MODEL = ("--embedding", "learned", "--size", "micro", "--stride", "1", "--lr", "2e-3", "--set", "optimizer.ema=0.99")
MASK = ("--set", "mask.low=0.1", "--set", "mask.mean=0.3", "--set", "mask.drop=0.1")
"""Of a window around a hole little is hidden."""


def turned(name: str, z: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """A region in its eight positions."""
    found = {}
    for number in range(8):
        one = np.rot90(z, number % 4)
        found[f"{name}-{number}"] = np.ascontiguousarray(one if number < 4 else one[:, ::-1])
    return found


def datasets(data: Path, scratch: Path) -> tuple[Path, Path]:
    """Tokens to learn from, and cells and tokens of the sea; made where they are not there."""
    train, sea = scratch / "train", scratch / "sea"
    grids: dict[str, NDArray[np.float32]] = {} if sea.exists() else regions(data)
    tile = ("--tile", str(TILE))
    if not train.exists():
        many = {key: one for name in TRAINED for key, one in turned(name, grids[name]).items()}
        converted(many, tuple(many), train, "--tokenizer", TOKENIZER, "--bound", "none", *tile)
    if not sea.exists():
        (tokenizer,) = (train / "tokenizer").iterdir()
        converted(grids, (TESTED,), sea, "--tokenizer", str(tokenizer), "--bound", "abs:0.5", *tile)
    return train, sea


def trained(train: Path, sea: Path, out: Path, steps: int, batch: int, seed: int) -> dict[str, Any]:
    words = ["--data", str(train), "--val", str(sea), "--where", WHOLE, "--val-where", WHOLE]
    words += ["--crop", f"{CROP}x{CROP}", *MODEL, *MASK, "--samples", "0", "--steps", str(steps), "--batch", str(batch)]
    words += ["--checkpoint-every", str(max(1, steps // 4)), "--seed", str(seed), "--device", "cpu", "--quiet"]
    found: dict[str, Any] = tokenshard("train", "mtm", *words, str(out))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the grids")
    parser.add_argument("--scratch", type=Path, help="folder for datasets and the model, kept and used again")
    parser.add_argument("--steps", type=int, default=1200, help="of training")
    parser.add_argument("--batch", type=int, default=32, help="tiles of a step")
    parser.add_argument("--holes", type=int, default=40, help="squares that are removed")
    parser.add_argument("--side", type=int, default=32, help="cells of a side of a square")
    parser.add_argument("--seed", type=int, default=0, help="of the model and of the places")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        scratch = options.scratch or Path(temporary)
        scratch.mkdir(parents=True, exist_ok=True)
        train, sea = datasets(options.data, scratch)
        model, start = scratch / f"masked-{options.steps}", time.monotonic()
        figures = trained(train, sea, model, options.steps, options.batch, options.seed)
        spent = time.monotonic() - start
        print(f"{figures['val_bits_per_token']:.3f} bits an id of {TESTED}, {spent:.0f} s of training")
        words = ["--check", str(options.holes), "--hole", str(options.side), "--seed", str(options.seed)]
        found = tokenshard("grid", "fill", str(model), str(sea), *words)
    print(f"\n| {found['holes']} squares of {found['side']} cells | MAE m | RMSE m |\n|---|---|---|")
    for name in ("harmonic", "model"):
        print(f"| {name} | {found[f'{name}_mae']:.1f} | {found[f'{name}_rmse']:.1f} |")
    print(found["verdict"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
