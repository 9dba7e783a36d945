"""`grid fill`: gaps are filled as far as wanted, known cells stay, and interpolation stands beside the model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from grids.converting import convert_grids, decoder
from integration.command import command_here
from sources.grids.making import terrain, write_netcdf
from tokenshard.errors import SpecError
from tokenshard.grids.harmonic import harmonic
from tokenshard.store import Store
from tokenshard.training.fill import BANDS, FilledGrid, bent, measured
from tokenshard.training.folder import load_model

SIDE = 256


def test_harmonic_functions_are_found_again() -> None:
    y, x = np.mgrid[:40, :60].astype(float)
    values = 7 + 2 * x - 3 * y + 0.1 * (x * x - y * y) + 0.05 * x * y
    gap = np.zeros(values.shape, bool)
    gap[5:30, 10:50] = True
    gap[20:25, :3] = False
    found = harmonic(np.where(gap, 1e9, values), ~gap, gap)
    assert np.abs(found - values)[gap].max() < 1e-4 * np.ptp(values)
    assert np.isnan(found[~gap]).all()


def test_what_touches_no_known_cell_stays_empty_and_walls_let_nothing_through() -> None:
    values, known, gap = np.zeros((9, 20)), np.zeros((9, 20), bool), np.zeros((9, 20), bool)
    values[:, 0], known[:, 0], values[:, 9] = 5.0, True, 50.0
    gap[:, 1:8] = gap[:, 12:15] = True
    known[:, 9] = True  # column 8 is a wall
    found = harmonic(values, known, gap)
    assert np.allclose(found[:, 1:8], 5.0)
    assert np.isnan(found[:, 8:]).all()


def test_tokens_are_bent_to_the_cells_around() -> None:
    values = terrain(48, 48, 2)
    gap = np.zeros(values.shape, bool)
    gap[16:32, 16:32] = True
    offset = values + 40.0  # tokens that know the shape, but not the height
    assert np.abs(bent(values, ~gap, offset, gap) - values)[gap].max() < 1e-3
    nothing = np.full(values.shape, np.nan)
    assert np.array_equal(bent(values, ~gap, nothing, gap), harmonic(values, ~gap, gap), equal_nan=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grid with a gap, a lake of it far from any value, and a masked model of its tokens."""
    root = tmp_path_factory.mktemp("gaps")
    values = terrain(SIDE, SIDE, 1, 2.4).astype(np.float32)
    values[100:150, 60:110] = np.nan
    write_netcdf(root / "a.nc", values, np.linspace(10, 20, SIDE), np.linspace(30, 40, SIDE))
    np.save(root / "values.npy", values)
    convert_grids(root / "a.nc", root / "tokens", tile=64, job={"tokenizer": "grid:8x8,k=16,codebooks=1,step=40"})
    words = ["train", "mtm", "--data", str(root / "tokens"), str(root / "model"), "--embedding", "learned"]
    words += ["--size", "micro", "--batch", "8", "--steps", "40", "--device", "cpu"]
    done = command_here(*words)
    assert done.returncode == 0, done.stderr
    return root


def filled(folder: Path, reach: int = 64) -> FilledGrid:
    found = decoder(folder / "tokens")
    return FilledGrid(found.dataset, found.grid, load_model(Store(folder / "model"), "mtm"), reach)


def test_the_command_fills_the_gap_and_says_which_cells_are_filled(folder: Path) -> None:
    xarray = pytest.importorskip("xarray")
    to = folder / "filled.nc"
    words = ["grid", "fill", str(folder / "model"), str(folder / "tokens"), "--to", str(to), "--json"]
    done = command_here(*words, "--band", "elevation,harmonic,tid", "--check", "4", "--hole", "16")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert (facts["holes"], facts["side"], facts["bands"]) == (4, 16, list(BANDS))
    assert 0 < facts["harmonic_mae"] < facts["harmonic_rmse"]
    assert 0 < facts["model_mae"] < facts["model_rmse"]
    gains = facts["model_rmse"] <= 0.95 * facts["harmonic_rmse"]
    assert facts["verdict"] == ("gain over harmonic" if gains else "no gain over harmonic")
    values = np.load(folder / "values.npy")
    gap = np.isnan(values)
    with xarray.open_dataset(to, mask_and_scale=False) as made:
        elevation, tid = made["elevation"].values, made["tid"].values
        assert made.attrs["tokenshard_filled_by"]
        assert not np.array_equal(elevation[gap], made["elevation_harmonic"].values[gap])
    assert np.array_equal(elevation[~gap], values[~gap])
    assert np.isfinite(elevation).all()
    assert (tid[gap] == 41).all()
    assert (tid[~gap] == 70).all()
    edge = np.abs(elevation[100, 60:110] - elevation[99, 60:110]).mean()
    assert edge < 3 * np.abs(np.diff(values[:90], axis=0)).mean()


def test_no_cell_further_than_the_reach_is_filled(folder: Path) -> None:
    grid = filled(folder, reach=5)
    elevation, tid = grid.read(grid.reference.whole, grid.bands(["elevation", "tid"]))
    assert np.isnan(elevation[106:144, 66:104]).all()
    assert (tid[106:144, 66:104] == 0).all()
    assert np.isfinite(elevation[100:105, 70:100]).all()


def test_the_model_knows_nothing_of_removed_cells(folder: Path, tmp_path: Path) -> None:
    """What is drawn of a hole is the same whatever the removed cells were."""
    grid = filled(folder)
    window = grid.reference.whole
    gap = np.zeros(window.shape, bool)
    gap[16:48, 144:176] = True
    before = grid.suggested(window, gap, gap)
    other = np.load(folder / "values.npy")
    other[gap] += 700 + 50 * np.random.default_rng(0).normal(size=gap.sum())
    write_netcdf(tmp_path / "a.nc", other, np.linspace(10, 20, SIDE), np.linspace(30, 40, SIDE))
    tokenizer = next((folder / "tokens" / "tokenizer").iterdir())
    convert_grids(tmp_path / "a.nc", tmp_path / "tokens", tile=64, job={"tokenizer": str(tokenizer)})
    changed = decoder(tmp_path / "tokens")
    again = FilledGrid(changed.dataset, changed.grid, load_model(Store(folder / "model"), "mtm"))
    assert np.array_equal(before[gap], again.suggested(window, gap, gap)[gap])


def test_what_cannot_be_filled_is_refused(folder: Path, tmp_path: Path) -> None:
    grid = filled(folder)
    with pytest.raises(SpecError, match="no band 'lower' of a filled grid"):
        grid.bands(["lower"])
    with pytest.raises(SpecError, match=r"smaller than the .* cells that a hole"):
        measured(grid, 2, 128, 0)
    done = command_here("grid", "fill", str(folder / "model"), str(folder / "tokens"))
    assert (done.returncode, "give a file with --to" in done.stderr) == (2, True)
    convert_grids(folder / "a.nc", tmp_path / "o", tile=64, job={"tokenizer": "grid:8x8,k=8,codebooks=1,step=20"})
    done = command_here("grid", "fill", str(folder / "model"), str(tmp_path / "o"), "--check", "1")
    assert "its tokens are not those that the model learned from" in done.stderr
