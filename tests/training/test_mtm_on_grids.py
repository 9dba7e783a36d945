"""Masked token modeling on tiles of a grid: it learns from shards alone, and what it draws are fields."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from grids.converting import convert_grids
from sources.grids.making import terrain, write_netcdf
from tokenshard.spec.job import TrainMtm, build_job
from tokenshard.training.models.embedding import SIZE_OF_NUMBERS, CodeEmbedding
from tokenshard.training.start import train


def test_a_masked_model_of_tiles_learns_and_draws_fields(tmp_path: Path) -> None:
    values = terrain(256, 256, 1).astype(np.float32)
    values[:40, :40] = np.nan
    write_netcdf(tmp_path / "a.nc", values, np.linspace(10, 20, 256), np.linspace(30, 40, 256))
    job = {"tokenizer": "grid:8x8,k=16,codebooks=1,step=80"}
    convert_grids(tmp_path / "a.nc", tmp_path / "tokens", "none", tile=64, job=job)
    model = {"size": "micro", "embedding": "learned"}
    fields = {"source": {"path": str(tmp_path / "tokens"), "val_where": "tile_row == 0"}, "model": model, "samples": 4}
    found = {}
    for steps in (1, 60):
        out = tmp_path / f"run-{steps}"
        made = {**fields, "output": str(out), "steps": steps, "batch": 8, "engine": {"device": "cpu"}}
        found[steps] = train(build_job(TrainMtm, made), lambda text: None).metrics["val_bits_per_token"]
        picture = np.asarray(Image.open(out / "training" / f"samples-{steps:08d}.png"))
        assert picture.shape == (128, 128, 3)
    assert found[60] < 0.8 * found[1]


def test_vectors_of_ordered_ids_are_alike_where_ids_are_close() -> None:
    torch.manual_seed(0)
    embedding = CodeEmbedding((512, 16, 17), 32, frozen=False)
    shapes = embedding.codebook(2).clone()
    embedding.order((0, 1))
    means = embedding.codebook(0).detach()
    apart = [float((means[100 + step] - means[100]).norm()) for step in (1, 4, 16, 64)]
    assert apart == sorted(apart)
    assert len(means.unique(dim=0)) == 512
    assert abs(float(means.square().mean()) - SIZE_OF_NUMBERS**2 / 3) < 0.1
    assert torch.equal(embedding.codebook(2), shapes)
    assert embedding.table.requires_grad
