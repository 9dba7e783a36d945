"""Upscalers of grids: what they know of heights, that runs go on exactly, and that bicubic stands beside them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from grids.converting import convert_grids
from integration.command import tokenshard_command
from sources.grids.making import terrain, write_netcdf
from tokenshard.errors import SpecError
from tokenshard.shards.dataset import open_dataset
from tokenshard.spec.job import TrainGridSr, build_job
from tokenshard.spec.upscaling import GridLevelsSpec
from tokenshard.store import Store
from tokenshard.training import grid_pairs
from tokenshard.training.folder import load_model
from tokenshard.training.grid_pairs import CropLoader, Pair, least_squares, read_pairs
from tokenshard.training.grid_sr import figures, upscaled, verdict_of
from tokenshard.training.models.upscaler import Upscaler, UpscalerConfig, bicubic
from tokenshard.training.start import train

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def depths(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two regions with a hole each, at levels 1 and 2."""
    folder = tmp_path_factory.mktemp("depths")
    for number, name in enumerate(("train", "val")):
        (folder / name).mkdir()
        values = terrain(160, 192, number, 2.4).astype(np.float32)
        values[30:50, 60:90] = np.nan
        write_netcdf(folder / name / "a.nc", values, np.linspace(10, 20, 192), np.linspace(30, 38, 160))
        convert_grids(folder / name, folder / f"{name}-tokens", "lossless", tile=64, levels=(1, 2))
    return folder


def job(depths: Path, out: Path, **fields: object) -> TrainGridSr:
    source = {"path": str(depths / "train-tokens"), "val": str(depths / "val-tokens")}
    given = {"steps": 6, "batch": 4, "model": {"width": 8, "depth": 3, "crop": 16}, **fields}
    return build_job(TrainGridSr, {"source": source, "output": str(out), "engine": {"device": "cpu"}, **given})


def test_pairs_hold_the_means_of_blocks_and_know_their_holes(depths: Path) -> None:
    (pair,) = read_pairs(open_dataset(depths / "train-tokens"), GridLevelsSpec(path="x"))
    assert (pair.coarse.shape, pair.fine.shape) == ((80, 96), (160, 192))
    assert pair.there.sum() == 160 * 192 - 20 * 30
    means = pair.fine.reshape(80, 2, 96, 2).mean(axis=(1, 3))
    whole = pair.there.reshape(80, 2, 96, 2).all(axis=(1, 3))
    assert np.abs(means - pair.coarse)[whole].max() < 0.01
    assert not np.isnan(pair.coarse).any()


def test_an_upscaler_knows_neither_height_nor_size_of_the_relief() -> None:
    torch.manual_seed(0)
    module = Upscaler(UpscalerConfig(width=8, depth=3, level=1, input="elevation"))
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    field = torch.randn(1, 1, 20, 24)
    with torch.inference_mode():
        made, moved = module(field), module(4 * field + 100)
    assert made.shape == (1, 1, 40, 48)
    assert torch.allclose(moved, 4 * made + 100, atol=1e-3)


def test_bicubic_is_aligned_with_the_cells_it_came_from() -> None:
    rows, columns = np.mgrid[:32, :40].astype(np.float32)
    plane = torch.from_numpy(3 * rows - 2 * columns)
    coarse = plane.reshape(16, 2, 20, 2).mean((1, 3))[None, None]
    error = (bicubic(coarse)[0, 0] - plane)[8:-8, 8:-8]
    assert error.mean().abs() < 1e-3
    assert error.abs().max() < 0.7  # half a finer cell beside would be 1.25


def test_the_fitted_linear_map_is_closer_than_bicubic_on_another_region(depths: Path) -> None:
    train_pairs, val = (
        read_pairs(open_dataset(depths / f"{name}-tokens"), GridLevelsSpec(path="x")) for name in ("train", "val")
    )
    module = Upscaler(UpscalerConfig(width=8, depth=0, level=1, input="elevation"))
    weights = least_squares(train_pairs, 0)
    assert np.abs(weights.sum(axis=(1, 2))).max() < 1e-9
    module.fill(torch.from_numpy(weights).float())
    found = figures(module, val, CPU)
    assert found["val_rmse_ratio"] < 1
    assert found["val_bicubic_mae"] > found["val_mae"] > 0
    assert 0.5 < found["val_bicubic_ssim"] < found["val_ssim"] < 1


def test_similarity_is_that_of_scikit_image(depths: Path) -> None:
    metrics = pytest.importorskip("skimage.metrics")
    pairs = read_pairs(open_dataset(depths / "val-tokens"), GridLevelsSpec(path="x"))
    module = Upscaler(UpscalerConfig(width=8, depth=0, level=1, input="elevation"))
    (pair,) = [type(one)(one.coarse[30:], one.fine[60:], one.there[60:]) for one in pairs]
    assert pair.there.all()
    made = np.repeat(np.repeat(pair.coarse, 2, 0), 2, 1).astype(np.float64)
    middle = float(pair.fine.mean())
    wanted = metrics.structural_similarity(
        pair.fine.astype(np.float64) - middle, made - middle, data_range=float(np.ptp(pair.fine)), win_size=7
    )
    assert figures(module, [pair], CPU)["val_ssim"] == pytest.approx(wanted, abs=0.01)


def test_crops_are_a_function_of_seed_and_position(depths: Path) -> None:
    pairs = read_pairs(open_dataset(depths / "train-tokens"), GridLevelsSpec(path="x"))
    loader = CropLoader(pairs, 16, 8, 3, 0, 1)
    batches = [batch for batch, _ in zip(loader, range(3), strict=False)]
    again = CropLoader(pairs, 16, 8, 3, 0, 1)
    again.load_state_dict({"position": 2})
    assert torch.equal(next(iter(again))["fine"], batches[2]["fine"])
    halves = [CropLoader(pairs, 16, 8, 3, rank, 2) for rank in (0, 1)]
    assert torch.equal(torch.cat([next(iter(half))["coarse"] for half in halves]), batches[0]["coarse"])
    for batch in batches:
        assert batch["there"].float().mean() > 0.9
        means = batch["fine"].unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5))
        assert (means - batch["coarse"]).abs().median() < 0.01


def test_small_fields_beside_large_ones_do_not_make_crops_small(depths: Path) -> None:
    [large] = read_pairs(open_dataset(depths / "train-tokens"), GridLevelsSpec(path="x"))
    small = Pair(large.coarse[:7], large.fine[:14], large.there[:14])
    mixed = next(iter(CropLoader([small, large, small], 16, 8, 3, 0, 1)))
    assert torch.equal(mixed["coarse"], next(iter(CropLoader([large], 16, 8, 3, 0, 1)))["coarse"])
    assert next(iter(CropLoader([small], 16, 8, 3, 0, 1)))["coarse"].shape[2:] == (7, 7)


def test_a_large_grid_is_read_in_blocks_of_much_the_same_size(depths: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid_pairs, "BLOCK", 40)
    pairs = read_pairs(open_dataset(depths / "train-tokens"), GridLevelsSpec(path="x"))
    assert [pair.coarse.shape for pair in pairs] == [(40, 32)] * 6


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(depths: Path, tmp_path: Path) -> None:
    whole = train(job(depths, tmp_path / "whole"), lambda text: None)
    short = job(depths, tmp_path / "cut", engine={"device": "cpu", "max_minutes": 0}, log={"every": 2})
    assert not train(short, lambda text: None).finished
    said: list[str] = []
    done = train(job(depths, tmp_path / "cut"), said.append)
    assert done.fingerprint == whole.fingerprint
    assert verdict_of(done) in said
    assert {"val_rmse", "val_mae", "val_ssim", "val_bicubic_rmse", "val_bicubic_mae", "val_bicubic_ssim"} <= set(
        done.metrics
    )


def test_a_saved_upscaler_makes_fields_and_leaves_holes(depths: Path, tmp_path: Path) -> None:
    train(job(depths, tmp_path / "run", steps=2), lambda text: None)
    module = load_model(Store(tmp_path / "run"), "grid-sr").module
    assert isinstance(module, Upscaler)
    heights = terrain(20, 30, 5)
    heights[3, 4] = np.nan
    made = upscaled(module, heights)
    assert made.shape == (40, 60)
    assert np.isnan(made).sum() == 4
    assert np.abs(np.delete(made.reshape(20, 2, 30, 2).mean(axis=(1, 3)) - heights, 4, axis=1)).max() < 200


def test_what_has_no_gain_says_so_and_is_no_failure(depths: Path, tmp_path: Path) -> None:
    """Tokens of a few steps lose more than any interpolation does."""
    words = ["--data", str(depths / "train-tokens"), "--val", str(depths / "val-tokens"), "--input", "tokens"]
    done = tokenshard_command("train", "grid-sr", str(tmp_path / "run"), *words, "--steps", "1", "--json", "-q")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["verdict"] == "no gain over bicubic"
    assert found["val_rmse_ratio"] > 0.95


def test_datasets_that_show_nothing_are_refused(depths: Path, tmp_path: Path) -> None:
    convert_grids(depths / "train", tmp_path / "one", "lossless", tile=64)
    with pytest.raises(SpecError, match="no grid with levels 1 and 2; convert with --levels 1,2"):
        read_pairs(open_dataset(tmp_path / "one"), GridLevelsSpec(path="x"))
    convert_grids(depths / "train", tmp_path / "none", "none", tile=64, levels=(1, 2))
    with pytest.raises(SpecError, match="has only tokens; convert with a --bound"):
        read_pairs(open_dataset(tmp_path / "none"), GridLevelsSpec(path="x"))
