"""The set that every loader reads: windows of the token grids of photographs, labels and string keys."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from coding.tokens import Images, load_images
from numpy.typing import NDArray

from tokenshard.tokenizers.patch import PatchTokenizer

K = 1024


@dataclass(frozen=True)
class Tokens:
    """uint16 [n, side, side], int64 [n], and n keys."""

    codes: NDArray[np.uint16]
    labels: NDArray[np.int64]
    keys: NDArray[np.bytes_]

    def save(self, folder: Path, text: bool = True) -> None:
        """``text``: keys as str, four bytes a character."""
        folder.mkdir(parents=True)
        np.save(folder / "tokens.npy", self.codes)
        np.save(folder / "tokens.label.npy", self.labels)
        np.save(folder / "tokens.keys.npy", self.keys.astype(str) if text else self.keys)

    @classmethod
    def load(cls, folder: Path) -> Tokens:
        codes = np.load(folder / "tokens.npy", mmap_mode="r")
        keys = np.load(folder / "tokens.keys.npy").astype("S")
        return cls(codes, np.load(folder / "tokens.label.npy"), keys)


def make_tokens(folder: Path | None, count: int, side: int) -> Tokens:
    """Random windows of ``side`` x ``side`` ids out of photographs, as a patch tokenizer of 1,024 codes sees them."""
    images: Images = load_images(folder) if folder is not None else _photos()
    tokenizer = PatchTokenizer.fit(images[:500], 0, patch=(4, 4), k=K)
    large = [image for image in images if min(image.shape[:2]) >= 4 * side][:500]
    grids = [tokenizer.encode(image[None])[0, 0].astype(np.uint16) for image in large]
    draw = np.random.default_rng(0)
    codes = np.empty((count, side, side), np.uint16)
    for n, number in enumerate(draw.integers(0, len(grids), count).tolist()):
        grid = grids[number]
        y, x = (int(draw.integers(0, full - side + 1)) for full in grid.shape)
        codes[n] = grid[y : y + side, x : x + side]
    keys = np.array([f"sample/{n:09d}" for n in range(count)], "S")
    return Tokens(codes, draw.integers(0, 1000, count), keys)


def _photos() -> Images:
    import skimage.data

    photos = skimage.data.coffee(), skimage.data.chelsea(), skimage.data.rocket(), skimage.data.astronaut()
    return [photo[: photo.shape[0] // 16 * 16, : photo.shape[1] // 16 * 16] for photo in photos]
