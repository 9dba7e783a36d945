"""Tokenizers of grids with a trained network: what they learn from, and that their tokens lie on one lattice."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from grids.converting import convert_grids, decoder
from integration.command import command_here
from sources.grids.making import terrain, write_netcdf
from tokenshard.errors import FormatError, JobError, SpecError
from tokenshard.shards.verify import verify
from tokenshard.spec.recipe import Losses
from tokenshard.spec.train import TrainingImagesSpec
from tokenshard.store import Store
from tokenshard.tokenizers.folder import load_tokenizer
from tokenshard.tokenizers.grid_conv import GridVQ
from tokenshard.tokenizers.grid_network import FRAME, PLANES, GridNetworkConfig
from tokenshard.training.fields import FieldBatch, FieldPool, training_fields
from tokenshard.training.grid_tokenizer import field_loss, used_first

HEIGHT, WIDTH = 120, 240
STACK = {"stem": 4, "channels": [8, 8], "blocks": [0, 0]}
NETWORK = {"architecture": "grid", "dim": 4, "encoder": STACK, "decoder": STACK}


@pytest.fixture(scope="module")
def grids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fields")
    (folder / "src").mkdir()
    for number in range(3):
        values = terrain(160, 176, number).astype(np.float32)
        values[:40, 100:] = np.nan
        write_netcdf(folder / "src" / f"{number}.nc", values, np.arange(176) / 60, np.arange(160) / 60)
    (folder / "src" / "broken.nc").write_text("no grid")
    (folder / "network.json").write_text(json.dumps(NETWORK))
    return folder


@pytest.fixture(scope="module")
def trained(grids: Path) -> Path:
    """A tokenizer that learned for a moment, by the command."""
    options = ["--network", str(grids / "network.json"), "--crop", "64", "--batch", "4", "--codes", "16", "--dim", "4"]
    options += ["--steps", "60", "--lr", "0.01", "--warmup", "5", "--l1", "1", "--l2", "0", "--gradient", "0.5"]
    options += ["--set", "start=5", "--step", "8", "--floor", "16", "--device", "cpu", "--log-every", "20"]
    options += ["--quantizer", "rvq", "--set", "depth=2", "--set", "dropout=0"]
    done = command_here("tokenizer", "train", str(grids / "src"), str(grids / "whole"), *options)
    assert done.returncode == 0, done.stderr
    assert "2 tiles to train on, 1 held out" in done.stdout
    assert "1 tiles could not be read and are left out" in done.stdout
    assert "held-out MAE" in done.stdout
    stopped = [*options, "--checkpoint-every", "30", "--max-minutes", "0"]
    command_here("tokenizer", "train", str(grids / "src"), str(grids / "halves"), *stopped)
    again = command_here("tokenizer", "train", str(grids / "src"), str(grids / "halves"), *options)
    assert "going on from step" in again.stdout
    assert load_tokenizer(Store(grids / "halves")).spec == load_tokenizer(Store(grids / "whole")).spec
    return grids / "whole"


def test_training_brings_cells_closer_than_the_surface_of_the_means(trained: Path) -> None:
    tokenizer = load_tokenizer(Store(trained))
    assert isinstance(tokenizer, GridVQ)
    field = terrain(160, 176, 9) / tokenizer.step
    codes = tokenizer.codes(field)
    assert len(np.unique(codes.shapes)) > 4
    for level, plane in enumerate(codes.shapes):
        assert ((plane > 0) == (codes.gains > level)).all()
    network = tokenizer.network
    made = np.abs(tokenizer.field(codes) - field).mean()
    for parameter in network.decoder.parameters():
        parameter.zero_()  # draws nothing: the surface is left
    assert made < 0.9 * np.abs(tokenizer.field(codes) - field).mean()
    rows = [json.loads(line) for line in (trained / "training" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["mae"] > 0
    assert rows[-1]["rmse"] >= rows[-1]["mae"]
    assert (trained / "training" / "samples-00000060.png").exists()


@pytest.fixture(scope="module")
def earth(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grid around the earth with a hole on the 180 degree line, in tiles of 32 and of 96 cells; and turned by 88."""
    folder = tmp_path_factory.mktemp("earth")
    values = terrain(HEIGHT, WIDTH, 3).astype(np.float32)
    values[40:60, :5] = values[40:60, -9:] = np.nan
    np.save(folder / "values.npy", values)
    axes = np.arange(-179.25, 180, 1.5), np.linspace(-89.25, 89.25, HEIGHT)
    write_netcdf(folder / "earth.nc", values, *axes)
    write_netcdf(folder / "turned.nc", np.roll(values, 88, axis=1), *axes)
    job = {"tokenizer": str(trained)}
    for name, source, tile in (("tiles-32", "earth", 32), ("tiles-96", "earth", 96), ("turned", "turned", 32)):
        convert_grids(folder / f"{source}.nc", folder / name, "abs:5", tile=tile, levels=(1, 2), job=job)
    return folder


def tokens(out: Path, level: int = 1) -> list[NDArray[np.float32]]:
    found = decoder(out, level=level)
    return found.read(found.reference.whole, found.bands(["tokens", "width"]))


@pytest.mark.parametrize("level", [1, 2])
def test_how_a_grid_is_cut_shows_in_no_cell(earth: Path, level: int) -> None:
    for small, large in zip(tokens(earth / "tiles-32", level), tokens(earth / "tiles-96", level), strict=True):
        assert np.allclose(small, large, rtol=1e-5, equal_nan=True)


def test_the_180_degree_line_is_a_border_like_any_other(earth: Path) -> None:
    for turned, before in zip(tokens(earth / "turned"), tokens(earth / "tiles-32"), strict=True):
        assert np.allclose(np.roll(turned, -88, axis=1), before, rtol=1e-5, equal_nan=True)


def test_widths_hold_in_every_block_and_cells_within_their_bound(earth: Path) -> None:
    values = np.load(earth / "values.npy").astype(np.float64)
    rough, width = tokens(earth / "tiles-32")
    held = (np.abs(rough - values) <= width * (1 + 1e-5)).reshape(15, 8, 30, 8)
    valid = ~np.isnan(values).reshape(15, 8, 30, 8)
    share = (held & valid).sum(axis=(1, 3)) / np.maximum(valid.sum(axis=(1, 3)), 1)
    assert (share[valid.any(axis=(1, 3))] >= 0.9).all()
    found = decoder(earth / "tiles-32")
    (cells,) = found.read(found.reference.whole, found.bands(["elevation"]))
    assert np.nanmax(np.abs(cells - values)) <= 5
    assert verify(Store(earth / "tiles-32"), deep=True).ok


def test_what_it_cannot_do_is_refused(trained: Path, grids: Path, tmp_path: Path) -> None:
    with pytest.raises(JobError, match="--guided needs tokens that decode to the same cells everywhere"):
        convert_grids(grids / "src" / "0.nc", tmp_path / "o", job={"tokenizer": str(trained), "guided": True})
    done = command_here(
        "tokenizer", "train", str(grids / "src"), str(tmp_path / "t"), "--network", "grid-f8", "--gan", "1"
    )
    assert done.returncode == 2
    assert "lpips and gan are of pictures" in done.stderr
    options = ["--network", "grid-f8", "--quantizer", "pq", "--set", "parts=2"]
    done = command_here("tokenizer", "train", str(grids / "src"), str(tmp_path / "t"), *options)
    assert "use first levels alone" in done.stderr
    deep = {**STACK, "blocks": [2, 3]}
    with pytest.raises(ValueError, match="more than the 64 that tiles come with"):
        GridNetworkConfig.model_validate({**NETWORK, "decoder": deep})
    tokenizer = load_tokenizer(Store(trained))
    assert isinstance(tokenizer, GridVQ)
    with pytest.raises(SpecError, match="stand for no vectors"):
        tokenizer.codebooks()
    for levels in ((256, 16), (256, 9, 17), (512, 16, 17)):
        with pytest.raises(FormatError, match="not those of a grid-conv tokenizer"):
            GridVQ.from_tensors(tokenizer.spec.model_copy(update={"levels": levels}), tokenizer.tensors())
    with pytest.raises(SpecError, match="are too few"):
        training_fields(TrainingImagesSpec(path=str(grids / "src" / "0.nc")), 8, 0, {}, print)


def test_crops_are_a_function_of_seed_and_step(grids: Path) -> None:
    spec = TrainingImagesSpec.model_validate({"path": str(grids / "src"), "grids": {"step": 8}})
    pool, held_out = training_fields(spec, 8, 0, {}, lambda text: None)
    assert isinstance(pool, FieldPool)
    assert pool.lattice == held_out.lattice
    whole, part = pool.draw(6, 64, 3, 4), pool.draw(6, 64, 3, 4, slice(2, 4))
    assert whole.cells.shape == (6, PLANES, 64, 64)
    assert whole.frame.shape == (6, FRAME, 8, 8)
    for mine, theirs in zip(part, whole, strict=True):
        assert torch.equal(mine, theirs[2:4])
    assert not torch.equal(pool.draw(6, 64, 3, 5).cells, whole.cells)


def test_quantizers_learn_of_used_patches_alone() -> None:
    z = torch.arange(12.0).reshape(1, 1, 3, 4).repeat(2, 2, 1, 1)
    used = torch.zeros(2, 3, 4, dtype=torch.bool)
    used[0, 1, 2] = used[0, 2, 0] = True
    found, place = used_first(z, used)
    assert set(found[0].flatten().tolist()) == {6.0, 8.0}
    back = found.flatten(2).gather(2, place[:, None].expand(-1, 2, -1)).reshape(z.shape)
    assert torch.equal(back[0][:, used[0]], z[0][:, used[0]])


def test_the_loss_sees_valid_cells_and_differences_between_them() -> None:
    cells, scale = torch.zeros(1, PLANES, 8, 8), torch.full((1, 1, 8, 8), 2.0)
    cells[:, 1, :, :4] = 1
    rest = torch.zeros(1, 1, 8, 8)
    batch = FieldBatch(cells, torch.zeros(1, FRAME, 1, 1), scale, rest)
    made = torch.zeros(1, 1, 8, 8)
    made[..., 4:] = 100.0
    loss, (l1, l2) = field_loss(made, batch, Losses(l1=1, l2=1, gradient=1))
    assert (float(loss), float(l1), float(l2)) == (0.0, 0.0, 0.0)
    made[..., 1] = 0.5
    loss, (l1, l2) = field_loss(made, batch, Losses(l1=1, l2=0, gradient=0))
    assert float(loss) == float(l1) == float(l2) == 0.25
    loss, _ = field_loss(made, batch, Losses(l1=1, l2=0, gradient=3))
    assert float(loss) == pytest.approx(0.25 + 3 * 2 / 3)
