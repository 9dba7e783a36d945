"""The VQ-VAE that stands beside bicubic interpolation: what it knows of heights, how it learns, what is printed."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from grids.converting import convert_grids
from sources.grids.making import terrain, write_netcdf
from tokenshard.training.grid_pairs import Pair

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def vqvae() -> ModuleType:
    spec = importlib.util.spec_from_file_location("vqvae_of_grids", BENCHMARKS / "gridding" / "vqvae.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def tiles(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Coarse [n, 1, 16, 16] and fine [n, 1, 32, 32]."""
    fine = torch.from_numpy(np.stack([terrain(32, 32, seed, 2.4) for seed in range(count)])).float()[:, None]
    return torch.nn.functional.avg_pool2d(fine, 2), fine


def test_heights_are_seen_in_shares_of_the_range_of_a_coarse_tile(vqvae: ModuleType) -> None:
    torch.manual_seed(0)
    module = vqvae.VQVAE(vqvae.Shape((4, 6), codes=8, dim=5), 0, start=0).eval()
    coarse, _ = tiles(3)
    coarse = coarse + 3000  # near 0 float32 keeps digits
    with torch.inference_mode():
        made, moved = module(coarse), module(4 * coarse + 64)
        ids = module.quantizer.encode(module.encoder((coarse - coarse.amin()) / 1000))
    assert made.shape == (3, 1, 32, 32)
    assert ids.shape == (3, 1, 16, 16), "a code for each coarse cell"
    assert torch.allclose(moved, 4 * made + 64, rtol=1e-3, atol=0.5)


def test_places_with_rare_large_errors_weigh_more(vqvae: ModuleType) -> None:
    uncertainty = vqvae.Uncertainty(8, block=4, alpha=0.1, decay=0.5)
    error = torch.ones(10, 1, 8, 8)
    error[:, :, :4, :4] = torch.linspace(0, 2, 160).reshape(10, 1, 4, 4)
    error[:, :, 4:, 4:] *= -3
    weights = uncertainty(error)
    assert weights.shape == (8, 8)
    assert weights[0, 0] == pytest.approx(1.8, rel=1e-4)  # 90 % of 0 to 2, whose mean is 1
    assert torch.equal(weights[4:, 4:], torch.ones(4, 4)), "sizes that are all alike count alike, whatever they are"
    assert uncertainty(torch.ones_like(error))[0, 0] == pytest.approx((1.8 + 1) / 2, rel=1e-4)


def test_it_learns_tiles_by_heart_through_its_codes(vqvae: ModuleType) -> None:
    torch.manual_seed(0)
    module, uncertainty = vqvae.VQVAE(vqvae.Shape((8, 8), codes=64, dim=8), 0, start=10), vqvae.Uncertainty(32)
    coarse, fine = tiles(2)
    optimizer = torch.optim.Adam(module.parameters(), 3e-3)
    found = []
    for _ in range(60):
        loss, mae = vqvae.loss_of(module, uncertainty, coarse, fine)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(float(mae))
    module.eval()
    with torch.inference_mode():
        low, span = vqvae.ranges(coarse)
        made, quantized = module.normalised((coarse - low) / span)
        error = ((made * span + low) - fine).abs().mean()
    assert error < 0.5 * found[0]
    assert torch.equal(quantized.vectors, module.quantizer.vectors(quantized.ids)), "nothing passes but codes"


def test_training_is_a_function_of_the_seed(vqvae: ModuleType) -> None:
    fine = terrain(96, 128, 3, 2.4).astype(np.float32)
    coarse = fine.reshape(48, 2, 64, 2).mean((1, 3))
    pairs = [Pair(coarse, fine, np.ones(fine.shape, np.bool_))]
    shape = vqvae.Shape((2, 3), codes=4, dim=2)
    weights = [vqvae.train(pairs, shape, 2, 2, 1e-3, seed).encoder[0].weight for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.integration
def test_the_benchmark_prints_metres_beside_bicubic_and_coverage(tmp_path: Path) -> None:
    for number, (part, height, width) in enumerate((("train", 80, 80), ("calibrate", 128, 192), ("test", 64, 128))):
        (tmp_path / "src" / part).mkdir(parents=True)
        axes = np.linspace(10, 20, width), np.linspace(30, 38, height)
        write_netcdf(tmp_path / "src" / part / "a.nc", terrain(height, width, number, 2.4).astype(np.float32), *axes)
        convert_grids(tmp_path / "src" / part, tmp_path / part, "abs:0.5", tile=64, levels=(1, 2))
    words = ["--data", str(tmp_path / "none"), "--scratch", str(tmp_path), "--widths", "2,3", "--codes", "4"]
    words += ["--dim", "2", "--steps", "2", "--batch", "2"]
    command = [sys.executable, str(BENCHMARKS / "grid_vqvae.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = {cells[1].strip(): cells[2:] for line in done.stdout.splitlines() if len(cells := line.split("|")) > 4}
    assert float(rows["VQ-VAE"][0]) > float(rows["bicubic, aligned"][0]) > 0
    assert float(rows["linear map of 7 x 7 cells"][3]) < 1.1
    assert "no gain over bicubic" in done.stdout
    assert 0 < float(rows["split conformal"][0].split()[0]) <= 1
