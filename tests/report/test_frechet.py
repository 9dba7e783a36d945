"""The Fréchet distance of Gaussians against closed forms, and moments that come in batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tokenshard.report.frechet import Moments, frechet_distance


def moments(features: Tensor, *sizes: int) -> Moments:
    made = Moments(features.shape[1])
    for part in features.split(list(sizes) or len(features)):
        made.add(part)
    return made


def having(mean: Tensor, root: Tensor) -> Moments:
    """Moments of features with exactly this mean, and the covariance root @ root.T [d, d]."""
    d = len(mean)
    corners = torch.cat([torch.eye(d), -torch.eye(d)]).double() * (d - 0.5) ** 0.5  # of covariance 1
    return moments(mean + corners @ root.T)


def test_moments_do_not_depend_on_the_batches_and_keep_their_digits() -> None:
    features = 1e4 + torch.rand(97, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = moments(features, 1, 1, 40, 55)
    assert found.count == 97
    assert torch.allclose(found.mean, features.mean(0), rtol=1e-14)
    assert np.allclose(found.root() @ found.root().T, np.cov(features.T.numpy()), rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match="no covariance of 1 features"):
        moments(features[:1]).root()


def test_commuting_covariances_differ_by_their_roots() -> None:
    """N(μ, diag a²) and N(ν, diag b²), turned alike: |μ − ν|² + Σ (a − b)²."""
    generator = torch.Generator().manual_seed(1)
    a, b = torch.rand(2, 6, generator=generator, dtype=torch.float64)
    mean, other = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64))[0]
    expected = float((mean - other).square().sum() + (a - b).square().sum())
    found = frechet_distance(having(mean, turn @ torch.diag(a)), having(other, turn @ torch.diag(b)))
    assert found == pytest.approx(expected, rel=1e-12)


def test_covariances_that_do_not_commute() -> None:
    """In two dimensions tr (AB)^½ = (tr AB + 2 (det AB)^½)^½."""
    generator = torch.Generator().manual_seed(2)
    roots = torch.randn(2, 2, 2, generator=generator, dtype=torch.float64)
    a, b = (root @ root.T for root in roots)
    trace = ((a @ b).trace() + 2 * (a.det() * b.det()).sqrt()).sqrt()
    expected = float(a.trace() + b.trace() - 2 * trace)
    zero = torch.zeros(2, dtype=torch.float64)
    found = [frechet_distance(having(zero, one), having(zero, other)) for one, other in (roots, roots.flip(0))]
    assert found == pytest.approx([expected, expected], rel=1e-12)


def test_fewer_samples_than_axes_lose_nothing() -> None:
    """The covariances are singular: the same distance as in the few axes that the samples span."""
    generator = torch.Generator().manual_seed(3)
    small = torch.randn(2, 7, 10, generator=generator, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(300, 10, generator=generator, dtype=torch.float64))[0]
    found, wide = (frechet_distance(moments(a), moments(b)) for a, b in (small, small @ turn.T))
    assert wide == pytest.approx(found, rel=1e-10)
    assert found > 1


def test_equal_sets_have_no_distance() -> None:
    features = torch.rand(50, 200, generator=torch.Generator().manual_seed(4))
    assert frechet_distance(moments(features), moments(features.flip(0), 20, 30)) == pytest.approx(0, abs=1e-11)
    many = torch.rand(50, 20, generator=torch.Generator().manual_seed(4))
    assert frechet_distance(moments(many), moments(many.flip(0), 7, 13, 30)) == pytest.approx(0, abs=1e-11)


def test_many_features_have_the_distance_of_their_mean_and_covariance() -> None:
    """Joined or kept, whichever their number asks for: the distance of the same features in a wider space."""
    features = torch.randn(2, 300, 40, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    joined = frechet_distance(*(moments(one, 30, 11, 259) for one in features))
    wide = frechet_distance(*(moments(functional.pad(one, (0, 300))) for one in features))
    assert joined == pytest.approx(wide, rel=1e-10)
