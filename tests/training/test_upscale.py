"""`grid upscale`: four cells for each, in their place, the same however they are cut, with bicubic beside them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from grids.converting import convert_grids, decoder
from integration.command import command_here
from sources.grids.making import terrain, write_netcdf
from tokenshard.errors import SpecError
from tokenshard.grids.georeference import Window
from tokenshard.store import Store
from tokenshard.training.folder import load_model
from tokenshard.training.models.upscaler import bicubic
from tokenshard.training.upscale import UpscaledGrid

HEIGHT, WIDTH = 97, 120


@pytest.fixture(scope="module")
def earth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grid around the earth with a hole, at levels 1 and 2, and an upscaler that learned of it for a moment."""
    folder = tmp_path_factory.mktemp("earth")
    values = terrain(HEIGHT, WIDTH, 3, 2.4).astype(np.float32)
    values[40:50, 30:50] = np.nan
    write_netcdf(folder / "earth.nc", values, np.arange(-178.5, 180, 3), np.linspace(-72, 72, HEIGHT))
    np.save(folder / "values.npy", values)
    convert_grids(folder / "earth.nc", folder / "tokens", "lossless", tile=32, levels=(1, 2))
    words = ["train", "grid-sr", "--data", str(folder / "tokens"), str(folder / "model")]
    done = command_here(
        *words,
        "--steps",
        "3",
        "--batch",
        "2",
        "--set",
        "model.depth=3",
        "--set",
        "optimizer.lr=1e-4",
        "--device",
        "cpu",
    )
    assert done.returncode == 0, done.stderr
    return folder


def upscaled(earth: Path, level: int) -> UpscaledGrid:
    found = decoder(earth / "tokens", level=level)
    return UpscaledGrid(found.dataset, found.grid, load_model(Store(earth / "model"), "grid-sr"), level)


def test_the_reduced_level_becomes_the_cells_it_was_made_of(earth: Path) -> None:
    xarray = pytest.importorskip("xarray")
    to = earth / "twice.nc"
    words = ["grid", "upscale", str(earth / "model"), str(earth / "tokens"), "--level", "2", "--to", str(to), "--json"]
    done = command_here(*words, "--band", "elevation,bicubic")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert (facts["height"], facts["width"], facts["bound"], facts["max_error"]) == (HEIGHT, WIDTH, "none", None)
    truth = np.load(earth / "values.npy")
    with xarray.open_dataset(to) as made, xarray.open_dataset(earth / "earth.nc") as source:
        assert np.abs(made["lon"].values - source["lon"].values).max() < 1e-9
        assert np.abs(made["lat"].values - source["lat"].values).max() < 1e-9
        assert made.attrs["tokenshard_upscaled_by"]
        error, plain = (made[name].values - truth for name in ("elevation", "elevation_bicubic"))
    assert np.sqrt(np.nanmean(error**2)) < np.sqrt(np.nanmean(plain**2))
    assert np.isnan(error[42:48, 32:48]).all()
    assert np.isfinite(error[:38]).all()


def test_the_finest_level_becomes_finer_than_the_source(earth: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    to = earth / "fine.tif"
    done = command_here("grid", "upscale", str(earth / "model"), str(earth / "tokens"), "--to", str(to))
    assert done.returncode == 0, done.stderr
    with rasterio.open(to) as file:
        assert (file.height, file.width) == (2 * HEIGHT, 2 * WIDTH)
        assert file.transform.a == pytest.approx(1.5)
        assert (file.transform.c, file.transform.f) == pytest.approx((-180, -72.75))
        made = file.read(1)
    truth = np.load(earth / "values.npy")
    means = made.reshape(HEIGHT, 2, WIDTH, 2).mean(axis=(1, 3))
    there = ~np.isnan(truth)
    assert np.array_equal(~np.isnan(means), there)
    assert np.abs(means - truth)[there].mean() < 0.1 * truth[there].std()


@pytest.mark.parametrize("level", [1, 2])
def test_windows_are_parts_of_the_whole_also_across_180_degrees(earth: Path, level: int) -> None:
    grid = upscaled(earth, level)
    whole, plain = grid.read(grid.reference.whole, grid.bands(["elevation", "bicubic"]))
    (part,) = grid.read(Window(slice(5, 40), slice(31, 78)), grid.bands(None))
    assert np.allclose(part, whole[5:40, 31:78], atol=0.01, equal_nan=True)
    width = grid.reference.width
    (across,) = grid.read(Window(slice(0, 20), slice(width - 9, width + 12)), grid.bands(None))
    assert np.allclose(across, np.roll(whole, 9, axis=1)[:20, :21], atol=0.01, equal_nan=True)
    strips = np.concatenate([values[0] for _, values in grid.strips(grid.reference.whole, grid.bands(None))])
    assert np.allclose(strips, whole, atol=0.01, equal_nan=True)
    source = decoder(earth / "tokens", level=level)
    (coarse,) = source.read(source.reference.whole, source.bands(["elevation"]))
    wide = np.concatenate([coarse[:30, -3:], coarse[:30], coarse[:30, :3]], axis=1)
    wanted = bicubic(torch.from_numpy(wide)[None, None])[0, 0, :, 6:-6].numpy()
    assert np.allclose(plain[:30], wanted[:30], atol=0.01)


def test_what_cannot_be_drawn_is_refused(earth: Path) -> None:
    with pytest.raises(SpecError, match="no band 'lower' of an upscaled grid"):
        upscaled(earth, 1).bands(["lower"])
    with pytest.raises(SpecError, match=r"level 4 .* is not stored"):
        upscaled(earth, 4)
    done = command_here("grid", "upscale", str(earth / "tokens"), str(earth / "tokens"), "--to", "x.tif")
    assert done.returncode != 0
