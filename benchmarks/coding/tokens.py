"""Ids to code: of patch tokenizers, of a small convolutional one, residual and product quantizers, on real images.

Everything is fitted on one set of images and the ids are measured on others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor, nn

from tokenshard.codecs.base import Grids, Ids
from tokenshard.tokenizers.patch import PatchTokenizer

Images = list[NDArray[np.uint8]]
Encoder = Callable[[NDArray[np.uint8]], NDArray[np.integer]]
"""One image uint8 [height, width, 3] to ids [levels, rows, columns]."""

SIDE = 16
"""Images are cropped to multiples of this, so that no tokenizer has to pad."""

_CHUNK = 1 << 14


@dataclass(frozen=True)
class Block:
    """Ids of some images: one flat array a level, samples back to back, and the grid of each sample."""

    levels: tuple[Ids, ...]
    grids: Grids

    @property
    def size(self) -> int:
        return sum(len(ids) for ids in self.levels)


@dataclass(frozen=True)
class TokenSet:
    """Ids of one tokenizer: those to fit tables on, and those to measure, by name."""

    name: str
    alphabet: int
    fitted: Block
    measured: dict[str, Block]


def sample_photos() -> tuple[Images, Images]:
    """Squares of photographs that ship with scikit-image: of three to fit on, of a fourth to measure."""
    import skimage.data

    photos = skimage.data.coffee(), skimage.data.chelsea(), skimage.data.rocket(), skimage.data.astronaut()
    *train, held_out = (_squares(photo, 7 * SIDE) for photo in photos)
    return [square for squares in train for square in squares], held_out


def _squares(photo: NDArray[np.uint8], side: int) -> Images:
    height, width = (full // side * side for full in photo.shape[:2])
    return [photo[y : y + side, x : x + side] for y in range(0, height, side) for x in range(0, width, side)]


def load_images(folder: Path) -> Images:
    """All images below a folder, cropped to multiples of 16."""
    images = []
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            with Image.open(file) as image:
                images.append(_cropped(np.asarray(image.convert("RGB"))))
        except UnidentifiedImageError:
            continue
    if not images:
        raise SystemExit(f"no images below {folder}")
    return images


def _cropped(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = (side // SIDE * SIDE for side in image.shape[:2])
    return image[:height, :width]


def token_sets(train: Images, measured: dict[str, Images], quick: bool) -> Iterator[TokenSet]:
    """The sets of the benchmark, one after the other."""
    for side in (8,) if quick else (8, 4):
        for k in (1024,) if quick else (256, 1024, 8192):
            tokenizer = PatchTokenizer.fit(train, 0, patch=(side, side), k=k)
            yield _token_set(f"patch {side}x{side} K={k}", k, encoder_of(tokenizer), train, measured)
    if quick:
        return
    yield _token_set("conv f=8 K=1024", 1024, conv_encoder(train, 1024), train, measured)
    yield _token_set("RVQ 4 x 1024", 1024, residual_encoder(train, levels=4, k=1024), train, measured)
    yield _token_set("PQ 16 x 256", 256, product_encoder(train, parts=16, k=256), train, measured)


def encoder_of(tokenizer: PatchTokenizer) -> Encoder:
    return lambda image: tokenizer.encode(image[None])[0]


def _token_set(name: str, k: int, encode: Encoder, train: Images, measured: dict[str, Images]) -> TokenSet:
    blocks = {part: encoded(encode, images) for part, images in measured.items()}
    return TokenSet(name, k, encoded(encode, train), blocks)


def encoded(encode: Encoder, images: Images) -> Block:
    """The ids of images."""
    samples = [encode(image).astype(np.uint16) for image in images]
    levels = tuple(np.concatenate([ids.reshape(-1) for ids in parts]) for parts in zip(*samples, strict=True))
    return Block(levels, np.array([sample.shape[1:] for sample in samples], np.int32))


# -- quantizers that the package does not have yet: plain k-means on patches and on latents --------------------------


def kmeans(points: Tensor, k: int, rounds: int = 12) -> Tensor:
    """Centroids [k, d] of points [n, d] by Lloyd's algorithm, seeded; empty clusters keep their place."""
    draw = torch.Generator().manual_seed(0)
    centroids = points[torch.randperm(len(points), generator=draw)[:k]].clone()
    for _ in range(rounds):
        labels = nearest(points, centroids)
        counts = torch.bincount(labels, minlength=k)
        sums = torch.zeros_like(centroids).index_add_(0, labels, points)
        centroids = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp(min=1), centroids)
    return centroids


def nearest(points: Tensor, centroids: Tensor) -> Tensor:
    """The nearest centroid of each point (int64 [n])."""
    bias = -0.5 * centroids.square().sum(1)
    return torch.cat([torch.addmm(bias, part, centroids.T).argmax(1) for part in points.split(_CHUNK)])


def _patches(image: NDArray[np.uint8], side: int) -> Tensor:
    """[rows, columns, 3 * side * side] float32 in -1 .. 1."""
    rows, columns = image.shape[0] // side, image.shape[1] // side
    tiles = image.reshape(rows, side, columns, side, 3).swapaxes(1, 2).reshape(rows, columns, -1)
    return torch.from_numpy(tiles.astype(np.float32) / 127.5 - 1)


class _Features:
    """Patches in the leading principal components of those of the training images."""

    def __init__(self, train: Images, side: int, rank: int, limit: int) -> None:
        self.side = side
        every = torch.cat([_patches(image, side).flatten(0, 1) for image in train])
        draw = torch.Generator().manual_seed(0)
        sample = every[torch.randperm(len(every), generator=draw)[:limit]]
        self.mean = sample.mean(0)
        _, vectors = torch.linalg.eigh((sample - self.mean).T @ (sample - self.mean))
        self.axes = vectors[:, -rank:].flip(1)
        self.sample = (sample - self.mean) @ self.axes

    def __call__(self, image: NDArray[np.uint8]) -> Tensor:
        """[rows, columns, rank]"""
        features: Tensor = (_patches(image, self.side) - self.mean) @ self.axes
        return features


def residual_encoder(train: Images, levels: int, k: int) -> Encoder:
    """Residual k-means (RVQ) of 8 x 8 patches in 32 principal components."""
    features = _Features(train, 8, 32, 1 << 16)
    codebooks, rest = [], features.sample
    for _ in range(levels):
        codebooks.append(kmeans(rest, k))
        rest = rest - codebooks[-1][nearest(rest, codebooks[-1])]

    def encode(image: NDArray[np.uint8]) -> NDArray[np.integer]:
        points = features(image)
        rest, ids = points.flatten(0, 1), []
        for codebook in codebooks:
            ids.append(nearest(rest, codebook))
            rest = rest - codebook[ids[-1]]
        return torch.stack(ids).reshape(levels, *points.shape[:2]).numpy()

    return encode


def product_encoder(train: Images, parts: int, k: int) -> Encoder:
    """Product k-means (PQ) of 16 x 16 patches in 64 principal components, dealt out in turn."""
    features = _Features(train, 16, 64, 1 << 16)
    codebooks = [kmeans(features.sample[:, part::parts].contiguous(), k) for part in range(parts)]

    def encode(image: NDArray[np.uint8]) -> NDArray[np.integer]:
        points = features(image)
        flat = points.flatten(0, 1)
        ids = [nearest(flat[:, part::parts], codebook) for part, codebook in enumerate(codebooks)]
        return torch.stack(ids).reshape(parts, *points.shape[:2]).numpy()

    return encode


def conv_encoder(train: Images, k: int, steps: int = 400) -> Encoder:
    """k-means of the latents of a small convolutional auto-encoder (f = 8, 8 channels), trained for a minute."""
    torch.manual_seed(0)
    widths = (3, 32, 64, 96)
    down = [layer for a, b in pairwise(widths) for layer in (nn.Conv2d(a, b, 4, 2, 1), nn.SiLU())]
    back = widths[:0:-1]
    up = [
        layer
        for a, b in zip(back, (*back[1:], 32), strict=True)
        for layer in (nn.ConvTranspose2d(a, b, 4, 2, 1), nn.SiLU())
    ]
    encoder = nn.Sequential(*down, nn.Conv2d(96, 96, 3, 1, 1), nn.SiLU(), nn.Conv2d(96, 8, 1))
    decoder = nn.Sequential(nn.Conv2d(8, 96, 3, 1, 1), nn.SiLU(), *up, nn.Conv2d(32, 3, 3, 1, 1))
    optimizer = torch.optim.AdamW([*encoder.parameters(), *decoder.parameters()], 2e-3)
    draw = np.random.default_rng(0)
    for _ in range(steps):
        batch = torch.stack([_crop(train[draw.integers(len(train))], 64, draw) for _ in range(16)])
        latents = encoder(batch)
        noisy = latents + 0.1 * latents.detach().std() * torch.randn_like(latents)
        loss = (decoder(noisy) - batch).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def latents_of(image: NDArray[np.uint8]) -> Tensor:
        pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        latents: Tensor = encoder(pixels)[0].permute(1, 2, 0)
        return latents

    sample = torch.cat([latents_of(image).flatten(0, 1) for image in train[:: max(1, len(train) // 100)]])
    codebook = kmeans(sample, k)

    def encode(image: NDArray[np.uint8]) -> NDArray[np.integer]:
        latents = latents_of(image)
        return nearest(latents.flatten(0, 1), codebook).reshape(1, *latents.shape[:2]).numpy()

    return encode


def _crop(image: NDArray[np.uint8], side: int, draw: np.random.Generator) -> Tensor:
    top, left = (int(draw.integers(full - side + 1)) for full in image.shape[:2])
    part = image[top : top + side, left : left + side]
    return torch.from_numpy(part.copy()).permute(2, 0, 1).float() / 127.5 - 1
