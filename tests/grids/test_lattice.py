"""Tokens lie on one lattice: how a grid is cut into tiles, and where the 180 degree line is, shows nowhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from grids.converting import convert_grids, decoder
from sources.grids.making import terrain, write_netcdf
from tokenshard.grids.lattice import Lattice
from tokenshard.spec.grids import GridEntry, LayerEntry
from tokenshard.store import Store
from tokenshard.tokenizers.folder import load_tokenizer, save_tokenizer
from tokenshard.tokenizers.grid import GridTokenizer

HEIGHT, WIDTH = 120, 240


@pytest.fixture(scope="module")
def earth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grid around the earth (periodic, with a hole on the 180 degree line) in tiles of 32 and of 96 cells."""
    folder = tmp_path_factory.mktemp("earth")
    values = terrain(HEIGHT, WIDTH, 3).astype(np.float32)
    values[40:60, :5] = values[40:60, -9:] = np.nan
    lon, lat = np.arange(-179.25, 180, 1.5), np.linspace(-89.25, 89.25, HEIGHT)
    write_netcdf(folder / "earth.nc", values, lon, lat)
    np.save(folder / "values.npy", values)
    save_tokenizer(GridTokenizer.fit([terrain(512, 512, 1)], 0, k=64, step=20.0), Store(folder / "tokenizer"), "")
    for tile in (32, 96):
        job = {"tokenizer": str(folder / "tokenizer")}
        convert_grids(folder / "earth.nc", folder / f"tiles-{tile}", "none", tile=tile, levels=(1, 2), job=job)
    return folder


def tokens(folder: Path, tile: int, level: int = 1) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    found = decoder(folder / f"tiles-{tile}", level=level)
    rough, width = found.read(found.reference.whole, found.bands(["tokens", "width"]))
    return rough, width


@pytest.mark.parametrize("level", [1, 2])
def test_tile_size_is_a_choice_of_storage(earth: Path, level: int) -> None:
    for small, large in zip(tokens(earth, 32, level), tokens(earth, 96, level), strict=True):
        assert np.array_equal(small, large, equal_nan=True)


def test_the_180_degree_line_is_a_border_like_any_other(earth: Path, tmp_path: Path) -> None:
    """The same earth, turned by a whole number of patches, decodes to the same cells."""
    values = np.roll(np.load(earth / "values.npy"), 88, axis=1)
    write_netcdf(tmp_path / "earth.nc", values, np.arange(-179.25, 180, 1.5), np.linspace(-89.25, 89.25, HEIGHT))
    job = {"tokenizer": str(earth / "tokenizer")}
    convert_grids(tmp_path / "earth.nc", tmp_path / "tiles-32", "none", job=job)
    for turned, before in zip(tokens(tmp_path, 32), tokens(earth, 32), strict=True):
        assert np.array_equal(np.roll(turned, -88, axis=1), before, equal_nan=True)


def test_widths_hold_in_every_block_of_what_is_decoded_with_its_neighbours(earth: Path) -> None:
    values = np.load(earth / "values.npy").astype(np.float64)
    rough, width = tokens(earth, 32)
    held = (np.abs(rough - values) <= width * (1 + 1e-5)).reshape(15, 8, 30, 8)
    valid = ~np.isnan(values).reshape(15, 8, 30, 8)
    share = (held & valid).sum(axis=(1, 3)) / np.maximum(valid.sum(axis=(1, 3)), 1)
    assert (share[valid.any(axis=(1, 3))] >= 0.9).all()


def test_errors_jump_no_more_at_borders_of_tiles(earth: Path) -> None:
    """Acceptance: 1.10 times the jump between interior columns, the 180 degree line included."""
    values = np.load(earth / "values.npy").astype(np.float64)
    error = tokens(earth, 32)[0] - values
    jumps = np.nanmean(np.abs(error - np.roll(error, 1, axis=1)), axis=0)
    borders = np.arange(WIDTH) % 32 == 0
    assert jumps[borders].mean() <= 1.10 * jumps[~borders].mean()
    down = np.nanmean(np.abs(np.diff(error, axis=0)), axis=1)
    borders = np.arange(1, HEIGHT) % 32 == 0
    assert down[borders].mean() <= 1.10 * down[~borders].mean()


def entry(width: int, period: int | None) -> GridEntry:
    layer = LayerEntry(name="z", role="elevation", dtype="float32")
    shape = {"height": 64, "width": width, "period": period, "layers": (layer,)}
    return GridEntry(uri="a", form="raster", registration="pixel", rows="north-up", geographic=True, **shape)


def test_patches_meet_around_the_earth_where_a_turn_is_a_whole_number_of_them() -> None:
    assert Lattice.of(entry(160, 160), 1, (8, 8)).across(-2, 24).tolist() == [18, 19, *range(20), 0, 1]
    assert Lattice.of(entry(160, 160), 2, (8, 8)).across(-1, 12).tolist() == [9, *range(10), 0]
    assert Lattice.of(entry(161, 160), 1, (8, 8)).across(-1, 23).tolist() == [19, *range(21), -1]  # a repeated column
    assert Lattice.of(entry(164, 164), 1, (8, 8)).across(-1, 23).tolist() == [-1, *range(21), -1]
    assert Lattice.of(entry(160, None), 1, (8, 8)).across(-1, 22).tolist() == [-1, *range(20), -1]
    assert Lattice.of(entry(160, 160), 1, (8, 8)).down(-1, 10).tolist() == [-1, *range(8), -1]


def test_a_tokenizer_of_the_dataset_is_the_one_it_was_given(earth: Path) -> None:
    store = Store(earth / "tokenizer")
    found = decoder(earth / "tiles-32").dataset.dataset
    assert load_tokenizer(store, "").spec.fingerprint == found.manifest.tokenizer.fingerprint
