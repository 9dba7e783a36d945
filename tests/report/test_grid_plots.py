"""Maps and charts of grids: what they show is what the dataset holds."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image

from grids.converting import convert_grids, decoder
from sources.grids.making import seafloor, write_netcdf
from tokenshard.cli.main import cli
from tokenshard.errors import SpecError
from tokenshard.report.grid_maps import depth_map
from tokenshard.spec.grids import TVU_ORDERS

LON, LAT = np.linspace(10, 16.9, 70), np.linspace(50, 54.9, 50)


@pytest.fixture(scope="module")
def coast(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grid with sea in the west, land in the east, and a gap; within 10 % of TVU, and lossless."""
    folder = tmp_path_factory.mktemp("coast")
    values = (seafloor(50, 70) + np.linspace(0, 4000, 70)).astype(np.float32)
    values[10:20, 30:50] = np.nan
    write_netcdf(folder / "coast.nc", values, LON, LAT)
    convert_grids(folder / "coast.nc", folder / "tvu", bound="tvu:1a,0.1", tile=64)
    convert_grids(folder / "coast.nc", folder / "lossless", tile=64)
    return folder


def drawn(path: Path) -> NDArray[np.float64]:
    """The picture as ``[h, w, 3]`` from 0 to 255."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), np.float64)


def called(*words: str) -> Any:
    done = CliRunner().invoke(cli, ["grid", "plot", *words, "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.output)


def test_the_sea_is_blue_land_is_grey_and_gaps_are_hatched(coast: Path, tmp_path: Path) -> None:
    called("map", str(coast / "tvu"), "--to", str(tmp_path / "map.png"))
    picture = drawn(tmp_path / "map.png")
    height, width = picture.shape[:2]
    middle = picture[height // 2]
    sea, land = middle[width // 8 : width // 5], middle[width * 6 // 10 : width * 7 // 10]
    assert (sea[:, 2] - sea[:, 0]).mean() > 40
    assert np.ptp(land.mean(0)) < 25
    assert 60 < land.mean() < 220


def test_rows_from_south_to_north_are_drawn_with_north_up(tmp_path: Path) -> None:
    values = np.where(LAT[:, None] + 0 * LON > 52.5, -4000, -10).astype(np.float32)
    values += np.arange(70, dtype=np.float32) / 100
    for name, order in (("up", slice(None)), ("down", slice(None, None, -1))):
        write_netcdf(tmp_path / f"{name}.nc", values[order], LON, LAT[order])
        convert_grids(tmp_path / f"{name}.nc", tmp_path / name, tile=64)
        depth_map(decoder(tmp_path / name), tmp_path / f"{name}.png")
        picture = drawn(tmp_path / f"{name}.png")
        height, width = picture.shape[:2]
        upper, lower = picture[height // 4, width // 3], picture[3 * height // 4, width // 3]
        assert upper.mean() < lower.mean()  # the deep north is dark


def test_widths_are_drawn_on_a_log_scale(coast: Path, tmp_path: Path) -> None:
    called("uncertainty", str(coast / "tvu"), "--to", str(tmp_path / "w.png"))
    called("uncertainty", str(coast / "tvu"), "--band", "uncertainty", "--to", str(tmp_path / "u.png"))
    assert drawn(tmp_path / "w.png").std() > 30
    assert drawn(tmp_path / "u.png").std() > 30
    with pytest.raises(SpecError, match="no uncertainty is above 0"):
        called("uncertainty", str(coast / "lossless"), "--band", "uncertainty", "--to", str(tmp_path / "n.png"))


def test_errors_beside_tvu_lie_below_their_bound(coast: Path, tmp_path: Path) -> None:
    chart = called("tvu", str(coast / "tvu"), str(coast / "coast.nc"), "--to", str(tmp_path / "tvu.png"))
    with Path(chart["figures"]).open(newline="") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    assert len(rows) == 50 * 70 - 200
    a, b = TVU_ORDERS["1a"]
    for row in rows:
        assert row["bound"] == pytest.approx(0.1 * np.hypot(a, b * row["depth"]), rel=1e-3)
        assert row["error"] <= row["bound"] * 1.001
    assert max(row["error"] for row in rows) > 0


def test_rates_are_those_of_this_coder_and_of_the_peers_at_hand(coast: Path, tmp_path: Path) -> None:
    chart = called("rate-distortion", str(coast / "lossless"), "--errors", "1,10", "--to", str(tmp_path / "r.png"))
    ours = [rate for rate in chart["rates"] if rate["codec"] == "tokenshard"]
    assert [rate["bound"] for rate in ours] == [1, 10]
    assert ours[0]["bits_per_cell"] > ours[1]["bits_per_cell"]
    assert all(0 < rate["rmse"] <= rate["max_error"] <= rate["bound"] * 1.001 for rate in chart["rates"])
    with pytest.raises(SpecError, match="codecs are compared on true values"):
        called("rate-distortion", str(coast / "tvu"), "--to", str(tmp_path / "r.png"))
