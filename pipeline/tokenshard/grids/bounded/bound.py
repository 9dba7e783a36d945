"""What may be lost: nothing, at most so many units everywhere, or a share of the total vertical uncertainty at a depth.

TVU(d) = sqrt(a² + (b d)²) is the largest error at 95 % that IHO S-44 allows a survey of an order at depth d.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenshard.errors import SpecError

ORDERS: dict[str, tuple[float, float]] = {
    "exclusive": (0.15, 0.0075),
    "special": (0.25, 0.0075),
    "1a": (0.5, 0.013),
    "1b": (0.5, 0.013),
    "2": (1.0, 0.023),
}
"""Survey order of IHO S-44 -> a in metres, b."""


@dataclass(frozen=True)
class Bound:
    """``kind``: ``lossless``, ``abs`` (at most ``value`` units of the grid) or ``tvu`` (at most ``value`` of the TVU of
    ``order``, heights in metres, positive up)."""

    kind: str
    value: float = 0.0
    order: str = ""

    @classmethod
    def parse(cls, text: str) -> Bound:
        """Read ``lossless``, ``abs:E`` or ``tvu:order,f``. SpecError on anything else."""
        kind, _, rest = text.partition(":")
        order, comma, share = rest.rpartition(",")
        try:
            if kind == "lossless" and not rest:
                return cls("lossless")
            if kind == "abs" and not comma and 0 <= float(rest) < math.inf:
                return cls("abs", float(rest)) if float(rest) > 0 else cls("lossless")
            if kind == "tvu" and order in ORDERS and 0 < float(share) <= 1:
                return cls("tvu", float(share), order)
        except ValueError:
            pass
        orders = ", ".join(ORDERS)
        raise SpecError(
            f"bound {text!r} is none of: lossless, abs:E (E in units of the grid), tvu:ORDER,F (ORDER one of {orders}; "
            "F of the total vertical uncertainty, above 0 and at most 1); an example is tvu:1a,0.1"
        )

    def __str__(self) -> str:
        named = {"lossless": "lossless", "abs": f"abs:{self.value:g}", "tvu": f"tvu:{self.order},{self.value:g}"}
        return named[self.kind]

    def allowed(self, z: NDArray[Any]) -> NDArray[np.float64]:
        """Largest error of each height of ``z``, float64."""
        if self.kind != "tvu":
            return np.full(z.shape, self.value)
        a, b = ORDERS[self.order]
        depth = np.maximum(-z.astype(np.float64), 0)
        return self.value * np.sqrt(a * a + (b * depth) * (b * depth))
