"""Pictures of a report as `data:` URIs, small enough that the whole page stays below two megabytes."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tokenshard.grids.dataset import GridDataset
from tokenshard.grids.decode import GridDecoder
from tokenshard.report.code_use import CodeUse
from tokenshard.report.pictures import code_map
from tokenshard.report.summary.figures import MOST_TILES, Summary
from tokenshard.scratch import scratch_folder
from tokenshard.sources.grids.tiles import level_size

MOST_BYTES = 1_200_000
"""Of all pictures together; what comes after is left out."""
EXACT_SIDE = 128
"""Pictures up to this side are kept exactly, as PNG; larger ones as WebP."""
LARGEST_SIDE = 480
MAP_CELLS = 4_000_000
MAP_SIDE = 1200


class Tile(NamedTuple):
    """A picture with what it shows."""

    heading: str
    uri: str
    exact: bool
    """whether it is of few, large pixels"""


class Card(NamedTuple):
    """Pictures of one sample: a line of tiles, or of a clip several."""

    text: str
    lines: list[list[Tile]]


def sample_cards(summary: Summary) -> Iterator[Card]:
    """The drawn samples, as many as fit."""
    left = MOST_BYTES
    for sample in summary.drawn.samples:
        columns: list[list[Tile]] = []
        for row in sample.rows:
            codes = None if row.codes is None else code_map(row.codes)
            pictures = zip(summary.drawn.headings, (row.original, row.reconstruction, codes), strict=True)
            columns.append([_tile(heading, image) for heading, image in pictures if image is not None])
        left -= sum(len(tile.uri) for column in columns for tile in column)
        if left < 0:
            return
        several = len(columns) > 1 and len({len(column) for column in columns}) == 1
        yield Card(sample.line, [list(line) for line in zip(*columns, strict=True)] if several else columns)


def use_picture(use: CodeUse) -> str:
    """Every code of a codebook as a cell, row by row, the lighter the more it is used (log scale)."""
    side = int(np.ceil(np.sqrt(len(use.counts))))
    rows = -(-len(use.counts) // side)
    cells = np.zeros(rows * side)
    cells[: len(use.counts)] = np.log2(1 + use.counts)
    peak = cells.max(initial=0) or 1.0
    return _png(code_map(np.rint(cells / peak * 255).reshape(rows, side)))


def grid_maps(summary: Summary, most: int = 2) -> list[Card]:
    """Maps of the first grids, at the finest level that is not too large. Raises SpecError without matplotlib."""
    dataset = summary.dataset
    if dataset.manifest.kind != "grid" or len(dataset) > MOST_TILES:
        return []
    from tokenshard.report.grid_maps import depth_map

    grids, cards = GridDataset(dataset), []
    for name, grid in list(grids.grids.items())[:most]:
        levels = grids.levels(name)
        sizes = {level: level_size(grid.entry.height, level) * level_size(grid.entry.width, level) for level in levels}
        fitting = [level for level in levels if sizes[level] <= MAP_CELLS]
        if not fitting:
            continue
        with scratch_folder() as scratch:
            path = Path(scratch, "map.png")
            depth_map(GridDecoder(grids, name, fitting[0]), path)
            with Image.open(path) as picture:
                uri = _webp(picture.convert("RGB"), MAP_SIDE)
        text = f"{grid.entry.uri}, level {fitting[0]}"
        cards.append(Card(text, [[Tile("", uri, False)]]))
    return cards


def _tile(heading: str, pixels: NDArray[np.uint8]) -> Tile:
    exact = max(pixels.shape[:2]) <= EXACT_SIDE
    return Tile(heading, _png(pixels) if exact else _webp(Image.fromarray(pixels), LARGEST_SIDE), exact)


def _png(pixels: NDArray[np.uint8]) -> str:
    return _uri(Image.fromarray(pixels), "png", optimize=True)


def _webp(image: Image.Image, side: int) -> str:
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return _uri(image, "webp", quality=88)


def _uri(image: Image.Image, form: str, **options: int | bool) -> str:
    file = io.BytesIO()
    image.save(file, form.upper(), **options)
    return f"data:image/{form};base64,{base64.b64encode(file.getvalue()).decode()}"
