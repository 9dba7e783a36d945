"""A tokenizer of grids with a trained network beside those that are fitted in a second, at about the same rates.

    python benchmarks/grid_conv.py --data FOLDER [--steps 3000] [--out FOLDER]

`tokenizer train` on the regions and with the bits of grid_tokens.py (which see): codes of all levels under tables
fitted on the training regions. Fitted tokenizers stand beside it at the step and floor of the networks. All figures are
printed, whatever they show; the exit code is 1 where training failed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from click.testing import CliRunner
from grid_calibration import write
from grid_tokens import MEAN_BYTES, TESTED_ON, TRAINED_ON, Field, Tables, decoded, regions, seams, tile_ids
from skimage.metrics import structural_similarity

from tokenshard.cli.main import cli
from tokenshard.store import Store
from tokenshard.tokenizers.folder import load_tokenizer
from tokenshard.tokenizers.grid import GridTokenizer
from tokenshard.tokenizers.grid_codes import LatticeTokenizer

LOSS = ("--l1", "1", "--l2", "0", "--gradient", "0.5")
RESIDUAL = ("--quantizer", "rvq", "--codes", "256", "--set", "depth=5", "--set", "dropout=0")
NETWORKS = {
    "network, VQ": ("48", "120", "--quantizer", "vq", "--codes", "512"),
    "network, residual VQ": ("16", "12.8", *RESIDUAL),
}
"""Step and floor in metres, and the quantizer."""
FITTED = {
    "fitted, 1 codebook": {"k": 512, "codebooks": 1, "step": 48.0, "floor": 120.0},
    "fitted, 2 codebooks": {"k": 256, "codebooks": 2, "step": 48.0, "floor": 120.0},
    "fitted, 5 codebooks": {"k": 256, "codebooks": 5, "step": 16.0, "floor": 12.8},
}


def trained(source: Path, out: Path, step: str, floor: str, quantizer: list[str], steps: int) -> LatticeTokenizer:
    words = ["tokenizer", "train", str(source), str(out), "--network", "grid-f8", "--step", step, "--floor", floor]
    words += [*quantizer, *LOSS, "--crop", "128", "--batch", "8", "--warmup", "50", "--steps", str(steps)]
    words += ["--held-out", "1", "--log-every", "100", "--device", "cpu"]
    done = CliRunner().invoke(cli, words, catch_exceptions=False)
    print(done.output, file=sys.stderr)
    if done.exit_code:
        raise SystemExit(1)
    found = load_tokenizer(Store(out))
    assert isinstance(found, LatticeTokenizer)
    return found


def row(name: str, tokenizer: LatticeTokenizer, grids: dict[str, Field], spent: float) -> None:
    tables = Tables(tokenizer, [ids for region in TRAINED_ON for ids, _ in tile_ids(tokenizer, grids[region])])
    lapped, _ = seams(tokenizer, grids[TESTED_ON[0]])
    for region in TESTED_ON:
        z = grids[region]
        ids = tile_ids(tokenizer, z)
        bits = 8 * (tables.size([one for one, _ in ids]) + MEAN_BYTES * len(ids)) / z.size
        found = decoded(tokenizer, z)
        error = found - z
        ssim = structural_similarity(z, found, data_range=float(np.ptp(z)))
        jump = f"{lapped:.3f}" if region == TESTED_ON[0] else ""
        print(
            f"| {name} | {region} | {bits:.4f} | {np.abs(error).mean():.1f} | {np.sqrt((error**2).mean()):.1f} | "
            f"{np.abs(error).max():,.0f} | {ssim:.4f} | {jump} | {spent:.0f} |",
            flush=True,
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the grids")
    parser.add_argument("--out", type=Path, help="folder for tokenizers, kept")
    parser.add_argument("--steps", type=int, default=3000, help="of training")
    parser.add_argument("--only", help="networks whose name contains this")
    options = parser.parse_args()
    grids = regions(options.data)
    with tempfile.TemporaryDirectory() as scratch:
        out = options.out or Path(scratch)
        (out / "src").mkdir(parents=True, exist_ok=True)
        for number, name in enumerate(TRAINED_ON):
            write(out / "src" / f"{number}.nc", grids[name].astype(np.float32))
        print("| tokens | region | bits a cell | MAE m | RMSE m | largest m | SSIM | seams | CPU s |")
        print("|---|---|---|---|---|---|---|---|---|")
        for name, (step, floor, *quantizer) in NETWORKS.items():
            if options.only and options.only not in name:
                continue
            start = time.process_time()
            made = trained(out / "src", out / name.replace(", ", "-"), step, floor, quantizer, options.steps)
            row(name, made, grids, time.process_time() - start)
        for name, how in FITTED.items():
            start = time.process_time()
            fitted = GridTokenizer.fit([grids[region] for region in TRAINED_ON], 0, **how)
            row(name, fitted, grids, time.process_time() - start)
    return 0


if __name__ == "__main__":
    sys.exit(main())
