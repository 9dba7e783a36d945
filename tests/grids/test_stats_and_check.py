"""What datasets of grids cost, and whether their cells are within the bound: recomputed from the source."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from grids.converting import convert_grids, decoder
from sources.grids.making import opened, seafloor, whole, write_netcdf, write_tiff
from tokenshard.cli.main import cli
from tokenshard.errors import SpecError
from tokenshard.grids.check import check_bounds, compare_tile
from tokenshard.grids.dataset import GridDataset
from tokenshard.grids.export import export_grid
from tokenshard.shards.dataset import open_dataset

LON, LAT = np.linspace(10, 16.9, 70), np.linspace(50, 54.9, 50)


def called(*words: str, code: int = 0) -> Any:
    done = CliRunner().invoke(cli, [*words, "--json"], catch_exceptions=False, standalone_mode=False)
    assert (done.return_value or 0) == code, done.output
    return json.loads(done.output)


def test_stats_say_bits_by_layer_and_the_largest_error(tmp_path: Path) -> None:
    values = seafloor(50, 70).astype(np.float32)
    values[:5] = np.nan
    write_tiff(tmp_path / "a.tif", [values, np.full_like(values, 0.25)], ("Elevation", "Uncertainty"))
    convert_grids(tmp_path / "a.tif", tmp_path / "out", bound="abs:0.5", levels=(1, 2))
    found = called("stats", str(tmp_path / "out"))
    assert (found["bound"], found["grids"]) == ("abs:0.5", 1)
    assert found["cells"] == 50 * 70 + 25 * 35
    assert found["valid_cells"] == 45 * 70 + 23 * 35
    assert 0 < found["max_error"] <= 0.5 * (1 + 1e-6)
    layers = found["layer_bytes"]
    assert sum(layers.values()) == found["bytes"]
    assert min(layers.values()) > 0
    assert found["bound_bits_per_cell"] == pytest.approx(8 * layers["bounded"] / found["valid_cells"])
    printed = CliRunner().invoke(cli, ["stats", str(tmp_path / "out")]).output
    assert "bound_bits_per_cell" in printed
    assert "widths bytes" in printed


def test_tokens_alone_have_no_bound_to_report(tmp_path: Path) -> None:
    write_netcdf(tmp_path / "a.nc", seafloor(50, 70).astype(np.float32), LON, LAT)
    convert_grids(tmp_path / "a.nc", tmp_path / "out", bound="none")
    found = called("stats", str(tmp_path / "out"))
    assert (found["bound_bits_per_cell"], found["max_error"]) == (None, None)
    with pytest.raises(SpecError, match="holds tokens alone"):
        check_bounds(GridDataset(open_dataset(tmp_path / "out")))


@pytest.mark.parametrize("bound", ["abs:0.05", "abs:0.5", "abs:5", "abs:25"])
def test_bounds_hold_in_exported_files_of_every_type(tmp_path: Path, bound: str) -> None:
    """Packed kilometres, whole metres and real ones, with cells without a value."""
    most = float(bound.partition(":")[2])
    field = seafloor(50, 70)
    gap = np.zeros(field.shape, np.bool_)
    gap[10:20, 30:50] = True
    kilometres = {"units": "km", "scale_factor": 0.001, "_FillValue": np.int16(-32768)}
    for name, values, own in (
        ("packed", np.where(gap, -32768, np.rint(field)).astype(np.int16), kilometres),
        ("whole", np.where(gap, -9999, np.rint(field)).astype(np.int32), {"_FillValue": np.int32(-9999)}),
        ("real", np.where(gap, np.nan, field).astype(np.float32), {}),
        ("large", np.where(gap, np.nan, field + 980_000), {}),
    ):
        source, out = tmp_path / f"{name}.nc", tmp_path / name
        write_netcdf(source, values, LON, LAT, attributes=own)
        convert_grids(source, out, bound=bound, tile=64)
        for suffix in (".tif", ".nc"):
            export_grid(decoder(out), str(tmp_path / f"{name}_back{suffix}"))
            found = whole(opened(tmp_path / f"{name}_back{suffix}"))
            assert found.dtype == values.dtype
            assert np.array_equal(found[gap], values[gap], equal_nan=values.dtype.kind == "f")
            error = np.abs(found[~gap].astype(np.float64) - values[~gap])
            last = np.spacing(np.abs(values[~gap])) if values.dtype.kind == "f" else 0
            assert (error <= most * (1 + 1e-9) + last).all()  # a packed step is a metre
        held = check_bounds(GridDataset(open_dataset(out)))
        assert held.ok, held.errors
        assert held.cells == values.size
        assert held.max_error == pytest.approx(float(error.max()) * (0.001 if name == "packed" else 1), rel=1e-6)


def test_verify_recomputes_errors_and_names_tiles_beyond_the_bound(tmp_path: Path) -> None:
    values = seafloor(50, 70).astype(np.float32)
    write_netcdf(tmp_path / "a.nc", values, LON, LAT)
    convert_grids(tmp_path / "a.nc", tmp_path / "out", bound="tvu:1a,0.1", levels=(1, 2))
    found = called("verify", str(tmp_path / "out"), "--bound")["bound"]
    assert found["ok"]
    assert 0.5 < found["max_share"] <= 1 + 1e-6
    moved = tmp_path / "elsewhere.nc"
    shutil.move(tmp_path / "a.nc", moved)
    with pytest.raises(SpecError, match=r"a\.nc: cannot be read at .*--source"):
        check_bounds(GridDataset(open_dataset(tmp_path / "out")))
    assert called("verify", str(tmp_path / "out"), "--bound", "--source", str(moved))["bound"]["ok"]
    write_netcdf(moved, values + np.float32(1), LON, LAT)
    with pytest.raises(SpecError, match="is not the one that was converted"):
        check_bounds(GridDataset(open_dataset(tmp_path / "out")), str(moved))


def test_cells_that_are_not_what_they_should_be_are_told(tmp_path: Path) -> None:
    true = seafloor(50, 70).astype(np.float32)
    true[:2] = np.nan
    entry = opened(write_netcdf(tmp_path / "a.nc", true, LON, LAT)).entry
    row = {"bound": "abs:0.5", "max_error": 0.25}
    beyond, more, gone = true + np.float32(0.595), true + np.float32(0.4), true.copy()
    gone[10, 10] = np.nan
    assert compare_tile("t", true + np.float32(0.2), true, entry, row).wrong == ""
    assert "off by 0.59" in compare_tile("t", beyond, true, entry, row).wrong
    assert "its row says 0.25" in compare_tile("t", more, true, entry, row).wrong
    assert "cells with a value" in compare_tile("t", gone, true, entry, row).wrong
    assert (
        "off by" in compare_tile("t", np.nextafter(true, 0), true, entry, {"bound": "lossless", "max_error": 0}).wrong
    )
    other = true.copy()
    other[0, 0] = -np.float32(np.nan)
    assert "cells without a value" in compare_tile("t", other, true, entry, row).wrong
