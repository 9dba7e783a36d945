"""Large images through conv tokenizers: memory, time, and whether tiles have the ids of the whole.

    python benchmarks/tiling.py [--sides 1024 2048 4096]

The picture is a photograph of scikit-image, mirrored until it is large enough. Two tokenizers: `default`, whose tiles
have a halo, and an untrained `patch-f8`. Every row is a process of its own; memory is how much its peak rises while it
encodes and decodes, so the image itself is not in it. `untiled` is the same with one tile as large as the image.
`different` counts ids (and, for `default`, pixels) that differ from those without tiles; for `patch-f8` from those of
squares of 128 pixels that are cut by hand, shuffled, and encoded 33 at a time.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

import numpy as np
import skimage.data
import torch
from numpy.typing import NDArray

from tokenshard.quantizers.lookup import Lookup
from tokenshard.tokenizers import conv
from tokenshard.tokenizers.conv import ConvVQ
from tokenshard.tokenizers.conv_network import AutoEncoder, to_signed
from tokenshard.tokenizers.folder import load_tokenizer
from tokenshard.tokenizers.packaged import saved_tokenizer
from tokenshard.tokenizers.trained import ConvConfig
from tokenshard.training.recipe import PRESETS

NAMES = ("default", "default untiled", "patch-f8")
MOST_UNTILED = 2048


def picture(side: int) -> NDArray[np.uint8]:
    """uint8 [side, side, 3]."""
    photo = skimage.data.coffee()
    height, width = photo.shape[:2]
    return np.pad(photo, ((0, max(0, side - height)), (0, max(0, side - width)), (0, 0)), mode="reflect")[:side, :side]


def patch_local(image: NDArray[np.uint8]) -> ConvVQ:
    """Untrained, with codes where latents of the image are."""
    torch.manual_seed(0)
    network = PRESETS["patch-f8"]
    modules = AutoEncoder(network)
    with torch.no_grad():
        pixels = torch.from_numpy(image[:512, :512].copy()).permute(2, 0, 1)[None]
        z = modules.encoder(to_signed(pixels)).movedim(1, -1).reshape(-1, network.dim)
    codes = Lookup.of([z[torch.randperm(len(z))[:1024]]])
    config = ConvConfig(network=network, quantizer="lookup", quantizer_options=codes.options())
    return ConvVQ(config, modules, codes)


def peak() -> float:
    """MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(name: str, side: int) -> dict[str, Any]:
    """One row, on one thread."""
    torch.set_num_threads(1)
    image = picture(side)
    tokenizer = patch_local(image) if name == "patch-f8" else load_tokenizer(saved_tokenizer("default"))
    tokenizer.decode(tokenizer.encode(image[None, :64, :64]))
    if name == "default untiled":
        conv.DECODE_PIXELS = side * side
    row: dict[str, Any] = {"name": name, "side": side}
    before, started = peak(), time.process_time()
    ids = tokenizer.encode(image[None])
    row |= {"encode MiB": round(peak() - before), "encode CPU s": round(time.process_time() - started, 1)}
    before, started = peak(), time.process_time()
    pixels = tokenizer.decode(ids, (side, side))
    row |= {"decode MiB": round(peak() - before), "decode CPU s": round(time.process_time() - started, 1)}
    if name == "default" and side <= MOST_UNTILED:
        conv.DECODE_PIXELS = side * side
        row["different ids"] = int((tokenizer.encode(image[None]) != ids).sum())
        error = np.abs(tokenizer.decode(ids, (side, side)).astype(int) - pixels)
        row |= {"different pixels": float((error > 0).mean()), "largest": int(error.max())}
    if name == "patch-f8":
        row["different ids"] = int((shuffled(tokenizer, image) != ids[0, 0]).sum())
    return row


def shuffled(tokenizer: ConvVQ, image: NDArray[np.uint8], square: int = 128, batch: int = 33) -> NDArray[Any]:
    """Ids of squares in random order, put together again."""
    count, cells = len(image) // square, square // 8
    squares = image.reshape(count, square, count, square, 3).swapaxes(1, 2).reshape(-1, square, square, 3)
    order = np.random.default_rng(0).permutation(len(squares))
    ids = np.empty((len(squares), cells, cells), np.uint16)
    for start in range(0, len(squares), batch):
        some = order[start : start + batch]
        ids[some] = tokenizer.encode(squares[some])[:, 0]
    return ids.reshape(count, count, cells, cells).swapaxes(1, 2).reshape(count * cells, -1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[1024, 2048, 4096], help="multiples of 128")
    parser.add_argument("--row", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.row:
        print(json.dumps(measure(arguments.row[0], int(arguments.row[1]))))
        return
    for name in NAMES:
        for side in arguments.sides:
            if name != "default untiled" or side <= MOST_UNTILED:
                subprocess.run([sys.executable, __file__, "--row", name, str(side)], check=True)


if __name__ == "__main__":
    main()
