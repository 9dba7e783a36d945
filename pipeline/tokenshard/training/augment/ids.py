"""Augmentation of ids, before they become vectors: Token-EDA of SeiT (Park et al. 2023, arXiv:2303.11114).

Of clips, ids [B, L, T, H, W], all frames get the same squares, and equal codes of a place the same synonym.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from tokenshard.training.augment.draws import Draws
from tokenshard.training.augment.vectors import by_sample, of_one_frame

TRIES = 8
"""Pairs of squares drawn until one does not overlap."""
CHUNK = 1 << 24
"""Similarities held at a time while synonyms are looked for."""


def synonym_table(codebook: Tensor, neighbours: int) -> Tensor:
    """int64 [K, n]: the nearest other codes of each by cosine similarity, nearest first."""
    unit = functional.normalize(codebook.float(), dim=1)
    count, n = len(unit), min(neighbours, len(unit) - 1)
    found = []
    for start in range(0, count, max(1, CHUNK // count)):
        rows = unit[start : start + max(1, CHUNK // count)]
        similarity = rows @ unit.T
        own = torch.arange(start, start + len(rows), device=unit.device)
        similarity[torch.arange(len(rows), device=unit.device), own] = -torch.inf
        found.append(similarity.topk(n, dim=1).indices)
    return torch.cat(found)


def replace_by_synonyms(ids: Tensor, tables: Sequence[Tensor], share: float, chosen: Tensor, draws: Draws) -> Tensor:
    """Ids [B, L, *grid] where a ``share`` of those of the ``chosen`` [B] samples is another code of their table."""
    planes = []
    for level, table in enumerate(tables):
        plane = ids[:, level]
        if not table.shape[1]:
            planes.append(plane)
            continue
        shape = of_one_frame(plane.shape, 3)
        hit = (draws.uniform(*shape) < share) & by_sample(chosen, plane)
        pick = (draws.uniform(*shape) * table.shape[1]).long().clamp_max(table.shape[1] - 1)
        planes.append(torch.where(hit, table[plane, pick], plane))
    return torch.stack(planes, 1)


def swap_squares(ids: Tensor, most: float, chosen: Tensor, draws: Draws) -> Tensor:
    """Ids [B, L, (T,) H, W] where two squares of the grid of ``chosen`` [B] samples change places.

    Their side is up to ``most`` of the shorter side of the grid; they do not overlap. A sample whose drawn squares
    overlap each time stays as it is.
    """
    batch, *_, rows, columns = ids.shape
    side = (min(rows, columns) * most * draws.random(batch)).astype(int)
    top = (draws.random(2, TRIES, batch) * (rows - side + 1)).astype(int)
    left = (draws.random(2, TRIES, batch) * (columns - side + 1)).astype(int)
    apart = (abs(top[0] - top[1]) >= side) | (abs(left[0] - left[1]) >= side)
    first = apart.argmax(0)
    sample = range(batch)
    valid = draws.tensor(apart.any(0)) & chosen
    (y1, y2), (x1, x2) = draws.tensor(top[:, first, sample]), draws.tensor(left[:, first, sample])
    p = draws.tensor(side)[:, None, None]
    y = torch.arange(rows, device=ids.device)[None, :, None]
    x = torch.arange(columns, device=ids.device)[None, None, :]

    def inside(at_y: Tensor, at_x: Tensor) -> Tensor:
        down, right = y - at_y[:, None, None], x - at_x[:, None, None]
        return (down >= 0) & (down < p) & (right >= 0) & (right < p) & valid[:, None, None]

    move = ((y2 - y1) * columns + (x2 - x1))[:, None, None]
    place = (y * columns + x).expand(batch, -1, -1)
    place = place + move * inside(y1, x1).long() - move * inside(y2, x2).long()
    planes = ids.reshape(batch, -1, rows * columns)
    return planes.gather(2, place.flatten(1)[:, None].expand_as(planes)).view_as(ids)
