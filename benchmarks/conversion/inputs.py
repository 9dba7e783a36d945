"""Images to convert: any number of names for a few thousand real files, small ones, tiny ones, and long tables."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SIDE = 224
EXTENSIONS = {".jpg", ".jpeg", ".png", ".webp"}


def linked(images: list[Path], folder: Path, count: int) -> Path:
    """A folder with ``count`` image files: hard links to ``images`` (of the same disk), over and over."""
    folder.mkdir()
    for number, image in enumerate(islice(cycle(images), count)):
        (folder / f"{number:06d}{image.suffix}").hardlink_to(image)
    return folder


def real_images(folder: Path | None, scratch: Path) -> list[Path]:
    """Copies of the images below ``folder``; without one, squares of the photographs that ship with scikit-image."""
    if folder is not None:
        (scratch / "real").mkdir()
        found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS)
        return [Path(shutil.copy(path, scratch / "real" / f"{n:06d}{path.suffix}")) for n, path in enumerate(found)]
    import skimage.data

    photos = (skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea(), skimage.data.rocket())
    tiles = [tile for photo in photos for tile in _squares(photo)]
    return _saved(tiles, scratch / "photos", ".jpg")


def _squares(photo: np.ndarray) -> Iterator[np.ndarray]:
    for top in range(0, photo.shape[0] - SIDE + 1, SIDE // 2):
        for left in range(0, photo.shape[1] - SIDE + 1, SIDE // 2):
            yield photo[top : top + SIDE, left : left + SIDE]


def small_images(scratch: Path, side: int, count: int) -> list[Path]:
    """Smooth gradients with noise."""
    draw = np.random.default_rng(0)
    ramp = np.linspace(0, 150, side)[:, None, None]
    pixels = [(ramp + draw.integers(0, 100, (side, side, 3))).astype(np.uint8) for _ in range(count)]
    return _saved(pixels, scratch / f"side-{side}", ".png")


def _saved(pixels: list[np.ndarray], folder: Path, extension: str) -> list[Path]:
    folder.mkdir(parents=True)
    paths = [folder / f"{number:04d}{extension}" for number in range(len(pixels))]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path)
    return paths


def long_table(path: Path, rows: int) -> Path:
    """A table that names ``rows`` images (which nobody opens)."""
    draw = np.random.default_rng(0)
    with pq.ParquetWriter(path, pa.schema([("path", pa.string())])) as writer:
        for first in range(0, rows, 100_000):
            numbers = draw.integers(0, 1 << 48, min(100_000, rows - first))
            names = [f"{n & 255:02x}/{n:012x}-{first + row}.jpg" for row, n in enumerate(numbers.tolist())]
            writer.write_table(pa.table({"path": names}))
    return path
