"""Rate and distortion of tokenizers beside JPEG, WebP and AVIF: bits of files on disk against PSNR and SSIM.

    python benchmarks/rate_distortion.py --images KODAK [--base FOLDER] [--out OUT] [--tokenizers default patch:8x8 …]

For each tokenizer a dataset is made below OUT of the images of --base; then the measured images are appended to it, as
by `tokenshard convert images … --append`. Their bits are those of the shards this adds: ids, keys, sizes, checksums and
footers. Tokenizer and entropy model, which were fitted on other images and do not grow with the dataset, stand in a
column of their own. Without --base the dataset is made of the measured images alone, and its entropy model counts.
Rivals are written by Pillow, one file an image, at several qualities; their bits are those of the files.
Writes OUT/rate_distortion.csv and OUT/rate_distortion.png.
"""

from __future__ import annotations

import argparse
import csv
import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import tokenshard
from tokenshard.engine.convert import Mode
from tokenshard.report.quality import psnr
from tokenshard.report.similarity import ssim

Pixels = NDArray[np.uint8]
RIVALS: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "JPEG": ("jpg", {"optimize": True}, (1, 2, 5, 10, 20, 35, 50, 75)),
    "WebP": ("webp", {"method": 6}, (0, 1, 5, 10, 20, 35, 50, 75)),
    "AVIF": ("avif", {"speed": 4}, (0, 5, 10, 20, 35, 50, 65)),
}
"""Suffix, options and qualities of each."""
TOKENIZERS = [
    "default",
    *(f"patch:{side}x{side},k={k}" for side, k in ((8, 256), (8, 1024), (8, 4096), (4, 64), (4, 256), (4, 1024))),
]


@dataclass(frozen=True)
class Point:
    """One setting on all images. Bits are of files on disk, a pixel."""

    method: str
    setting: str
    bits_per_pixel: float
    psnr: float
    """dB, the mean of the images' own values, as for ``ssim``"""
    ssim: float
    bytes: int
    fixed_bytes: int = 0
    """of the dataset, however many images it has"""


def rival(method: str, quality: int, images: dict[str, Pixels], out: Path) -> Point:
    """All images written by Pillow and read again."""
    suffix, options, _ = RIVALS[method]
    folder = out / f"{method.lower()}-{quality}"
    folder.mkdir(parents=True, exist_ok=True)
    made = {}
    for name, image in images.items():
        file = folder / f"{name}.{suffix}"
        Image.fromarray(image).save(file, quality=quality, **options)
        with Image.open(file) as picture:
            made[name] = np.asarray(picture.convert("RGB"))
    return point(method, f"quality {quality}", images, made, size_of(folder))


def tokens(tokenizer: str, images: dict[str, Pixels], source: Path, base: Path | None, out: Path) -> Point:
    """All images converted, and decoded from the dataset."""
    folder = out / re.sub("[^a-z0-9]+", "-", tokenizer.lower())
    before = 0
    if base is not None:
        tokenshard.convert_images(base, folder, tokenizer=tokenizer, source={"labels": "none"})
        before = size_of(folder / "data")
    mode = Mode(append=base is not None)
    tokenshard.convert_images(source, folder, tokenizer=tokenizer, source={"labels": "none"}, mode=mode)
    dataset = tokenshard.open(folder)
    made = {}
    for number in range(len(dataset) - len(images), len(dataset)):
        sample = dataset[number]
        size = (sample["height"], sample["width"])
        made[Path(sample["key"]).stem] = dataset.tokenizer.decode(sample["codes"][None, None], size)[0]
    model = size_of(folder / "models")
    data = size_of(folder / "data") - before + (0 if base else model)
    method = tokenizer.partition(":")[0]
    return point(method, tokenizer, images, made, data, size_of(folder / "tokenizer") + (model if base else 0))


def size_of(folder: Path) -> int:
    """Bytes of all files below."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def point(
    method: str, setting: str, images: dict[str, Pixels], made: dict[str, Pixels], size: int, fixed: int = 0
) -> Point:
    """The figures of reconstructions, by name of the image."""
    assert images.keys() == made.keys(), (setting, sorted(made))
    pixels = sum(image.shape[0] * image.shape[1] for image in images.values())
    return Point(
        method,
        setting,
        8 * size / pixels,
        float(np.mean([psnr(image, made[name]) for name, image in images.items()])),
        float(np.mean([ssim(image, made[name]) for name, image in images.items()])),
        size,
        fixed,
    )


def measure(
    images: dict[str, Pixels], source: Path, base: Path | None, out: Path, tokenizers: list[str]
) -> Iterator[Point]:
    """All points, the tokenizers' first."""
    for tokenizer in tokenizers:
        yield tokens(tokenizer, images, source, base, out)
    for method, (_, _, qualities) in RIVALS.items():
        for quality in qualities:
            yield rival(method, quality, images, out)


def gains(points: list[Point]) -> Iterator[str]:
    """How far `default` is above each other method at its own rate, which lies between two of the points measured."""
    for one in (point for point in points if point.method == "default"):
        for method in dict.fromkeys(point.method for point in points if point.method != "default"):
            mine = [point for point in points if point.method == method]
            found = "outside of the rates measured"
            if min(p.bits_per_pixel for p in mine) <= one.bits_per_pixel <= max(p.bits_per_pixel for p in mine):
                psnr_above = one.psnr - at_rate(one.bits_per_pixel, [(p.bits_per_pixel, p.psnr) for p in mine])
                ssim_above = one.ssim - at_rate(one.bits_per_pixel, [(p.bits_per_pixel, p.ssim) for p in mine])
                found = f"{psnr_above:+.2f} dB, SSIM {ssim_above:+.4f}"
            yield f"{one.setting} to {method} at {one.bits_per_pixel:.4f} bpp: {found}"


def at_rate(rate: float, points: list[tuple[float, float]]) -> float:
    """Quality at a rate, on straight lines over the logarithm of the rate between the points that none is better than
    at a lower rate."""
    front: list[tuple[float, float]] = []
    for place, quality in sorted(points):
        if not front or quality > front[-1][1]:
            front.append((math.log(place), quality))
    return float(np.interp(math.log(rate), *zip(*front, strict=True)))


def family(point: Point) -> str:
    """What is joined by a line: a rival, or the codebooks of one size of patch."""
    return point.setting.partition(",")[0] if point.method == "patch" else point.method


def draw(points: list[Point], file: Path) -> None:
    """PSNR and SSIM over bits a pixel, a line a family."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    colours = {"default": "#e4572e", "patch": "#f2a65a", "JPEG": "#4c78a8", "WebP": "#72b7b2", "AVIF": "#54a24b"}
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, name, label in zip(figure.subplots(1, 2), ("psnr", "ssim"), ("PSNR (dB)", "SSIM"), strict=True):
        for method, colour in colours.items():
            families = dict.fromkeys(family(one) for one in points if one.method == method)
            for number, name_of in enumerate(families):
                mine = sorted((one.bits_per_pixel, getattr(one, name)) for one in points if family(one) == name_of)
                style = {"marker": "*", "ms": 13} if method == "default" else {"marker": "o", "ms": 4}
                axis.plot(*zip(*mine, strict=True), c=colour, label=None if number else method, **style)
        axis.set_xscale("log")
        axis.set_xlabel("bits a pixel, of files on disk")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
    figure.axes[0].legend(frameon=False)
    figure.savefig(file, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/rate_distortion"))
    parser.add_argument("--images", type=Path, help="folder of images [default: photographs of scikit-image]")
    parser.add_argument("--base", type=Path, help="folder of other images that the datasets begin with")
    parser.add_argument("--tokenizers", nargs="+", default=TOKENIZERS)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    source = arguments.images or photographs(arguments.out / "photographs")
    images = {}
    for path in sorted(source.iterdir()):
        with Image.open(path) as picture:
            images[path.stem] = np.asarray(picture.convert("RGB"))
    points = []
    with (arguments.out / "rate_distortion.csv").open("w", newline="") as table:
        writer = csv.DictWriter(table, list(Point.__dataclass_fields__), lineterminator="\n")
        writer.writeheader()
        for one in measure(images, source, arguments.base, arguments.out, arguments.tokenizers):
            points.append(one)
            writer.writerow(asdict(one))
            table.flush()
            print(
                f"{one.method:8} {one.setting:18} {one.bits_per_pixel:.4f} bpp  {one.psnr:.2f} dB  SSIM {one.ssim:.4f}"
            )
    print(*gains(points), sep="\n")
    draw(points, arguments.out / "rate_distortion.png")


def photographs(folder: Path) -> Path:
    """Photographs that come with scikit-image, as PNG."""
    import skimage.data

    folder.mkdir(exist_ok=True)
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        Image.fromarray(getattr(skimage.data, name)()).save(folder / f"{name}.png")
    return folder


if __name__ == "__main__":
    main()
