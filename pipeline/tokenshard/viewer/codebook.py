"""The codebook browser: codes by use with their pictures, and for each code its samples and neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np

from tokenshard.errors import SpecError
from tokenshard.tokenizers.base import Tokenizer
from tokenshard.viewer.counting import counted
from tokenshard.viewer.opened import Missing, Opened
from tokenshard.viewer.pictures import Pixels

MOST = 256
"""Codes of a page."""
ORDERS = ("most", "least", "number")


def codes_page(opened: Opened, level: int, order: str, first: int, count: int) -> dict[str, Any]:
    """A page of the codes of a level with their counts, and figures of the whole level."""
    found = counted(opened)
    use = found.level(level)
    shown = _ordered(opened, level, order, first, count)
    total = max(1, int(use.counts.sum()))
    return {
        "level": level,
        "levels": len(found.alphabets),
        "codes": [
            {
                "code": code,
                "count": int(use.counts[code]),
                "share": float(use.counts[code] / total),
                "rank": int(found.ranks[level][code]),
            }
            for code in shown
        ],
        "first": first,
        "alphabet": len(use.counts),
        "used": int(np.count_nonzero(use.counts)),
        "entropy": use.entropy,
        "perplexity": use.perplexity,
        "largest": int(use.counts.max(initial=0)),
        "curve": _curve(use.counts),
        "pictures": can_draw(opened, level),
        "counted": found.of_whom(),
    }


def code_details(opened: Opened, level: int, code: int) -> dict[str, Any]:
    """One code: where it occurs most, and beside which others."""
    found = counted(opened)
    use = found.level(level)
    if not 0 <= code < len(use.counts):
        raise Missing(f"no code {code} in level {level}; they go from 0 to {len(use.counts) - 1}")
    return {
        "level": level,
        "code": code,
        "count": int(use.counts[code]),
        "rank": int(found.ranks[level][code]),
        "alphabet": len(use.counts),
        "samples": [
            {"key": place.sample, "number": found.number_of[place.sample], "times": place.times}
            for place in use.top[code]
        ],
        "neighbours": found.neighbours(level, code),
        "pictures": can_draw(opened, level),
        "counted": found.of_whom(),
    }


def can_draw(opened: Opened, level: int) -> bool:
    """Whether a code has a picture of its own: those of later levels add to it, bytes of a file have none."""
    return level == 0 and opened.kind != "grid" and opened.decodes and bool(opened.described.downsample)


def codes_strip(opened: Opened, level: int, order: str, first: int, count: int) -> Pixels:
    """Pictures of the codes of :func:`codes_page`, from top to bottom, each decoded by itself."""
    return strip_of(opened, level, _ordered(opened, level, order, first, count))


def strip_of(opened: Opened, level: int, codes: list[int]) -> Pixels:
    """Pictures of some codes below each other. Raises Missing where codes have none."""
    alphabet = len(counted(opened).level(level).counts)
    if not codes or len(codes) > MOST or not all(0 <= code < alphabet for code in codes):
        raise Missing(f"codes go from 0 to {alphabet - 1}; give 1 to {MOST} of them")
    if not can_draw(opened, level):
        raise Missing("codes of this level have no pictures of their own")
    pixels = _alone(opened.tokenizer, np.array(codes))
    return pixels.reshape(-1, *pixels.shape[2:])


def _alone(tokenizer: Tokenizer, codes: Any) -> Pixels:
    """uint8 [n, height, width, 3]: what each code decodes to where it is all there is."""
    grid = (1,) * len(tokenizer.spec.downsample)
    ids = codes.reshape(-1, 1, *grid)
    decoded = tokenizer.decode(ids)
    return decoded[:, 0] if decoded.ndim == 5 else decoded


def _ordered(opened: Opened, level: int, order: str, first: int, count: int) -> list[int]:
    counts = counted(opened).level(level).counts
    if order not in ORDERS:
        raise SpecError(f"no order {order!r}; there are {', '.join(ORDERS)}")
    codes = np.arange(len(counts)) if order == "number" else np.argsort(-counts, kind="stable")
    if order == "least":
        codes = codes[::-1]
    shown: list[int] = codes[max(0, first) : max(0, first) + min(count, MOST)].tolist()
    return shown


def _curve(counts: Any) -> list[float]:
    """Share of all ids that the most frequent 1/64, 2/64, … of the codes have."""
    falling = np.cumsum(np.sort(counts)[::-1]) / max(1, int(counts.sum()))
    places = np.maximum(1, np.round(np.arange(1, 65) / 64 * len(counts)).astype(int)) - 1
    return [round(float(share), 5) for share in falling[places]]
