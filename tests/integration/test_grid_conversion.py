"""Grids through the command line: killed workers cost nothing, bad files are told apart, boxes come out."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tokenshard
from integration.command import command_here, command_line, refused
from integration.test_crash_safety import finish, kill_workers, local_workers, ray_workers, shards
from sources.grids.making import global_netcdf, opened, seafloor, whole, write_netcdf
from tokenshard.shards.verify import verify
from tokenshard.store import Store

pytestmark = pytest.mark.integration
WORK = ["--tile", "32", "--unit-samples", "6", "--tokenizer", "grid:8x8,k=64", "--bound", "abs:2", "--quiet"]


@pytest.fixture(scope="module")
def survey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grid of 9 x 16 tiles, in 24 units."""
    folder = tmp_path_factory.mktemp("survey")
    lon, lat = np.linspace(10, 61.1, 512), np.linspace(20, 48.7, 288)
    write_netcdf(folder / "a.nc", seafloor(288, 512).astype(np.float32), lon, lat)
    return folder


@pytest.fixture(scope="module")
def calm(survey: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The survey, converted with nothing going wrong."""
    out = tmp_path_factory.mktemp("calm") / "out"
    convert(survey, out, "--engine", "local", "--workers", "0")
    return out


def data(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "data").iterdir()}


def convert(src: Path, out: Path, *words: str) -> dict[str, Any]:
    done = command_here("convert", "grids", str(src), str(out), *WORK, "--json", *words)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_killed_workers_leave_the_shards_of_an_undisturbed_run(survey: Path, calm: Path, tmp_path: Path) -> None:
    words = command_line("convert", "grids", str(survey), str(tmp_path / "out"), *WORK)
    driver = subprocess.Popen(
        [*words, "--engine", "local", "--workers", "2"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert kill_workers(driver, tmp_path / "out", local_workers, 3, random.Random(7)) >= 2
    if driver.poll() is None:
        driver.kill()  # and the driver itself, wherever it is
        driver.communicate()
    before = shards(tmp_path / "out")
    finish(subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE))
    assert {name: shards(tmp_path / "out")[name] for name in before} == before
    assert tokenshard.open(tmp_path / "out").fingerprint == tokenshard.open(calm).fingerprint
    assert data(tmp_path / "out") == data(calm)
    assert verify(Store(tmp_path / "out"), deep=True).ok


def test_ray_actors_that_are_killed_make_the_shards_of_one_process(
    survey: Path, calm: Path, tmp_path: Path, ray_address: str
) -> None:
    words = command_line("convert", "grids", str(survey), str(tmp_path / "out"), *WORK)
    driver = subprocess.Popen(
        [*words, "--engine", "ray", "--address", ray_address, "--workers", "2"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert kill_workers(driver, tmp_path / "out", ray_workers, 2, random.Random(3)) >= 1
    finish(driver)
    assert tokenshard.open(tmp_path / "out").fingerprint == tokenshard.open(calm).fingerprint
    assert data(tmp_path / "out") == data(calm)


def test_bad_files_are_told_apart_and_the_others_are_converted(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    values = global_netcdf(folder / "earth.nc")
    data = (folder / "earth.nc").read_bytes()
    (folder / "cut.nc").write_bytes(data[: len(data) // 3])
    found = convert(folder, tmp_path / "out", "--bound", "lossless")
    assert (found["num_rejects"], found["reasons"]) == (1, {"plan: unreadable": 1})
    rejects = tokenshard.open(tmp_path / "out").manifest.rejects
    assert len(rejects) == 1
    done = command_here("grid", "decode", str(tmp_path / "out"), "--to", str(tmp_path / "b.nc"), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["max_error"] == 0
    assert np.array_equal(whole(opened(tmp_path / "b.nc")), values)
    done = command_here("grid", "point", str(tmp_path / "out"), "--json", "--", "-170,-10")
    assert json.loads(done.stdout)[0]["value"] == values[40, 5]
    listed = command_here("grid", "list", str(tmp_path / "out")).stdout
    assert "earth.nc: elevation; 91 x 181 int16; levels 1; no reference system" in listed


def test_mistakes_are_one_line_with_a_way_out(tmp_path: Path, survey: Path) -> None:
    out = str(tmp_path / "out")
    line = refused("convert", "grids", str(survey), out, "--variable", "depth", code=2)
    assert "a.nc" in line
    assert "there are: elevation; choose one with --variable" in line
    assert "expected none, lossless, abs:E" in refused("convert", "grids", str(survey), out, "--bound", "5m", code=2)
    assert "a tokenizer of grid samples" in refused(
        "convert", "images", str(survey), out, "--tokenizer", "grid", code=2
    )
    assert "patch: a tokenizer of image samples; these are grid samples" in refused(
        "convert", "grids", str(survey), out, "--tokenizer", "patch", code=2
    )
