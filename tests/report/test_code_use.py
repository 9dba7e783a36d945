"""Use of codes against a recount by hand, and merging of the reports of parts (acceptance check A23)."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray

from tokenshard.report.code_use import CodeUse, Place, conditional_entropy

ALPHABET = 50


@pytest.fixture(scope="module")
def samples() -> list[tuple[str, NDArray[np.uint16]]]:
    """1,000 token grids of different sizes; the last five codes never occur."""
    draw = np.random.default_rng(0)
    grids = []
    for number in range(1000):
        rows, columns = draw.integers(2, 9, 2)
        ids = np.minimum(draw.geometric(0.1, (rows, columns)) - 1, ALPHABET - 6).astype(np.uint16)
        grids.append((f"image-{number:04d}", ids))
    return grids


def test_counts_entropy_and_top_samples_equal_a_recount(samples: list[tuple[str, NDArray[np.uint16]]]) -> None:
    use = CodeUse.of(samples, ALPHABET, most=4)
    counted = Counter(int(code) for _, ids in samples for code in ids.ravel())
    assert use.counts.tolist() == [counted[code] for code in range(ALPHABET)]
    assert use.usage == len(counted) / ALPHABET == 0.9
    total = sum(counted.values())
    entropy = -sum(count / total * np.log2(count / total) for count in counted.values())
    assert use.entropy == pytest.approx(entropy)
    assert use.perplexity == pytest.approx(2**entropy)
    for code in range(ALPHABET):
        places = [(-int((ids == code).sum()), key) for key, ids in samples if (ids == code).any()]
        assert use.top[code] == tuple(Place(key, -times) for times, key in sorted(places)[:4])


@pytest.mark.parametrize("parts", [1, 2, 7])
def test_merged_reports_of_parts_are_the_report_of_all(
    samples: list[tuple[str, NDArray[np.uint16]]], parts: int
) -> None:
    whole = CodeUse.of(samples, ALPHABET, most=3)
    reports = [CodeUse.of(samples[part::parts], ALPHABET, most=3) for part in range(parts)]
    merged = reports[0]
    for report in reports[1:]:
        merged = report.merged(merged)
    assert (merged.counts == whole.counts).all()
    assert merged.top == whole.top
    assert merged.entropy == whole.entropy


def test_a_row_of_the_table_names_code_count_and_samples() -> None:
    use = CodeUse.of([("b", np.array([1, 1, 0])), ("a", np.array([1, 1]))], 3, most=2)
    assert list(use.rows(0)) == [
        {"level": 0, "code": 0, "count": 1, "samples": "b:1"},
        {"level": 0, "code": 1, "count": 4, "samples": "a:2 b:2"},
        {"level": 0, "code": 2, "count": 0, "samples": ""},
    ]


def test_conditional_entropy_is_that_of_the_chain_the_ids_come_from() -> None:
    draw = np.random.default_rng(1)
    steps = np.cumsum(draw.integers(0, 4, (50, 2000)), axis=1) % 16  # the next id is one of four, equally likely
    assert conditional_entropy([steps], axis=1) == pytest.approx(2, abs=0.01)
    assert conditional_entropy([steps.T], axis=0) == pytest.approx(2, abs=0.01)
    assert conditional_entropy([steps], axis=0) == pytest.approx(4, abs=0.01)
    assert conditional_entropy([np.zeros((1, 1), int)], axis=0) == 0
