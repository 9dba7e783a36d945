"""Conformal widths for grids whose truth is not at hand: super-resolved, gap-filled or generated.

Scores come from tiles where the truth is known. Split conformal prediction takes the k-th smallest of n scores, k =
ceil((n + 1) (1 - alpha)): a new exchangeable score is at most that with probability 1 - alpha at least (Vovk, Gammerman
and Shafer, "Algorithmic Learning in a Random World", 2005). Cells of a tile are far from independent, so tiles are what
is drawn again for intervals, and calibration and test have to be regions that lie apart.

`paper_widths` is what arXiv:2504.14372 calls conformal, kept as a baseline: z times a standard deviation, by position.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenshard.errors import SpecError

Reals = NDArray[np.float64]
LEAST = 100
"""Scores a class must have."""
LEAST_TILES = 10
"""Tiles they must come from where a class is one of a group."""


@dataclass(frozen=True)
class Tile:
    """Cells of one tile with known truth. ``error``: ``[n]``; ``roughness``: ``[n]``, positive, known when decoding
    (the gain of a cell's token); both in the unit of the grid. ``group``: ``[n]``, what else is known of a cell, such
    as a band of depth; None: all alike."""

    error: Reals
    roughness: Reals
    group: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Calibration:
    """``quantiles[i]`` times a cell's scale is its half-width, i the class of its roughness.

    ``edges``: between classes, ascending, one fewer than ``quantiles``. ``normalised``: the scale is the roughness,
    else 1. ``by_group``: quantiles of groups of cells, NaN where a class of one had too few scores or tiles: there, and
    in other groups, those of all groups together hold.
    """

    alpha: float
    edges: tuple[float, ...]
    quantiles: tuple[float, ...]
    normalised: bool
    num_tiles: int
    num_scores: int
    by_group: tuple[tuple[int, tuple[float, ...]], ...] = ()

    def classes(self, roughness: Reals) -> NDArray[np.int64]:
        """Class of each roughness."""
        return np.searchsorted(np.array(self.edges), roughness, side="right").astype(np.int64)

    def widths(self, roughness: Reals, group: NDArray[np.int64] | None = None) -> Reals:
        """Half-width of cells of that roughness, and of those groups."""
        class_ = self.classes(roughness)
        width = np.array(self.quantiles)[class_]
        for number, quantiles in self.by_group if group is not None else ():
            own = np.array(quantiles)[class_]
            width = np.where((group == number) & ~np.isnan(own), own, width)
        return width * roughness if self.normalised else width

    def inside(self, tile: Tile) -> NDArray[np.bool_]:
        """Which cells of a tile lie within their widths."""
        return np.asarray(np.abs(tile.error) <= self.widths(tile.roughness, tile.group))


def split_quantile(scores: Reals, alpha: float) -> float:
    """The ceil((n + 1) (1 - alpha))-th smallest of n scores; infinite where that is more than n."""
    if not 0 < alpha < 1:
        raise SpecError(f"alpha is {alpha}: give the share of cells that may lie outside, between 0 and 1, such as 0.1")
    # Rounded first: 0.9 * 10 is a whole number, whatever its last bit.
    rank = math.ceil(round((scores.size + 1) * (1 - alpha), 9))
    return float(np.partition(scores, rank - 1)[rank - 1]) if rank <= scores.size else math.inf


def calibrate(tiles: Sequence[Tile], alpha: float, classes: int = 5, normalised: bool = True) -> Calibration:
    """Widths that ``1 - alpha`` of new cells lie within, in each of ``classes`` equal shares of roughness (Mondrian),
    and in each of these of a group of cells where tiles have groups.

    One class without normalisation is plain split conformal. SpecError where a class has fewer than `LEAST` scores.
    """
    if not tiles:
        raise SpecError("there are no tiles to calibrate on: give regions whose truth is known")
    error = np.abs(np.concatenate([tile.error for tile in tiles]))
    roughness = np.concatenate([tile.roughness for tile in tiles])
    edges = np.unique(np.quantile(roughness, np.arange(1, classes) / classes))
    class_ = np.searchsorted(edges, roughness, side="right")
    counts = np.bincount(class_, minlength=edges.size + 1)
    if counts.min() < LEAST:
        raise SpecError(
            f"a class of roughness has {counts.min()} scores of {error.size}: {LEAST} are needed; calibrate on more "
            "tiles or with fewer classes"
        )
    score = error / roughness if normalised else error
    quantiles = tuple(split_quantile(score[class_ == i], alpha) for i in range(edges.size + 1))
    by_group = _by_group(tiles, score, class_, alpha, edges.size + 1)
    return Calibration(alpha, tuple(map(float, edges)), quantiles, normalised, len(tiles), error.size, by_group)


def _by_group(
    tiles: Sequence[Tile], score: Reals, class_: NDArray[np.int64], alpha: float, classes: int
) -> tuple[tuple[int, tuple[float, ...]], ...]:
    groups = [tile.group for tile in tiles]
    known = [group for group in groups if group is not None]
    if len(known) < len(groups):
        return ()
    group = np.concatenate(known)
    tile_of = np.repeat(np.arange(len(tiles)), [len(part) for part in known])

    def quantile(cells: NDArray[np.bool_]) -> float:
        enough = cells.sum() >= LEAST and np.unique(tile_of[cells]).size >= LEAST_TILES
        return split_quantile(score[cells], alpha) if enough else math.nan

    return tuple(
        (int(number), tuple(quantile((group == number) & (class_ == i)) for i in range(classes)))
        for number in np.unique(group)
    )


@dataclass(frozen=True)
class Coverage:
    """Share of cells within their widths. ``low``, ``high``: 95 % interval over tiles drawn again."""

    share: float
    low: float
    high: float
    num_cells: int
    num_tiles: int


def coverage(covered: Sequence[NDArray[np.bool_]], seed: int = 0, draws: int = 2000) -> Coverage:
    """Coverage over tiles (``covered[i]``: cells of tile i, or those of one class), with a tile-clustered interval."""
    cells = np.array([tile.size for tile in covered], np.float64)
    inside = np.array([tile.sum() for tile in covered], np.float64)
    held = cells > 0
    cells, inside = cells[held], inside[held]
    if not cells.size:
        return Coverage(math.nan, math.nan, math.nan, 0, 0)
    drawn = np.random.default_rng(seed).multinomial(cells.size, np.full(cells.size, 1 / cells.size), draws)
    low, high = np.quantile(drawn @ inside / (drawn @ cells), (0.025, 0.975))
    return Coverage(float(inside.sum() / cells.sum()), float(low), float(high), int(cells.sum()), cells.size)


def coverage_by_class(tiles: Sequence[Tile], calibration: Calibration, classes: Calibration) -> list[Coverage]:
    """Coverage of ``calibration`` within each class of roughness of ``classes``."""
    inside = [calibration.inside(tile) for tile in tiles]
    group = [classes.classes(tile.roughness) for tile in tiles]
    return [
        coverage([ok[of == i] for ok, of in zip(inside, group, strict=True)]) for i in range(len(classes.quantiles))
    ]


def paper_widths(errors: NDArray[Any], alpha: float, block: int = 4) -> Reals:
    """Half-widths ``[h, w]`` by position in the tile, from errors ``[tiles, h, w]``: z times the standard deviation
    over tiles of the mean absolute error of a block. Has no coverage guarantee."""
    count, height, width = errors.shape
    means = np.abs(errors).reshape(count, height // block, block, width // block, block).mean((2, 4))
    spread = means.std(0) * NormalDist().inv_cdf(1 - alpha / 2)
    return np.repeat(np.repeat(spread, block, 0), block, 1)
