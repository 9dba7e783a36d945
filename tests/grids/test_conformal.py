"""Conformal widths: the right quantile, the right distribution of coverage, and classes that hold where regions
change."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from tokenshard.errors import SpecError
from tokenshard.grids.conformal import Tile, calibrate, coverage, coverage_by_class, paper_widths, split_quantile


class _Zero:
    """A fitted regressor that predicts 0: its absolute residuals are the scores themselves."""

    n_features_in_ = 1

    def fit(self, x: np.ndarray, y: np.ndarray) -> _Zero:
        return self

    def predict(self, x: np.ndarray) -> np.ndarray:
        return np.zeros(len(x))


@pytest.mark.parametrize(("n", "alpha"), [(19, 0.1), (50, 0.2), (500, 0.1), (997, 0.05), (1000, 0.32)])
def test_the_quantile_is_that_of_mapie(n: int, alpha: float) -> None:
    regression = pytest.importorskip("mapie.regression")
    sklearn = pytest.importorskip("sklearn.base")

    class Zero(sklearn.RegressorMixin, sklearn.BaseEstimator, _Zero):  # type: ignore[misc,name-defined]
        pass

    scores = np.random.default_rng(n).gamma(2.0, 3.0, n)
    x = np.zeros((n, 1))
    peer = regression.SplitConformalRegressor(Zero(), confidence_level=1 - alpha, prefit=True)
    peer.conformalize(x, scores)
    _, interval = peer.predict_interval(x[:1])
    assert split_quantile(scores, alpha) == pytest.approx(float(interval[0, 1, 0]), abs=1e-12)


def test_too_few_scores_give_no_limit_and_a_wrong_alpha_is_refused() -> None:
    assert split_quantile(np.arange(1.0, 9.0), 0.1) == math.inf
    assert split_quantile(np.arange(1.0, 10.0), 0.1) == 9
    for alpha in (0.0, 1.0, -0.1, math.nan):
        with pytest.raises(SpecError, match=r"such as 0\.1"):
            split_quantile(np.ones(100), alpha)


def test_coverage_of_exchangeable_scores_follows_its_beta_distribution() -> None:
    n, alpha, repeats = 500, 0.1, 2000
    rng = np.random.default_rng(5)
    # Scores are uniform, so that the quantile is itself the coverage given the calibration.
    found = np.array([split_quantile(rng.random(n), alpha) for _ in range(repeats)])
    k = math.ceil((n + 1) * (1 - alpha))
    error = 3 * found.std() / math.sqrt(repeats)
    assert 0.9 - error <= found.mean() <= 0.9 + 1 / (n + 1) + error
    assert stats.kstest(found, stats.beta(k, n + 1 - k).cdf).pvalue > 0.01


def tiles(count: int, seed: int, rough: float) -> list[Tile]:
    """Tiles whose cells share a level of error, and whose roughness tells it; ``rough`` moves the mix of a region."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        roughness = np.repeat(np.exp(rng.normal(rough, 1.0, 64)), 64)
        level = math.exp(rng.normal(0, 0.1))
        made.append(Tile(rng.laplace(0, 1, roughness.size) * roughness * level, roughness))
    return made


def test_classes_hold_in_another_region_where_one_quantile_and_the_papers_do_not() -> None:
    known, new = tiles(90, 0, 0.0), tiles(60, 1, 0.7)
    fifths = calibrate(known, 0.1, normalised=False)
    ours = calibrate(known, 0.1)
    whole = coverage([np.abs(tile.error) <= ours.widths(tile.roughness) for tile in new])
    assert whole.low <= 0.9 <= whole.high
    assert all(0.87 <= part.share <= 0.93 for part in coverage_by_class(new, ours, fifths))
    single = coverage_by_class(new, calibrate(known, 0.1, 1, normalised=False), fifths)
    assert min(part.share for part in single) < 0.8
    errors = np.stack([tile.error.reshape(64, 64) for tile in known])
    width = paper_widths(errors, 0.1)
    assert width.shape == (64, 64)
    assert np.ptp(width[:4, :4]) == 0
    paper = np.mean([np.abs(tile.error.reshape(64, 64)) <= width for tile in new])
    assert paper < 0.87


def test_intervals_are_those_of_tiles_not_of_cells() -> None:
    rng = np.random.default_rng(2)
    covered = [rng.random(4096) < share for share in rng.uniform(0.7, 1.0, 40)]
    found = coverage(covered)
    assert found.low < found.share < found.high
    assert found.high - found.low > 0.03  # cells alone would say 0.003
    assert (found.num_cells, found.num_tiles) == (40 * 4096, 40)
    assert math.isnan(coverage([np.zeros(0, bool)]).share)


def test_calibration_needs_enough_scores_a_class() -> None:
    with pytest.raises(SpecError, match="fewer classes"):
        calibrate([Tile(np.ones(200), np.arange(1.0, 201.0))], 0.1)
    with pytest.raises(SpecError, match="no tiles"):
        calibrate([], 0.1)
