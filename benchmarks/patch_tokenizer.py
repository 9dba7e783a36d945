"""The patch tokenizer on one core: images a second, quality and entropy of its ids, by patch size and codebook size.

    python benchmarks/patch_tokenizer.py [FOLDER] [--json]

Without a folder the codebook is fitted on three photographs of scikit-image and judged on another one (astronaut), cut
into 224 x 224 squares. With a folder, every fourth image found below it is held out. Encoding and decoding are CPU
seconds of one thread, the least of three runs; fitting is wall time with all cores.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import skimage.data
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from tokenshard.report.quality import order0_entropy, psnr
from tokenshard.tokenizers.patch import PatchTokenizer

SIDE = 224
HELD_OUT = 64
Images = NDArray[np.uint8]


def squares(image: Images) -> list[Images]:
    """Whole 224 x 224 squares of an image."""
    return [
        image[top : top + SIDE, left : left + SIDE]
        for top in range(0, image.shape[0] - SIDE + 1, SIDE)
        for left in range(0, image.shape[1] - SIDE + 1, SIDE)
    ]


def photos() -> tuple[list[Images], Images]:
    """Training and held-out squares of photographs that ship with scikit-image."""
    data = skimage.data
    training = [tile for photo in (data.coffee(), data.chelsea(), data.rocket()) for tile in squares(photo)]
    return training, np.stack(squares(data.astronaut()))


def folder(path: Path) -> tuple[list[Images], Images]:
    """Training and held-out squares of the images below a folder, one from each."""
    found = []
    for file in sorted(path.rglob("*")):
        try:
            with Image.open(file) as image:
                found += squares(np.asarray(image.convert("RGB")))[:1]
        except (UnidentifiedImageError, IsADirectoryError):
            continue
    return [image for n, image in enumerate(found) if n % 4], np.stack(found[::4][:HELD_OUT])


def cpu_seconds(action: Callable[[], object]) -> float:
    action()
    times = []
    for _ in range(3):
        start = time.process_time()
        action()
        times.append(time.process_time() - start)
    return min(times)


def measure(training: list[Images], held_out: Images, side: int, k: int) -> dict[str, float]:
    start = time.perf_counter()
    tokenizer = PatchTokenizer.fit(training, 0, patch=(side, side), k=k)
    seconds = time.perf_counter() - start
    ids = tokenizer.encode(held_out)
    return {
        "patch": side,
        "k": tokenizer.spec.levels[0],
        "fit_seconds": round(seconds, 1),
        "encode_images_per_s": round(len(held_out) / cpu_seconds(lambda: tokenizer.encode(held_out))),
        "decode_images_per_s": round(len(held_out) / cpu_seconds(lambda: tokenizer.decode(ids))),
        "psnr_training": round(psnr(np.stack(training), tokenizer.decode(tokenizer.encode(np.stack(training)))), 2),
        "psnr_held_out": round(psnr(held_out, tokenizer.decode(ids)), 2),
        "entropy_bits": round(order0_entropy(ids), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    training, held_out = folder(options.folder) if options.folder else photos()
    PatchTokenizer.fit(training[:1], 0, k=8).encode(held_out[:1])  # compile
    rows = [measure(training, held_out, side, k) for side in (4, 8) for k in (256, 1024, 4096)]
    if options.json:
        print(json.dumps(rows))
        return
    print(
        f"{len(training)} training and {len(held_out)} held-out images, {SIDE} x {SIDE}; load {os.getloadavg()[0]:.1f}"
    )
    print("  ".join(rows[0]))
    for row in rows:
        print("  ".join(f"{value:>{len(name)}}" for name, value in row.items()))


if __name__ == "__main__":
    main()
