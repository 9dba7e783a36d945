"""The maps that smooth decoded grids across patches: one for each number of shapes, and none that knows a direction."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray

from sources.grids.making import terrain
from tokenshard.tokenizers import grid_window, lapped
from tokenshard.tokenizers.grid_split import patch_means, whole_cells
from tokenshard.tokenizers.grid_window import Decoded, fit_window, pulled, symmetries

PATCH, FLOOR = (8, 8), 128


def observed(field: NDArray[np.float64], patch: tuple[int, int] = PATCH, rough: float = np.inf) -> Decoded:
    """A field in steps whose patches say their means alone; those of more than ``rough`` steps say half of the rest."""
    truth, valid = whole_cells(field, patch)
    there, means = patch_means(truth, valid)
    shapes = (np.ptp(truth, axis=2) > rough * lapped.UNIT).astype(np.int64)
    flat = means[..., None] * lapped.UNIT
    return Decoded(truth, valid, there, means, flat + np.rint(shapes[..., None] * (truth - flat) / 2), shapes)


def smoothed(field: Decoded, maps: NDArray[np.int32], patch: tuple[int, int] = PATCH) -> NDArray[np.float64]:
    return lapped.smoothed(field.cells, field.means, field.there, field.shapes, maps, patch)


@pytest.mark.parametrize("patch", [(8, 8), (4, 6)])
def test_maps_are_alike_in_all_directions(patch: tuple[int, int]) -> None:
    field = observed(terrain(96, 96, 1) / 20, patch)
    maps = fit_window([field], 1, patch, FLOOR, 0)[0]
    turns = symmetries(patch)
    assert len({tuple(inputs) for inputs, _ in turns}) == len(turns) == (8 if patch[0] == patch[1] else 4)
    for inputs, outputs in turns:
        assert np.abs(maps[inputs][:, outputs] - maps).max() <= 1  # rounded
    mirrored = observed(terrain(96, 96, 1)[::-1] / 20, patch)
    there_and_back = lapped.joined(smoothed(mirrored, maps[None], patch), patch)[::-1]
    assert np.abs(there_and_back - lapped.joined(smoothed(field, maps[None], patch), patch)).max() <= lapped.UNIT / 8


def test_each_number_of_shapes_has_a_map_of_its_own_and_one_that_is_never_seen_does_as_all() -> None:
    field = observed(terrain(256, 256, 2) / 20, rough=8)
    assert 0.2 < field.shapes.mean() < 0.8
    maps = fit_window([field], 3, PATCH, FLOOR, 0)
    assert np.abs(maps[0] - maps[1]).max() > 100
    alike = field._replace(shapes=np.zeros_like(field.shapes))
    one = fit_window([alike], 3, PATCH, FLOOR, 0)
    assert np.abs(one[1:] - one[0]).max() <= 1
    error, of_one = (np.abs(smoothed(seen, many) - field.truth).mean() for seen, many in ((field, maps), (alike, one)))
    assert error < 0.9 * of_one
    chosen = field.shapes == 1
    only = smoothed(field, np.concatenate([maps[:1] * 0, maps[1:]]))
    assert np.array_equal(only[~chosen], field.cells[~chosen])
    assert np.array_equal(only[chosen], smoothed(field, maps)[chosen])


def test_what_is_fitted_to_borders_leaves_smaller_jumps_at_the_price_of_next_to_no_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train, test = observed(terrain(256, 256, 3) / 20), observed(terrain(256, 256, 4) / 20)
    found = []
    for pull in (0.0, 1.0):
        monkeypatch.setattr(grid_window, "PULL", pull)
        left = smoothed(test, fit_window([train], 1, PATCH, FLOOR, 0)) - test.truth
        error = lapped.joined(left, PATCH)
        found.append((np.abs(error).mean(), np.abs(error[:, 8::8] - error[:, 7:-1:8]).mean()))
    assert found[1][1] < 0.9 * found[0][1]
    assert found[1][0] < 1.02 * found[0][0]


def test_borders_are_drawn_to_the_errors_across_and_to_nothing_that_is_not_known() -> None:
    error = np.zeros((4, 6))
    error[1, 2], error[2, 2], error[1, 3] = 6, 12, 24
    valid = np.ones(error.shape, np.bool_)
    cut = lapped.patches(error, (2, 3))
    found = lapped.joined(pulled(cut, lapped.patches(valid, (2, 3)), (2, 3)), (2, 3))
    assert found[1, 2] == (12 + 24) / 3
    assert found[2, 2] == 6 / 3
    assert found[1, 3] == 6 / 3
    assert np.count_nonzero(found) == 4
    valid[1, 3] = False
    found = lapped.joined(pulled(cut, lapped.patches(valid, (2, 3)), (2, 3)), (2, 3))
    assert found[1, 2] == 12 / 2


def test_maps_are_fitted_to_fields_drawn_by_the_seed_where_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = [observed(terrain(64, 64, seed) / 20) for seed in range(5)]
    monkeypatch.setattr(grid_window, "SAMPLE", 2 * 64)
    drawn = fit_window(fields, 1, PATCH, FLOOR, 7)
    assert np.array_equal(drawn, fit_window(fields, 1, PATCH, FLOOR, 7))
    pairs = list(combinations(fields, 2))
    assert sum(np.array_equal(drawn, fit_window(pair, 1, PATCH, FLOOR, 7)) for pair in pairs) == 1
