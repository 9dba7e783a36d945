"""`fsq`: finite scalar quantization. No codebook, nothing to collapse.

Mentzer et al. 2023 (arXiv:2309.15505): each axis is bounded by tanh and rounded to one of a few values; the id is the
number with these digits in mixed radix, the first axis being the lowest digit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tokenshard.errors import SpecError
from tokenshard.quantizers.base import Quantized, Quantizer, from_rows, no_autocast, straight_through, to_rows

LEVELS = {256: (8, 6, 5), 1024: (8, 5, 5, 5), 4096: (7, 5, 5, 5, 5), 16384: (8, 8, 8, 6, 5), 65536: (8, 8, 8, 5, 5, 5)}
"""Values by axis that the paper recommends for about so many codes."""
MOST_CODES = 1 << 16


class FSQ(Quantizer):
    """``values[i]`` values on axis i; there are as many axes as values, and prod(values) ids.

    Vectors are in [-1, 1]: digit k of n values stands for (k - n // 2) / (n // 2).
    """

    name = "fsq"
    sides: Tensor
    radix: Tensor

    def __init__(self, dim: int, values: Sequence[int] | None = None, size: int | None = None, seed: int = 0) -> None:
        super().__init__()
        if values is None:
            if size not in LEVELS:
                raise SpecError(f"fsq: size must be one of {', '.join(map(str, LEVELS))}, or give the values by axis")
            values = LEVELS[size]
        codes = math.prod(values)
        if dim != len(values) or min(values) < 2 or codes > MOST_CODES:
            raise SpecError(
                f"fsq: values {list(values)} need dim {len(values)} (it is {dim}), at least 2 values an axis, and at "
                f"most {MOST_CODES} codes"
            )
        self.dim, self.values, self.levels = dim, tuple(int(value) for value in values), (codes,)
        self.seed = seed
        radix = [math.prod(values[:axis]) for axis in range(dim)]
        self.register_buffer("sides", torch.tensor(self.values), persistent=False)
        self.register_buffer("radix", torch.tensor(radix), persistent=False)

    def forward(self, z: Tensor) -> Quantized:
        with no_autocast(z):
            bounded = self._bounded(to_rows(z))
            digits = self._digits(bounded.detach())
            vectors = straight_through(bounded / self._half(), self._scaled(digits))
            ids = (digits * self.radix).sum(1, keepdim=True)
            return Quantized(from_rows(vectors, z), from_rows(ids, z), vectors.new_zeros(()))

    @torch.no_grad()
    def encode(self, z: Tensor) -> Tensor:
        with no_autocast(z):
            digits = self._digits(self._bounded(to_rows(z)))
            return from_rows((digits * self.radix).sum(1, keepdim=True), z)

    def vectors(self, ids: Tensor) -> Tensor:
        digits = torch.div(ids[:, 0].long()[..., None], self.radix, rounding_mode="floor") % self.sides
        return self._scaled(digits).movedim(-1, 1)

    def options(self) -> dict[str, Any]:
        return {"dim": self.dim, "values": list(self.values)}

    def exported(self) -> FSQ:
        return FSQ(self.dim, self.values)

    def _half(self) -> Tensor:
        return (self.sides // 2).float()

    def _bounded(self, rows: Tensor) -> Tensor:
        """[N, dim] squeezed so that rounding gives exactly the allowed values; even sides are moved by a half."""
        reach = (self.sides - 1).float() * (1 + 1e-3) / 2
        move = (self.sides % 2 == 0).float() / 2
        return (rows + torch.atanh(move / reach)).tanh() * reach - move

    def _digits(self, bounded: Tensor) -> Tensor:
        digits = bounded.round().long() + self.sides // 2
        return torch.minimum(digits.clamp_min(0), self.sides - 1)

    def _scaled(self, digits: Tensor) -> Tensor:
        return (digits - self.sides // 2).float() / self._half()
