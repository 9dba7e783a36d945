"""Conformal widths in a dataset: calibrated on some grids, kept in a version, decoded and tested on others."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

import tokenshard
from grids.converting import convert_grids, decoder
from sources.grids.making import seafloor, write_netcdf, write_tiff
from tokenshard.cli.main import cli
from tokenshard.errors import FormatError, SpecError
from tokenshard.grids.calibrations import (
    StoredCalibration,
    add_calibration,
    choose_calibration,
    read_calibrations,
    write_calibration,
)
from tokenshard.grids.conformal import Tile, calibrate
from tokenshard.grids.coverage import compare, joined, reliability
from tokenshard.grids.dataset import GridDataset
from tokenshard.grids.decode import GridDecoder
from tokenshard.grids.scores import read_region, truth_of
from tokenshard.grids.strata import checked_by
from tokenshard.shards.dataset import open_dataset
from tokenshard.shards.verify import verify
from tokenshard.store import Store

HEIGHT, WIDTH = 256, 320
LON, LAT = np.linspace(10, 16.38, WIDTH), np.linspace(50, 55.1, HEIGHT)
REGIONS = ("a.nc", "b.nc", "c.nc")


def relief(seed: int) -> NDArray[np.float32]:
    """A sea floor whose roughness changes from west to east and from tile to tile."""
    rough = np.exp(np.linspace(-2, 2, WIDTH)) * np.exp(np.random.default_rng(seed).normal(0, 0.3, (HEIGHT, 1)))
    return ((seafloor(HEIGHT, WIDTH, seed) + 2000) * rough / 4 - 3000).astype(np.float32)


@pytest.fixture(scope="module")
def regions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three regions in one dataset; those of a and b are for calibration."""
    folder = tmp_path_factory.mktemp("regions")
    (folder / "in").mkdir()
    for seed, name in enumerate(REGIONS):
        kinds = np.where(LAT[:, None] + 0 * LON < 52, 11, 40).astype(np.uint8)
        write_netcdf(folder / "in" / name, relief(seed), LON, LAT, tid=kinds)
    convert_grids(folder / "in", folder / "out", tile=64)
    return folder


def called(*words: str) -> Any:
    done = CliRunner().invoke(cli, [*words, "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.output)


@pytest.fixture(scope="module")
def calibrated(regions: Path) -> tuple[Path, dict[str, Any]]:
    made = called("grid", "calibrate", str(regions / "out"), "--regions", "a.nc,b.nc")
    return regions / "out", made


def test_a_calibration_is_a_version_of_the_dataset_with_the_same_shards(calibrated: tuple[Path, Any]) -> None:
    out, made = calibrated
    first, newest = tokenshard.open(out, version=1), tokenshard.open(out)
    assert newest.manifest.shards == first.manifest.shards
    assert (newest.manifest.parent, newest.manifest.version) == (1, made["version"])
    assert set(newest.manifest.sidecars) > set(first.manifest.sidecars)
    assert verify(Store(out), deep=True).ok
    again = called("grid", "calibrate", str(out), "--regions", "a.nc,b.nc")
    assert (again["calibration"], again["version"]) == (made["calibration"], made["version"])
    (stored,) = read_calibrations(open_dataset(out))
    assert (stored.id, stored.band, stored.calibration.alpha) == (made["calibration"], "tokens", 0.1)
    assert stored.calibration.quantiles == tuple(made["quantiles"])
    assert made["num_scores"] == 2 * HEIGHT * WIDTH
    assert made["num_tiles"] == 2 * 4 * 5


def test_decoded_widths_are_those_that_coverage_was_measured_with(calibrated: tuple[Path, Any]) -> None:
    out, _ = calibrated
    grids = decoder(out, "c.nc")
    bands = grids.bands(["tokens", "conformal", "elevation"])
    tokens, width, true = grids.read(grids.reference.whole, bands)
    share = float((np.abs(tokens.astype(float) - true) <= width).mean())
    (found, *others) = called("grid", "coverage", str(out))
    assert found["region"] == "c.nc"
    assert found["method"] == "conformal"
    assert found["whole"]["share"] == pytest.approx(share, abs=1e-4)
    assert found["mean_width"] == pytest.approx(float(width.mean()), rel=1e-4)
    assert abs(share - 0.9) < 0.03
    assert {other["method"] for other in others} == {"split", "z x deviation", "exact"}


def test_one_quantile_for_all_misses_the_roughest_class_and_conformal_classes_do_not(
    calibrated: tuple[Path, Any],
) -> None:
    out, _ = calibrated
    found = {line["method"]: line for line in called("grid", "coverage", str(out))}
    conformal, split = ([part["share"] for part in found[name]["by_class"]] for name in ("conformal", "split"))
    assert min(conformal) > 0.8
    assert min(split) < 0.75
    assert all(share >= 0.9 for share in (part["share"] for part in found["exact"]["by_class"]))


def test_a_width_without_its_calibration_is_an_error_with_a_way_out(regions: Path) -> None:
    dataset = GridDataset(open_dataset(regions / "out", version=1))
    grids = GridDecoder(dataset, dataset.choose("c.nc"))
    with pytest.raises(SpecError, match="no calibration, without which there are no conformal widths; make one with"):
        grids.bands(["tokens", "conformal"])


def test_a_damaged_calibration_is_found(regions: Path, tmp_path: Path) -> None:
    convert_grids(regions / "in" / "a.nc", tmp_path / "out", tile=64)
    called("grid", "calibrate", str(tmp_path / "out"), "--regions", "a.nc")
    (path,) = (tmp_path / "out" / "calibrations").iterdir()
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert not verify(Store(tmp_path / "out")).ok
    with pytest.raises(FormatError, match="SHA-256 differs"):
        choose_calibration(open_dataset(tmp_path / "out"), None)


def test_calibrations_of_two_writers_are_both_kept(regions: Path, tmp_path: Path) -> None:
    convert_grids(regions / "in" / "a.nc", tmp_path / "out", tile=64)
    stale = open_dataset(tmp_path / "out")
    tiles = [Tile(np.arange(500.0) * seed, np.ones(500)) for seed in (1, 2)]
    for alpha in (0.1, 0.2):
        made = calibrate(tiles, alpha, classes=1)
        add_calibration(
            stale, StoredCalibration(made, "tokens", ("roughness",), (), stale.manifest.tokenizer.fingerprint)
        )
    newest = open_dataset(tmp_path / "out")
    assert newest.manifest.version == 3
    assert {stored.calibration.alpha for stored in read_calibrations(newest)} == {0.1, 0.2}
    assert choose_calibration(newest, "tokens", "0.8").calibration.alpha == 0.2
    with pytest.raises(SpecError, match=r"several calibrations; choose one with --calibration: "):
        choose_calibration(newest, "tokens")


def test_equal_calibrations_are_equal_bytes_and_come_back_with_their_gaps() -> None:
    rng = np.random.default_rng(0)
    tiles = [Tile(rng.normal(size=400), np.exp(rng.normal(size=400)), rng.integers(0, 2, 400)) for _ in range(12)]
    rare = Tile(rng.normal(size=50), np.ones(50), np.full(50, 7))  # too few for a quantile of their own
    made = calibrate([*tiles, rare], 0.1, classes=3)
    assert [number for number, _ in made.by_group] == [0, 1, 7]
    assert np.isnan(made.by_group[2][1]).all()
    assert made.widths(np.ones(1), np.array([7])) == made.widths(np.ones(1))
    assert made.widths(np.ones(1), np.array([0])) != made.widths(np.ones(1))
    stored = StoredCalibration(made, "tokens", ("roughness", "depth"), ("a", "b"), "0" * 16)
    assert write_calibration(stored) == write_calibration(stored)


def test_depth_and_type_identifiers_make_groups_of_their_own(regions: Path) -> None:
    dataset = GridDataset(open_dataset(regions / "out"))
    region = read_region(dataset, dataset.choose("a.nc"), "tokens", ("roughness", "depth", "tid"))
    groups = np.unique(np.concatenate([tile.group for tile in region.tiles if tile.group is not None]))
    assert set((groups % 10).tolist()) == {1, 4}  # soundings, and satellite gravity
    assert set((groups // 10).tolist()) <= set(range(6))
    with pytest.raises(SpecError, match="cells cannot be told apart by 'slope'"):
        checked_by(["roughness", "slope"])


def test_the_bound_of_a_truth_counts_as_error(regions: Path, tmp_path: Path) -> None:
    """Widths from cells within 3 metres hold the true values, which may lie 3 metres further on."""
    convert_grids(regions / "in" / "c.nc", tmp_path / "exact", tile=64)
    convert_grids(regions / "in" / "c.nc", tmp_path / "near", tile=64, bound="abs:3")
    tiles = []
    for name in ("exact", "near"):
        dataset = GridDataset(open_dataset(tmp_path / name))
        tiles.append(read_region(dataset, dataset.choose(None), "tokens", ("roughness",)).tiles)
    for exact, near in zip(*tiles, strict=True):
        assert (np.abs(near.error) >= np.abs(exact.error) * (1 - 1e-6) - 1e-3).all()


def test_generated_grids_are_calibrated_and_tested_against_a_truth_from_elsewhere(
    regions: Path, tmp_path: Path
) -> None:
    """As a super-resolved grid: what is decoded is wrong, and a file knows better."""
    folder = tmp_path / "generated"
    folder.mkdir()
    draw = np.random.default_rng(5)
    for seed, name in enumerate(("a.nc", "c.nc")):
        true = relief(2 * seed)
        wrong = true + draw.laplace(0, 1, true.shape) * (1 + np.abs(true + 3000) / 20)
        write_netcdf(folder / name, wrong.astype(np.float32), LON, LAT)
    convert_grids(folder, tmp_path / "out", tile=64)
    truth = str(regions / "out")
    made = called(
        "grid", "calibrate", str(tmp_path / "out"), "--regions", "a.nc", "--truth", truth, "--by", "roughness"
    )
    assert made["band"] == "elevation"
    (from_dataset,) = called("grid", "coverage", str(tmp_path / "out"), truth)
    (from_file,) = called("grid", "coverage", str(tmp_path / "out"), str(regions / "in" / "c.nc"))
    assert from_dataset == from_file
    assert abs(from_file["whole"]["share"] - 0.9) < 0.05
    dataset = GridDataset(open_dataset(tmp_path / "out"))
    with pytest.raises(SpecError, match="cannot be its own truth"):
        read_region(dataset, dataset.choose("c.nc"), "elevation", ("roughness",))
    write_tiff(tmp_path / "small.tif", [np.ones((4, 5), np.float32)])
    with pytest.raises(SpecError, match=r"has 4 x 5 cells, c\.nc 256 x 320; both must be of the same cells"):
        truth_of(dataset, dataset.choose("c.nc"), str(tmp_path / "small.tif"))


def test_reliability_has_six_levels_that_rise_and_its_chart_has_them_in_a_file(
    calibrated: tuple[Path, Any], tmp_path: Path
) -> None:
    out, _ = calibrated
    chart = called("grid", "plot", "reliability", str(out), "--to", str(tmp_path / "r.png"))
    with Path(chart["figures"]).open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["class"] == "all"]
    assert [float(row["nominal"]) for row in rows] == [0.5, 0.68, 0.8, 0.9, 0.95, 0.99]
    shares = [float(row["found"]) for row in rows]
    assert shares == sorted(shares)
    assert all(float(row["low"]) <= float(row["found"]) <= float(row["high"]) for row in rows)
    assert float(np.mean([abs(float(row["found"]) - float(row["nominal"])) for row in rows])) <= 0.03
    dataset = GridDataset(open_dataset(out))
    known = joined([read_region(dataset, dataset.choose(name), "tokens", ("roughness",)) for name in REGIONS[:2]])
    test = read_region(dataset, dataset.choose("c.nc"), "tokens", ("roughness",))
    like = choose_calibration(dataset.dataset, "tokens").calibration
    assert [line.whole.share for line in reliability(test, known, like)] == pytest.approx(shares)
    assert compare(test, like)[0].whole.share == pytest.approx(shares[3])
