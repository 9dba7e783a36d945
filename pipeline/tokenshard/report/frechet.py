"""The Fréchet distance of two sets of features, each taken for a Gaussian (Dowson and Landau 1982)."""

from __future__ import annotations

import torch
from torch import Tensor


class Moments:
    """Mean [d] and covariance [d, d] of features that come in batches, float64 on the CPU.

    The first features are kept as they are, at most d of them. More are joined as by Chan, Golub and LeVeque (1979), so
    that large means cost no digits and memory does not grow.
    """

    def __init__(self, width: int) -> None:
        self._width = width
        self._kept: list[Tensor] = []
        self._joined = 0
        self._mean = torch.zeros(width, dtype=torch.float64)
        self._scatter = torch.zeros(0, 0, dtype=torch.float64)

    def add(self, features: Tensor) -> None:
        """Features [n, d], n >= 1."""
        self._kept.append(features.detach().cpu().double())
        if self._joined or self.count > self._width:
            self._join()

    @property
    def count(self) -> int:
        return self._joined + sum(map(len, self._kept))

    @property
    def mean(self) -> Tensor:
        return self._mean if self._joined else torch.cat(self._kept).mean(0)

    def root(self) -> Tensor:
        """R [d, rank] such that R Rᵀ is the unbiased covariance. Raises ValueError with fewer than two features."""
        if self.count < 2:
            raise ValueError(f"no covariance of {self.count} features")
        root: Tensor
        if not self._joined:
            root = (torch.cat(self._kept) - self.mean).T / (self.count - 1) ** 0.5
            return root
        values, vectors = torch.linalg.eigh(self._scatter / (self._joined - 1))
        real = values > self._width * torch.finfo(values.dtype).eps * values[-1]  # the others are rounding
        root = vectors[:, real] * values[real].sqrt()
        return root

    def _join(self) -> None:
        batch = torch.cat(self._kept)
        count, mean = len(batch), batch.mean(0)
        centred, moved = batch - mean, mean - self._mean
        total = self._joined + count
        if not self._joined:
            self._scatter = torch.zeros(self._width, self._width, dtype=torch.float64)
        self._scatter.addmm_(centred.T, centred)
        self._scatter.addr_(moved, moved, alpha=self._joined * count / total)
        self._mean += moved * (count / total)
        self._joined = total
        self._kept.clear()


def frechet_distance(a: Moments, b: Moments) -> float:
    """Squared distance |μ − ν|² + tr(A) + tr(B) − 2 tr((AB)^½) of Gaussians of means μ, ν and covariances A, B.

    With A = R Rᵀ and B = S Sᵀ the last trace is the sum of the singular values of Rᵀ S: no root of a product is taken,
    which would be singular with fewer samples than axes.
    """
    r, s = a.root(), b.root()
    crossed = torch.linalg.svdvals(r.T @ s).sum()
    return max(0.0, float((a.mean - b.mean).square().sum() + r.square().sum() + s.square().sum() - 2 * crossed))
