"""Pixels in few bytes: smaller images at lower quality, as JPEG, as JPEG whose tables are stored once, as WebP.

A set is one Parquet file (image, label) and the bytes that all its images have in common. What a reader can put back is
left out: the tables and markers of JPEG where they are shared, the container of WebP.
"""

from __future__ import annotations

import io
import operator
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from accuracy.images import Images, Labels, Pixels, resized
from accuracy.stored import Stored, alone, size_of
from tokenshard.report.quality import psnr

QUALITIES = (0, 1, 3, 5, 10, 15, 20, 25, 35, 50, 65, 75, 85)
SIDES = (1.0, 0.75, 0.5, 0.375, 0.25)
"""Of stored images, as shares of what the model sees."""
SAMPLE = 200
"""Images that the grid is measured on."""
KEPT = 2
"""Points of the grid, those of the best PSNR, that are trained with before one is chosen."""
SLACK = 1.1
"""Where no point fits the budget, those of up to so many times the bytes of the smallest are stored of fewer images."""
JPEG_END = b"\xff\xd9"


@dataclass(frozen=True)
class PixelSetting:
    """A point of the grid."""

    codec: str
    side: int
    quality: int

    def __str__(self) -> str:
        return f"{self.side}x{self.side}, quality {self.quality}"


def jpeg(image: Image.Image, quality: int) -> bytes:
    """A whole file with Huffman tables of its own."""
    return saved(image, "JPEG", quality=quality, optimize=True)


def shared_jpeg(image: Image.Image, quality: int) -> bytes:
    """A whole file; with the standard Huffman tables, so that files of a set differ in their scans alone."""
    return saved(image, "JPEG", quality=quality)


def webp(image: Image.Image, quality: int) -> bytes:
    """The VP8 chunk of a file, without its container."""
    whole = saved(image, "WEBP", quality=quality, method=6)
    if whole[12:16] != b"VP8 ":
        raise ValueError("not a plain lossy WebP file")
    return whole[20 : 20 + int.from_bytes(whole[16:20], "little")]


def webp_file(chunk: bytes) -> bytes:
    """The file around a VP8 chunk."""
    padded = chunk + b"\0" * (len(chunk) % 2)
    body = b"WEBPVP8 " + len(chunk).to_bytes(4, "little") + padded
    return b"RIFF" + len(body).to_bytes(4, "little") + body


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


ENCODERS: dict[str, Callable[[Image.Image, int], bytes]] = {
    "JPEG": jpeg,
    "shared-table JPEG": shared_jpeg,
    "WebP": webp,
}


def encoded(images: Pixels, setting: PixelSetting) -> tuple[bytes, list[bytes]]:
    """What all images begin with, and what is left of each."""
    encode = ENCODERS[setting.codec]
    made = [encode(Image.fromarray(image), setting.quality) for image in resized(images, setting.side)]
    if setting.codec != "shared-table JPEG":
        return b"", made
    first, last = min(made), max(made)  # all others begin with what these two have in common
    same = sum(accumulate((a == b for a, b in zip(first, last, strict=False)), operator.and_))
    head = first[:same]
    return head, [one[len(head) :].removesuffix(JPEG_END) for one in made]


def decoded(head: bytes, images: list[bytes], setting: PixelSetting, side: int) -> Pixels:
    """The reverse of :func:`encoded`, resized to what the model sees."""
    files = images
    if setting.codec == "shared-table JPEG":
        files = [head + one + JPEG_END for one in images]
    elif setting.codec == "WebP":
        files = [webp_file(one) for one in images]
    pixels = []
    for file in files:
        with Image.open(io.BytesIO(file)) as picture:
            pixels.append(np.asarray(picture.convert("RGB")))
    return resized(np.stack(pixels), side)


def write(images: Pixels, labels: Labels, setting: PixelSetting, folder: Path) -> Stored:
    """Store a set."""
    with alone(folder):
        folder.mkdir(parents=True, exist_ok=True)
        head, made = encoded(images, setting)
        table = pa.table({"image": pa.array(made, pa.binary()), "label": labels.astype(np.uint16)})
        pq.write_table(
            table,
            folder / "images.parquet",
            compression={"image": "none", "label": "zstd"},
            use_dictionary=["label"],
            column_encoding={"image": "DELTA_LENGTH_BYTE_ARRAY"},
            write_statistics=False,
            store_schema=False,
        )
        (folder / "head.bin").write_bytes(head)
        counted = {
            "images and labels": size_of(folder / "images.parquet"),
            "shared tables": size_of(folder / "head.bin"),
        }
    return Stored(folder, f"{setting.codec} {setting}", len(images), counted, fixed=("shared tables",))


def read(stored: Stored, setting: PixelSetting, side: int) -> tuple[Pixels, Labels]:
    """The set of a folder, as the model sees it."""
    table = pq.read_table(stored.folder / "images.parquet")
    head = (stored.folder / "head.bin").read_bytes()
    pixels = decoded(head, table.column("image").to_pylist(), setting, side)
    return pixels, np.array(table.column("label"), np.int64)


def originals(images: Images) -> Stored:
    """Files as they are."""
    return Stored(images.files[0].parent, "original files", len(images), {"files": images.bytes})


@dataclass(frozen=True)
class GridPoint:
    setting: PixelSetting
    bytes: float
    """an image"""
    psnr: float
    """dB, of what the model sees"""


def measured_grid(images: Pixels) -> list[GridPoint]:
    """Every codec, side and quality, on a sample of training images."""
    sample, full = images[:SAMPLE], images.shape[1]
    points = []
    for codec in ENCODERS:
        for side in sorted({round(share * full) for share in SIDES}):
            for quality in QUALITIES:
                setting = PixelSetting(codec, side, quality)
                head, made = encoded(sample, setting)
                found = decoded(head, made, setting, full)
                mean = float(np.mean([len(one) for one in made]))
                points.append(
                    GridPoint(setting, mean, float(np.mean([psnr(a, b) for a, b in zip(sample, found, strict=True)])))
                )
    return points


def candidates(grid: list[GridPoint], codec: str, bytes_an_image: float) -> list[PixelSetting]:
    """The points of a codec to be trained with: the best that fit by PSNR, of different sides."""
    mine = [point for point in grid if point.setting.codec == codec]
    limit = max(bytes_an_image, SLACK * min(point.bytes for point in mine))
    best: dict[int, PixelSetting] = {}
    for point in sorted(mine, key=lambda point: -point.psnr):
        if point.bytes <= limit:
            best.setdefault(point.setting.side, point.setting)
    return list(best.values())[:KEPT]
