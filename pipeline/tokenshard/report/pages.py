"""What `tokenshard show` draws of page vectors: the page, where its source is at hand, and its attention."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenshard.report.pictures import PictureRow, code_map
from tokenshard.retrieval.patches import Patches

TEXT_SHOWN = 160
"""Characters of a page's text in its line."""


def page_rows(
    samples: Sequence[Mapping[str, Any]], originals: Mapping[str, NDArray[np.uint8]]
) -> tuple[list[PictureRow], list[str]]:
    """A picture row and a line of text for each page."""
    rows, lines = [], []
    for sample in samples:
        places = Patches.of(sample)
        height, width = places.grid
        page = originals.get(sample["key"])
        rows.append(PictureRow(page if page is not None and page.size else None, attention(places), sample["key"]))
        text = " ".join(str(sample.get("text") or "").split())
        said = f": {text[:TEXT_SHOWN]}{'…' if len(text) > TEXT_SHOWN else ''}" if text else ""
        vectors = f"{len(places.positions):,} vectors of {len(places.labels):,} on {height} x {width} patches"
        lines.append(f"{sample['key']}  {vectors}{said}")
    return rows, lines


def attention(places: Patches) -> NDArray[np.uint8]:
    """The attention that patches received as colours, dark where there is none; text without a page in lines."""
    saliency = np.ones(len(places.positions), np.float32) if places.saliency is None else places.saliency
    shown = np.nan_to_num(places.map(np.log2(1 + saliency)))
    if shown.shape[0] == 1:
        side = math.isqrt(shown.size - 1) + 1
        shown = np.pad(shown.ravel(), (0, -shown.size % side)).reshape(-1, side)
    peak = float(shown.max(initial=0))
    return code_map(np.rint(shown / peak * 255) if peak else shown)
