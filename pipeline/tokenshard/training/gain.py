"""Whether a model of grids is worth more than interpolation without one."""

from __future__ import annotations

WANTED = 0.95
"""Of the RMSE of interpolation: what is above is no gain."""


def gain_over(baseline: str, ratio: float) -> str:
    """What is said of a model whose RMSE is so much of the baseline's."""
    return f"gain over {baseline}" if ratio <= WANTED else f"no gain over {baseline}"
