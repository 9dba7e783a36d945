"""Augmentation of code vectors [B, d, (T,) H, W]: crops, noise, colours and mixtures, on the device.

What is done to a frame of a clip is done to all of them: one box, one colour, one noise. Time is neither cropped nor
resized here.

Resizing is linear in the vectors, so cropping codes as one-hot maps, as SeiT does on CPUs, and cropping what they
stand for give the same: only ids have to reach the device.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenshard.errors import SpecError
from tokenshard.training.augment.draws import Draws

SHARPNESS = -0.5
"""a of the cubic kernel of Keys 1981, as Pillow and antialiased torch have it."""
TRIES = 10
EPS = 1e-5


def resample(start: Tensor, length: Tensor, source: int, target: int) -> Tensor:
    """Weights float32 [B, target, source] of an antialiased bicubic resize of places [start, start + length) to
    ``target`` places; what lies outside has none. ``start``, ``length``: [B]."""
    start, length = start.float()[:, None, None], length.float()[:, None, None]
    scale = length / target
    centre = start + (torch.arange(target, device=start.device) + 0.5)[None, :, None] * scale
    place = torch.arange(source, device=start.device)[None, None, :] + 0.5
    weight = _cubic((place - centre) / scale.clamp_min(1.0))
    weight = torch.where((place > start) & (place < start + length), weight, 0.0)
    return weight / weight.sum(2, keepdim=True)


def _cubic(x: Tensor) -> Tensor:
    x, a = x.abs(), SHARPNESS
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def by_sample(values: Tensor, like: Tensor) -> Tensor:
    """Numbers [B] of samples [B, 1, 1, …], to be broadcast with ``like``."""
    return values.view(-1, *(1,) * (like.ndim - 1))


def of_one_frame(shape: tuple[int, ...], axes: int) -> tuple[int, ...]:
    """The shape of what is drawn once for all frames, of a tensor with so many axes for images, and one more for clips:
    1 frame."""
    return shape if len(shape) == axes else (*shape[:-3], 1, *shape[-2:])


def crop_and_resize(vectors: Tensor, boxes: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Of each sample the box [top, left, rows, columns] (boxes [B, 4], whole numbers), resized: [B, d, *grid]."""
    top, left, rows, columns = boxes.unbind(1)
    down = resample(top, rows, vectors.shape[-2], grid[-2]).to(vectors.dtype)
    across = resample(left, columns, vectors.shape[-1], grid[-1]).to(vectors.dtype)
    planes = vectors.flatten(1, -3)
    return torch.einsum("byh,bdhw,bxw->bdyx", down, planes, across).view(*vectors.shape[:-2], *grid[-2:])


def resize(vectors: Tensor, grid: tuple[int, ...]) -> Tensor:
    """[B, d, *any] -> [B, d, *grid]. Raises SpecError for clips with another number of frames."""
    if tuple(vectors.shape[2:]) == tuple(grid):
        return vectors
    if tuple(vectors.shape[2:-2]) != tuple(grid[:-2]):
        found, wanted = ("x".join(map(str, shape)) for shape in (vectors.shape[2:], grid))
        raise SpecError(f"grids of {found} codes cannot become {wanted}: only rows and columns are resized")
    whole = torch.tensor([[0, 0, *vectors.shape[-2:]]], device=vectors.device)
    return crop_and_resize(vectors, whole.expand(len(vectors), -1), grid)


def random_boxes(
    count: int, grid: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float], draws: Draws
) -> NDArray[np.int64]:
    """Boxes int64 [count, 4] (top, left, rows, columns) of a random resized crop (Szegedy et al. 2015).

    Area uniform in ``scale``, width : height log-uniform in ``ratio``. A sample none of whose drawn shapes fits gets
    the whole grid.
    """
    area = _between(*scale, draws.random(TRIES, count)) * grid[0] * grid[1]
    aspect = np.exp(_between(math.log(ratio[0]), math.log(ratio[1]), draws.random(TRIES, count)))
    rows = np.maximum(1, np.round(np.sqrt(area / aspect))).astype(np.int64)
    columns = np.maximum(1, np.round(np.sqrt(area * aspect))).astype(np.int64)
    fits = (rows <= grid[0]) & (columns <= grid[1])
    first, any_fits, sample = fits.argmax(0), fits.any(0), np.arange(count)
    rows = np.where(any_fits, rows[first, sample], grid[0])
    columns = np.where(any_fits, columns[first, sample], grid[1])
    top = (draws.random(count) * (grid[0] - rows + 1)).astype(np.int64)
    left = (draws.random(count) * (grid[1] - columns + 1)).astype(np.int64)
    return np.stack([top, left, rows, columns], 1)


def _between(low: float, high: float, uniform: NDArray[np.float64]) -> NDArray[np.float64]:
    return low + (high - low) * uniform


def add_noise(vectors: Tensor, chosen: Tensor, scale: float, draws: Draws) -> Tensor:
    """Emb-Noise: normal noise that a channel shares, and normal noise by element, both with deviation ``scale``."""
    batch, dim = vectors.shape[:2]
    noise = draws.normal(batch, dim, *(1,) * (vectors.ndim - 2)) + draws.normal(*of_one_frame(vectors.shape, 4))
    return vectors + noise * (scale * by_sample(chosen, vectors))


def colors(vectors: Tensor) -> Tensor:
    """Mean and deviation over the grid of each channel of vectors [B, d, *grid]: [B, 2, d, 1, 1, …]."""
    axes = tuple(range(2, vectors.ndim))
    mean = vectors.mean(axes, keepdim=True)
    deviation = vectors.var(axes, keepdim=True, unbiased=False).add(EPS**2).sqrt()
    return torch.stack([mean, deviation], 1)


def adapt_color(vectors: Tensor, chosen: Tensor, wanted: Tensor) -> Tensor:
    """ColorAdapt (SeiT++, arXiv:2312.10105): channels of the ``chosen`` [B] samples get mean and deviation over the
    grid that are ``wanted``, the :func:`colors` of other samples."""
    (mean, deviation), (new_mean, new_deviation) = colors(vectors).unbind(1), wanted.unbind(1)
    adapted = (vectors - mean) / deviation * new_deviation + new_mean
    return torch.where(by_sample(chosen, vectors), adapted, vectors)


def mix_boxes(vectors: Tensor, others: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """CutMix (Yun et al. 2019): the box [top, left, rows, columns] of each sample is that of one of ``others``, which
    have the same shape.

    The mixed vectors, and the share [B] that is a sample's own.
    """
    y = torch.arange(vectors.shape[-2], device=vectors.device)[None, :, None]
    x = torch.arange(vectors.shape[-1], device=vectors.device)[None, None, :]
    top, left, rows, columns = boxes[:, :, None, None].unbind(1)
    inside = (y >= top) & (y < top + rows) & (x >= left) & (x < left + columns)
    planes = inside.view(len(inside), *(1,) * (vectors.ndim - 3), *inside.shape[1:])
    mixed = torch.where(planes, others, vectors)
    return mixed, 1 - inside.float().mean((1, 2))


def cutmix_boxes(share: NDArray[np.float64], grid: tuple[int, int], draws: Draws) -> NDArray[np.int64]:
    """Boxes int64 [B, 4] that cover about 1 - ``share`` of the grid: a scaled grid around a random place, cut off at
    the edges."""
    centre_y, centre_x = draws.random(2, len(share)) * np.array(grid)[:, None]
    half = np.sqrt(1 - share) / 2
    top, left = np.round(centre_y - half * grid[0]), np.round(centre_x - half * grid[1])
    bottom, right = np.round(centre_y + half * grid[0]), np.round(centre_x + half * grid[1])
    top, bottom = np.clip(top, 0, grid[0]), np.clip(bottom, 0, grid[0])
    left, right = np.clip(left, 0, grid[1]), np.clip(right, 0, grid[1])
    return np.stack([top, left, bottom - top, right - left], 1).astype(np.int64)
