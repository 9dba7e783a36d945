"""What a dataset takes beside what its inputs took: as files, as pixels, and as JPEG."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tokenshard.shards.dataset import Dataset
from tokenshard.shards.schema import KEY, length_name

JPEG_QUALITY = 75
MOST_FOOTERS = 32
"""Shards whose footers are read to say which columns take the bytes."""


@dataclass
class Originals:
    """What originals of some samples take otherwise."""

    samples: int = 0
    pixels: int = 0
    """bytes, at eight bits a channel"""
    jpeg: int = 0

    def add(self, image: NDArray[np.uint8]) -> None:
        """Measure one more, uint8 [height, width, 3]."""
        self.samples += 1
        self.pixels += image.size
        self.jpeg += jpeg_bytes(image)


def sizes(dataset: Dataset, measured: Originals) -> dict[str, Any]:
    """JSON-able: bytes of the shards and of the raw inputs, exact; `pixel_bytes` and `jpeg_bytes` from ``measured``.

    Those two are of the originals of a few samples, times the samples there are; null where none is at hand. `parts`:
    bytes by what they are for, from `footers_read` shards, times the shards there are.
    """
    totals = dataset.manifest.totals
    scale = totals.samples / max(1, measured.samples)
    parts, read = _parts(dataset)
    return {
        "token_bytes": totals.token_bytes,
        "raw_bytes": totals.raw_bytes,
        "bytes_per_sample": totals.token_bytes / max(1, totals.samples),
        "pixel_bytes": round(scale * measured.pixels) if measured.samples else None,
        "jpeg_bytes": round(scale * measured.jpeg) if measured.samples else None,
        "jpeg_quality": JPEG_QUALITY,
        "measured_samples": measured.samples,
        "parts": parts,
        "footers_read": read,
    }


def jpeg_bytes(image: NDArray[np.uint8]) -> int:
    """Bytes of an image [height, width, 3] as JPEG of quality :data:`JPEG_QUALITY`, with tables made for it."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return file.tell()


def _parts(dataset: Dataset) -> tuple[dict[str, int], int]:
    """Bytes by purpose, scaled to all shards, and the shards that were looked at."""
    manifest, shards = dataset.manifest, dataset.manifest.shards
    numbers = np.unique(np.linspace(0, len(shards) - 1, min(len(shards), MOST_FOOTERS)).astype(int)) if shards else ()
    found = dict.fromkeys(("codes", "lengths", "keys", "packed beside codes", "other columns", "footers"), 0)
    codes = {spec.column for spec in manifest.code.columns}
    lengths = {"num_tokens", *(length_name(spec) for spec in manifest.code.columns)}
    lengths |= {column.name for column in manifest.columns if column.role == "length"}
    streams = {column.name for column in manifest.columns if column.role == "stream"}
    looked_at = 0
    for number in numbers:
        rest = shards[int(number)].bytes
        looked_at += rest
        for chunks in dataset.reader(int(number)).chunks:
            for name, (start, end) in chunks.items():
                part = "codes" if name in codes else "lengths" if name in lengths else "keys" if name == KEY else ""
                part = part or ("packed beside codes" if name in streams else "other columns")
                found[part] += end - start
                rest -= end - start
        found["footers"] += rest
    scale = manifest.totals.token_bytes / max(1, looked_at)
    return {name: round(size * scale) for name, size in found.items() if size}, len(numbers)
