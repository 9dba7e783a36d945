"""Means over seeds with 95 % confidence intervals, of the t distribution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean and how far the interval reaches to each side of it; NaN for a single value."""

    mean: float
    half: float
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.2f} ± {self.half:.2f}" if self.count > 1 else f"{self.mean:.2f}"


def interval(values: Sequence[float]) -> Interval:
    """Of the mean of independent values, one a seed. Of differences where they are paired."""
    count = len(values)
    if count < 2:
        return Interval(float(np.mean(values)), math.nan, count)
    half = t.ppf(0.5 + LEVEL / 2, count - 1) * np.std(values, ddof=1) / math.sqrt(count)
    return Interval(float(np.mean(values)), float(half), count)
