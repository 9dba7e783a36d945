"""Twice the resolution by the VQ-VAE of arXiv:2504.14372, beside aligned bicubic interpolation, in metres.

    python benchmarks/grid_vqvae.py --data FOLDER [--widths 32,64,128,256 --codes 512 --dim 256] [--steps 1000]

It learns level 1 from level 2 of shards of the four regions of grid_tokens.py, as `train grid-sr` does, from random
tiles of 32 x 32 coarse cells. The table is of such tiles of the South China Sea, each upscaled alone by all methods;
structural similarity takes the range of a tile, as the paper does. Below it, widths at 95 % from tiles of Middle
America centre: the paper's z times a deviation by place in the tile, and split conformal of the same errors, both in
shares of the range of the coarse tile. Classes are fifths of these ranges, equal in number where the widths come from.
All figures are printed, whatever they show.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from grid_calibration import converted, regions
from gridding.vqvae import SIDE, VQVAE, Shape, ranges, train, widths_of
from numpy.typing import NDArray

from tokenshard.grids.conformal import Calibration, Coverage, Tile, calibrate, coverage, paper_widths
from tokenshard.shards.dataset import open_dataset
from tokenshard.spec.upscaling import GridLevelsSpec
from tokenshard.training.gain import gain_over
from tokenshard.training.grid_pairs import Pair, least_squares, read_pairs
from tokenshard.training.grid_sr import figures
from tokenshard.training.models.upscaler import Upscaler, UpscalerConfig

TRAINED, CALIBRATED, TESTED = ("guinea", "arabia", "atlantic", "america-west"), ("america-centre",), ("china",)
ALPHA = 0.05
CLASSES = 5
CPU = torch.device("cpu")


def read(data: Path, scratch: Path) -> dict[str, list[Pair]]:
    """Levels 2 and 1 of the regions, from shards that are made where they are not there."""
    found = {}
    for part, names in (("train", TRAINED), ("calibrate", CALIBRATED), ("test", TESTED)):
        folder = scratch / part
        if not folder.exists():
            converted(regions(data), names, folder, "--bound", "abs:0.5", "--levels", "1,2")
        found[part] = read_pairs(open_dataset(folder), GridLevelsSpec(path=str(folder)))
    return found


def cut(pairs: Sequence[Pair]) -> list[Pair]:
    """Whole tiles in which every cell has a value."""

    def tiles() -> Iterator[Pair]:
        for pair in pairs:
            rows, columns = (size // SIDE for size in pair.coarse.shape)
            for number in range(rows * columns):
                top, left = (SIDE * place for place in divmod(number, columns))
                fine = np.s_[2 * top : 2 * (top + SIDE), 2 * left : 2 * (left + SIDE)]
                yield Pair(pair.coarse[top : top + SIDE, left : left + SIDE], pair.fine[fine], pair.there[fine])

    return [tile for tile in tiles() if tile.there.all()]


@torch.inference_mode()
def errors(module: VQVAE, tiles: Sequence[Pair]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Errors [n, 64, 64] in metres, and the ranges [n] of the coarse tiles."""
    coarse = [torch.from_numpy(tile.coarse)[None, None] for tile in tiles]
    made = np.stack([module(one)[0, 0].numpy().astype(np.float64) for one in coarse])
    spans = np.array([float(ranges(one)[1]) for one in coarse])
    return made - np.stack([tile.fine for tile in tiles]), spans


@torch.inference_mode()
def codes_used(module: VQVAE, tiles: Sequence[Pair]) -> tuple[int, float]:
    """Different codes of tiles, and bits of one by how often each occurs."""
    coarse = torch.stack([torch.from_numpy(tile.coarse)[None] for tile in tiles])
    low, span = ranges(coarse)
    counts = torch.bincount(module.quantizer.encode(module.encoder((coarse - low) / span)).flatten()).double()
    share = counts[counts > 0] / counts.sum()
    return len(share), float(-(share * share.log2()).sum())


def print_coverage(name: str, inside: list[NDArray[np.bool_]], of: list[NDArray[np.int64]], widths: float) -> None:
    whole = coverage(inside)
    parts = [coverage([ok[own == i] for ok, own in zip(inside, of, strict=True)]) for i in range(CLASSES)]
    shares = " ".join(_share(part) for part in parts)
    print(f"| {name} | {whole.share:.3f} [{whole.low:.3f}, {whole.high:.3f}] | {shares} | {widths:.1f} |")


def _share(part: Coverage) -> str:
    return f"{part.share:.2f}" if part.num_cells else "-"


def compare_widths(module: VQVAE, known: list[Pair], test: list[Pair]) -> None:
    """Coverage of the paper's widths and of conformal ones, calibrated alike."""
    error, span = errors(module, known)
    calibrating = [Tile(e.reshape(-1), np.full(e.size, s)) for e, s in zip(error, span, strict=True)]
    by_place = paper_widths(error / span[:, None, None], ALPHA).reshape(-1)
    error, span = errors(module, test)
    tiles = [Tile(e.reshape(-1), np.full(e.size, s)) for e, s in zip(error, span, strict=True)]
    fifths = calibrate(calibrating, ALPHA, CLASSES)
    group = [fifths.classes(tile.roughness) for tile in tiles]
    print(f"\n| widths at {1 - ALPHA:.0%} | coverage of tiles | smooth to rough | mean width m |\n|---|---|---|---|")
    inside = [np.abs(tile.error) <= by_place * tile.roughness for tile in tiles]
    print_coverage("paper: z times deviation", inside, group, 2 * float(by_place.mean() * span.mean()))
    methods: dict[str, Calibration] = {"split conformal": calibrate(calibrating, ALPHA, 1), "by class": fifths}
    for name, made in methods.items():
        width = 2 * float(np.mean([made.widths(tile.roughness).mean() for tile in tiles]))
        print_coverage(name, [made.inside(tile) for tile in tiles], group, width)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the grids")
    parser.add_argument("--scratch", type=Path, help="folder for the shards, kept and used again")
    parser.add_argument("--widths", type=widths_of, default=Shape.widths, help="channels of the encoder")
    parser.add_argument("--codes", type=int, default=Shape.codes, help="of the codebook")
    parser.add_argument("--dim", type=int, default=Shape.dim, help="of a code vector")
    parser.add_argument("--steps", type=int, default=1000, help="of training")
    parser.add_argument("--batch", type=int, default=16, help="tiles of a step")
    parser.add_argument("--lr", type=float, default=1e-3, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the tiles")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        scratch = options.scratch or Path(temporary)
        scratch.mkdir(parents=True, exist_ok=True)
        pairs = read(options.data, scratch)
    linear = Upscaler(UpscalerConfig(width=1, depth=0, level=1, input="elevation"))
    linear.fill(torch.from_numpy(least_squares(pairs["train"], options.seed)).float())
    start = time.process_time()
    shape = Shape(options.widths, options.codes, options.dim)
    module = train(pairs["train"], shape, options.steps, options.batch, options.lr, options.seed)
    spent = time.process_time() - start
    test = cut(pairs["test"])
    rows = {"linear map of 7 x 7 cells": figures(linear, test, CPU), "VQ-VAE": figures(module, test, CPU)}
    print(f"\n| 2' to 1', {len(test)} tiles of {TESTED[0]} | MAE m | RMSE m | SSIM | of bicubic (RMSE) |")
    print("|---|---|---|---|---|")
    bicubic = {name.replace("bicubic_", ""): value for name, value in rows["VQ-VAE"].items() if "bicubic" in name}
    for name, row in {"bicubic, aligned": {**bicubic, "val_rmse_ratio": 1.0}, **rows}.items():
        error, similar = (row[f"val_{what}"] for what in ("mae", "ssim"))
        print(f"| {name} | {error:.2f} | {row['val_rmse']:.2f} | {similar:.4f} | {row['val_rmse_ratio']:.3f} |")
    print(gain_over("bicubic", rows["VQ-VAE"]["val_rmse_ratio"]))
    weights = sum(parameter.numel() for parameter in module.parameters())
    used, bits = codes_used(module, test)
    print(f"{weights:,} weights, {options.steps} steps of {options.batch} tiles, {spent:.0f} CPU s; {used} codes used")
    print(f"{bits / 4:.2f} bits a finer cell by how often codes occur, {math.log2(options.codes) / 4:.2f} as they are")
    compare_widths(module, cut(pairs["calibrate"]), test)
    return 0


if __name__ == "__main__":
    sys.exit(main())
