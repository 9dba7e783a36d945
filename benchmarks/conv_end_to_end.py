"""Images/s of conv networks through `convert`, beside the encoder alone and a writer of one file an image.

    python benchmarks/conv_end_to_end.py [--networks f8 f16] [--device cuda] [--images 20000] [--out results.json]

Weights are random: speed does not depend on them. JPEG files of 256x256 are cut out of the photographs of scikit-image.
`encode`: batches that are on the device already, as in conv_gpu.py. `convert`: two conversions, of half the files and
of all; the rate is that of the second half, so that start-up, planning, pilot and compilation are not counted (the
whole second run stands beside it). `one_file_an_image`: decode, encode a batch of one, write a .npy, as scripts around
tokenizers do.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conv_gpu import CODES, random_tokenizer
from PIL import Image

import tokenshard
from tokenshard.store import Store
from tokenshard.tokenizers.conv import ConvVQ
from tokenshard.tokenizers.folder import save_tokenizer
from tokenshard.tokenizers.trained import Numerics
from tokenshard.training.recipe import PRESETS


def make_files(folder: Path, count: int, side: int) -> None:
    """``count`` JPEG files below ``folder``, windows of photographs at places drawn from a seed."""
    import skimage.data

    photos = [getattr(skimage.data, name)() for name in ("astronaut", "chelsea", "coffee", "rocket")]
    draw = np.random.default_rng(0)
    folder.mkdir(parents=True)

    def make(number: int, top: int, left: int) -> None:
        photo = photos[number % len(photos)]
        Image.fromarray(photo[top : top + side, left : left + side]).save(folder / f"{number:07d}.jpg", quality=90)

    edges = [photos[number % len(photos)].shape[:2] for number in range(count)]
    corners = [[int(draw.integers(0, edge - side + 1)) for edge in both] for both in edges]
    with ThreadPoolExecutor() as pool:
        list(pool.map(make, range(count), *zip(*corners, strict=True)))


def linked(folder: Path, count: int, other: Path) -> None:
    """The first ``count`` files of a folder in another one."""
    other.mkdir()
    for file in sorted(folder.iterdir())[:count]:
        os.link(file, other / file.name)


def encode_alone(tokenizer: ConvVQ, batch: int, side: int, seconds: float) -> float:
    """Images/s of batches on the device."""
    images = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8, device=tokenizer.device)
    for _ in range(3):
        tokenizer.encode_tensor(images).cpu()
    started, batches = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        tokenizer.encode_tensor(images).cpu()  # waits for the device
        batches += 1
    return batches * batch / (time.perf_counter() - started)


def one_file_an_image(tokenizer: ConvVQ, files: list[Path], out: Path) -> float:
    """Images/s of a loop that writes a .npy an image."""
    out.mkdir()
    started = 0.0
    for number, file in enumerate([files[0], *files]):
        if number == 1:  # the first call prepares kernels
            started = time.perf_counter()
        with Image.open(file) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        np.save(out / f"{file.stem}.npy", tokenizer.encode(pixels[None])[0])
    return len(files) / (time.perf_counter() - started)


def through_convert(
    saved: Path, folders: list[Path], out: Path, job: dict[str, Any], count: int
) -> tuple[float, float]:
    """Images/s of the second half of the files, and of all with start-up; ``folders``: half the files, and all."""
    seconds = []
    for number, folder in enumerate(folders):
        started = time.perf_counter()
        tokenshard.convert_images(folder, out / str(number), tokenizer=str(saved), **job)
        seconds.append(time.perf_counter() - started)
    return (count - count // 2) / max(seconds[1] - seconds[0], 1e-9), count / seconds[1]


def measure(name: str, arguments: argparse.Namespace, root: Path, folders: list[Path]) -> dict[str, Any]:
    """The rates of one network."""
    base = random_tokenizer(name)
    save_tokenizer(base, Store(root / name), "")
    numerics: Numerics = arguments.numerics
    tokenizer = base.on(arguments.device, numerics, arguments.compile)
    engine = {"kind": "local", "workers": arguments.workers, "decode_threads": arguments.decode_threads}
    engine |= {"batch_size": arguments.batch, "batch_bytes": arguments.batch * 3 * arguments.side**2}
    job = {"numerics": numerics, "device": arguments.device, "compiled": arguments.compile, "engine": engine}
    alone = encode_alone(tokenizer, arguments.batch, arguments.side, arguments.seconds)
    rate, whole = through_convert(root / name, folders, root / f"{name}-tokens", job, arguments.images)
    files = sorted(folders[0].iterdir())[: arguments.single]
    single = one_file_an_image(base.on(arguments.device, numerics), files, root / f"{name}-npy")
    return {
        "network": name,
        "numerics": numerics,
        "compiled": arguments.compile,
        "encode": round(alone, 1),
        "convert": round(rate, 1),
        "convert_with_start": round(whole, 1),
        "one_file_an_image": round(single, 1),
        "convert_of_encode": round(rate / alone, 3),
        "convert_of_one_file_an_image": round(rate / single, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--networks", nargs="+", default=["f8", "f16"], choices=list(PRESETS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--numerics", default="bf16", choices=["fp32", "bf16", "int8"])
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--single", type=int, default=1000, help="images of the writer of one file an image")
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--decode-threads", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=3.0)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        folders = [root / "half", root / "all"]
        make_files(folders[1], arguments.images, arguments.side)
        linked(folders[1], arguments.images // 2, folders[0])
        for name in arguments.networks:
            rows.append(measure(name, arguments, root, folders))
            print(json.dumps(rows[-1]), flush=True)
    if arguments.out:
        device = torch.cuda.get_device_name() if arguments.device == "cuda" else arguments.device
        facts = {"device": device, "side": arguments.side, "images": arguments.images, "codes": CODES}
        arguments.out.write_text(json.dumps({**facts, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
