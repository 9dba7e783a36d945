"""Where a page answers a query is where it is coloured."""

from __future__ import annotations

import numpy as np

from tokenshard.report.hits import ACCENT, BLANK, STRONGEST, highlighted


def test_the_most_similar_patch_is_coloured_most_and_the_rest_left_as_it_is() -> None:
    page = np.full((40, 80, 3), 200, np.uint8)
    best = np.linspace(0, 0.5, 32, dtype=np.float32).reshape(4, 8)
    best[2, 3] = 0.9
    found = highlighted(page, best)
    expected = np.rint(200 * (1 - STRONGEST) + ACCENT * STRONGEST).astype(np.uint8)
    assert (found[20:30, 30:40] == expected).all()
    assert (found[:20] == 200).all()
    assert found.shape == page.shape


def test_empty_patches_and_pages_without_any_are_not_coloured() -> None:
    best = np.full((2, 3), np.nan, np.float32)
    assert (highlighted(np.full((20, 30, 3), 7, np.uint8), best) == 7).all()
    best[0, 0] = 0.5
    found = highlighted(None, best)
    assert found.shape == (2 * (BLANK // 3), 3 * (BLANK // 3), 3)
    assert (found[BLANK // 3 :] == 255).all()
