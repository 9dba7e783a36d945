"""Mean removed, principal components kept, length 1: how wide token states become vectors of few dimensions.

States of a language model share a large mean, which would make all of them alike. Mean and components are fitted on a
sample of the pages themselves, since their rank is what is to be kept, and are stored with the dataset.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenshard.errors import FormatError
from tokenshard.retrieval.encoders.base import Vectors, normalized


@dataclass(frozen=True)
class Reduction:
    """``mean`` float32 [D] and ``basis`` float32 [D, d] with orthonormal columns."""

    mean: NDArray[np.float32]
    basis: NDArray[np.float32]

    @classmethod
    def fit(cls, states: Sequence[NDArray[np.float32]], dimensions: int) -> Reduction:
        """The ``dimensions`` principal components of states [n, D] of some pages. Sums are in float64, page by page.

        Where there are fewer states than components, arbitrary orthogonal directions fill up.
        """
        width = states[0].shape[1]
        total, products = np.zeros(width), np.zeros((width, width))
        for page in states:
            wide = page.astype(np.float64)
            total += wide.sum(0)
            products += wide.T @ wide
        count = max(1, sum(len(page) for page in states))
        mean = total / count
        _, components = np.linalg.eigh(products / count - np.outer(mean, mean))
        basis = components[:, ::-1][:, :dimensions]
        largest = basis[np.abs(basis).argmax(0), np.arange(dimensions)]  # the sign of a component is arbitrary
        return cls(mean.astype(np.float32), np.ascontiguousarray(basis * np.sign(largest), np.float32))

    @classmethod
    def from_tensors(cls, tensors: dict[str, NDArray[Any]], width: int, dimensions: int) -> Reduction:
        """Raises FormatError unless the tensors are ``mean`` [width] and ``basis`` [width, dimensions]."""
        expected = {"mean": (width,), "basis": (width, dimensions)}
        for name, shape in expected.items():
            tensor = tensors.get(name)
            if tensor is None or tensor.dtype != np.float32 or tensor.shape != shape or not np.isfinite(tensor).all():
                raise FormatError(f"tensor {name} of the page encoder is not float32 {list(shape)} of finite values")
        return cls(tensors["mean"], tensors["basis"])

    def tensors(self) -> dict[str, NDArray[Any]]:
        return {"mean": self.mean, "basis": self.basis}

    def __call__(self, states: NDArray[np.float32]) -> Vectors:
        """States [n, D] -> vectors [n, d] of length 1."""
        return normalized((states - self.mean) @ self.basis)
