"""The labelled images of the benchmark, in an order of which every beginning has all classes in equal shares."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]
HELD_OUT = 0.1
"""Share of the training images, the last ones of the order, on which settings are chosen."""


@dataclass(frozen=True)
class Images:
    """Files with their labels, numbers of the sorted names of the classes."""

    files: tuple[Path, ...]
    labels: Labels
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.files)

    @property
    def bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files)

    @property
    def chosen_from(self) -> int:
        """Images before those that settings are chosen on."""
        return len(self) - round(HELD_OUT * len(self))

    def first(self, count: int) -> Images:
        return Images(self.files[:count], self.labels[:count], self.classes)

    def pixels(self, side: int) -> Pixels:
        """Decoded, uint8 [N, side, side, 3]; others are cut to a square in their middle and resized."""
        found = np.empty((len(self), side, side, 3), np.uint8)
        for place, file in enumerate(self.files):
            with Image.open(file) as picture:
                square, (width, height) = min(picture.size), picture.size
                left, top = (width - square) // 2, (height - square) // 2
                box = (left, top, left + square, top + square)
                whole = picture.convert("RGB")
                same = picture.size == (side, side)
                found[place] = whole if same else whole.resize((side, side), Image.Resampling.LANCZOS, box)
        return found


def read_images(folder: Path) -> Images:
    """The files below a folder a class. Those of a class are shuffled, and classes take turns."""
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
    ranked: list[tuple[float, int, Path]] = []
    for label, name in enumerate(classes):
        files = sorted(path for path in (folder / name).iterdir() if path.is_file())
        order = np.random.default_rng([0, label]).permutation(len(files))
        ranked += [((place + 0.5) / len(files), label, files[number]) for place, number in enumerate(order)]
    ranked.sort()
    labels = np.array([label for _, label, _ in ranked], np.int64)
    return Images(tuple(file for _, _, file in ranked), labels, tuple(classes))


def resized(images: Pixels, side: int) -> Pixels:
    """[N, S, S, 3] -> [N, side, side, 3]: Lanczos to fewer pixels, bicubic to more."""
    if images.shape[1] == side:
        return images
    method = Image.Resampling.LANCZOS if side < images.shape[1] else Image.Resampling.BICUBIC
    return np.stack([np.asarray(Image.fromarray(image).resize((side, side), method)) for image in images])
