"""What `tokenshard search query --show` draws: the pages that answer best, with the patches that do highlighted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tokenshard.report.pictures import PictureRow, reconstruction_grid
from tokenshard.report.samples import originals
from tokenshard.retrieval.encoders.base import Query, query_vectors
from tokenshard.retrieval.exact import Vectors
from tokenshard.retrieval.patches import Patches
from tokenshard.retrieval.search import Hit, PageSearch

WEAKEST = 0.85
"""Share of a page's patches, by similarity, that are not highlighted."""
ACCENT = np.array([235, 104, 16], np.float32)
STRONGEST = 0.75
"""Of the colour, on the most similar patch."""
BLANK = 512
"""Pixels of the longer side of a page that cannot be drawn."""


def draw_hits(search: PageSearch, query: Query, hits: Sequence[Hit], picture: str | Path) -> None:
    """Draw the pages of some hits into a PNG: as they are (where the source is at hand), and highlighted.

    A patch is the stronger coloured the more similar it is to the query vector it fits best.
    """
    vectors = query_vectors(search.encoder, query)
    pages = dict(originals(search.dataset, [hit.key for hit in hits]))
    rows = []
    for rank, hit in enumerate(hits, 1):
        best = similarity_map(search, vectors, search.dataset.index(hit.key))
        page = pages.get(hit.key)
        page = page if page is not None and page.size else None
        rows.append(PictureRow(page, highlighted(page, best), f"{rank}  {hit.score:.3f}  {hit.key}"))
    reconstruction_grid(rows, ("page", "what answers", "")).save(picture, "PNG")


def similarity_map(search: PageSearch, vectors: Vectors, number: int) -> NDArray[np.float32]:
    """Of each patch [rows, columns] of a page the greatest similarity to a query vector; NaN where no patch is kept."""
    places = Patches.of(search.dataset[number])
    found = search.compressor.similarities(vectors, search.codes.part(np.array([number])))
    return places.map(found.max(axis=0)) if found.size else np.full(places.grid, np.nan, np.float32)


def emphasis(best: NDArray[np.float32]) -> NDArray[np.float32]:
    """How strongly each patch of a map is highlighted, 0 to 1: the more, the more similar it is."""
    there = np.isfinite(best)
    if not there.any():
        return np.zeros(best.shape, np.float32)
    low, high = float(np.quantile(best[there], WEAKEST)), float(best[there].max())
    share: NDArray[np.float32] = np.clip((np.where(there, best, low) - low) / max(high - low, 1e-9), 0, 1)
    return share.astype(np.float32)


def highlighted(page: NDArray[np.uint8] | None, best: NDArray[np.float32]) -> NDArray[np.uint8]:
    """A page uint8 [height, width, 3] (None: blank) under similarities [rows, columns], NaN where nothing is."""
    shape = _blank(best.shape) if page is None else page.shape[:2]
    under: NDArray[Any] = np.full((*shape, 3), 255, np.float32) if page is None else page.astype(np.float32)
    scaled = Image.fromarray(emphasis(best)).resize((shape[1], shape[0]), Image.Resampling.NEAREST)
    alpha = STRONGEST * np.asarray(scaled)[..., None]
    return np.rint(under * (1 - alpha) + ACCENT * alpha).astype(np.uint8)


def _blank(grid: tuple[int, ...]) -> tuple[int, int]:
    factor = max(1, BLANK // max(grid))
    return grid[0] * factor, grid[1] * factor
