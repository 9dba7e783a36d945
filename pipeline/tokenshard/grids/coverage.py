"""How often the truth lies within widths, region by region: conformal ones beside those that others would give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tokenshard.grids.conformal import Calibration, Coverage, Tile, calibrate, coverage, paper_widths
from tokenshard.grids.scores import Region

LEVELS = (0.5, 0.68, 0.8, 0.9, 0.95, 0.99)
"""Nominal coverage of a reliability diagram."""


@dataclass(frozen=True)
class Found:
    """Coverage of a method in a region, and in each class of roughness, smooth to rough."""

    region: str
    method: str
    nominal: float
    whole: Coverage
    by_class: tuple[Coverage, ...]
    mean_width: float
    """in the unit of the grid"""


def joined(regions: Sequence[Region]) -> Region:
    """Several regions as one."""
    return Region(
        grid=",".join(region.grid for region in regions),
        name=", ".join(region.name for region in regions),
        tiles=[tile for region in regions for tile in region.tiles],
        squares=np.concatenate([region.squares for region in regions]),
        exact=[inside for region in regions for inside in region.exact],
    )


def compare(region: Region, calibration: Calibration, known: Region | None = None, share: float = 0.9) -> list[Found]:
    """Coverage of a calibration in a region, and of what else there is.

    With the regions that it was made on (``known``) also of one quantile for all (`split`) and of the way of
    arXiv:2504.14372 (`z x deviation`), which has no guarantee. `exact`: of the widths that were measured when the
    tokens were made, which hold ``share`` of each block.
    """
    nominal = 1 - calibration.alpha
    found = [_found(region, "conformal", nominal, calibration, *_conformal(region.tiles, calibration))]
    if known is not None:
        alike = [replace(tile, group=None) for tile in known.tiles]
        split = calibrate(alike, calibration.alpha, classes=1, normalised=False)
        found.append(_found(region, "split", nominal, calibration, *_conformal(region.tiles, split)))
        if len(known.squares) > 1 and len(region.squares):
            found.append(_paper(region, calibration, known))
    if region.exact:
        found.append(_found(region, "exact", share, calibration, region.tiles, region.exact, float("nan")))
    return found


def reliability(region: Region, known: Region, like: Calibration) -> list[Found]:
    """Coverage at each of :data:`LEVELS` of calibrations on ``known``, made for each level ``like`` one."""
    found = []
    for level in LEVELS:
        own = calibrate(known.tiles, 1 - level, len(like.quantiles), like.normalised)
        found.append(_found(region, "conformal", level, own, *_conformal(region.tiles, own)))
    return found


def _conformal(tiles: list[Tile], calibration: Calibration) -> tuple[list[Tile], list[NDArray[np.bool_]], float]:
    widths = [calibration.widths(tile.roughness, tile.group) for tile in tiles]
    inside = [np.abs(tile.error) <= width for tile, width in zip(tiles, widths, strict=True)]
    return tiles, inside, float(np.concatenate(widths).mean()) if widths else float("nan")


def _paper(region: Region, calibration: Calibration, known: Region) -> Found:
    widths = paper_widths(known.squares, calibration.alpha)
    whole = [tile for tile in region.tiles if tile.error.size == widths.size]
    inside = [np.abs(tile.error) <= widths.reshape(-1) for tile in whole]
    name, mean = "z x deviation", float(widths.mean())
    return _found(region, name, 1 - calibration.alpha, calibration, whole, inside, mean)


def _found(
    region: Region,
    method: str,
    nominal: float,
    classes: Calibration,
    tiles: list[Tile],
    inside: list[NDArray[np.bool_]],
    width: float,
) -> Found:
    class_ = [classes.classes(tile.roughness) for tile in tiles]
    by_class = tuple(
        coverage([ok[of == number] for ok, of in zip(inside, class_, strict=True)])
        for number in range(len(classes.quantiles))
    )
    return Found(region.name, method, nominal, coverage(inside), by_class, width)
