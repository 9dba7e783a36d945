"""The optional terms of the loss (gradient differences, LPIPS, a discriminator) and TensorBoard's event files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional

from tokenshard.errors import FormatError, SpecError
from tokenshard.spec.train import TrainingLogSpec
from tokenshard.training.adversary import Adversary, PatchDiscriminator
from tokenshard.training.crops import PixelPool
from tokenshard.training.perceptual import NETWORKS, Lpips, load_lpips
from training.small import photos, tiny, training

pytestmark = pytest.mark.usefixtures("one_thread")
Pools = tuple[PixelPool, PixelPool]


@pytest.fixture(scope="module")
def pools() -> Pools:
    return photos()


def features(network: str = "vgg", seed: int = 0) -> dict[str, Tensor]:
    """Random weights as torchvision and the package lpips name them, and one tensor of the classifier."""
    generator = torch.Generator().manual_seed(seed)
    found = {"classifier.0.bias": torch.zeros(3)}
    for level, stage in enumerate(NETWORKS[network]):
        side = stage.kernel
        for place, inputs, outputs in zip(stage.places, stage.channels, stage.channels[1:], strict=False):
            scale = (2 / (side**2 * inputs)) ** 0.5
            found[f"features.{place}.weight"] = scale * torch.randn(outputs, inputs, side, side, generator=generator)
            found[f"features.{place}.bias"] = 0.01 * torch.randn(outputs, generator=generator)
        found[f"lin{level}.model.1.weight"] = torch.rand(1, outputs, 1, 1, generator=generator)
    return found


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("lpips") / "vgg16.safetensors"
    safetensors.torch.save_file(features(), file)
    return file


VGG = "0 2 | pool2 5 7 | pool2 10 12 14 | pool2 17 19 21 | pool2 24 26 28"
ALEX = "0s4p2 | pool3 3p2 | pool3 6 | 8 | 10"
"""Numbers of the convolutions, with stride and padding where these are not 1; what is before a bar is compared."""


def by_definition(a: Tensor, b: Tensor, w: dict[str, Tensor], plan: str) -> float:
    """The distance of two images [3, H, W] in [0, 1], written from the paper: no module, float64, place by place."""
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    total = 0.0
    x = torch.stack([(image - mean[:, None, None]) / deviation[:, None, None] for image in (a, b)]).double()
    for level, words in enumerate(plan.split(" | ")):
        for word in words.split():
            if word.startswith("pool"):
                x = functional.max_pool2d(x, int(word[4:]), 2)
                continue
            place, stride, padding = re.fullmatch(r"(\d+)(?:s(\d))?(?:p(\d))?", word).groups(default="1")
            weight, bias = w[f"features.{place}.weight"].double(), w[f"features.{place}.bias"].double()
            x = functional.conv2d(x, weight, bias, stride=int(stride), padding=int(padding)).clamp_min(0)
        p, q = x.numpy()
        p = p / np.sqrt((p**2).sum(0) + 1e-20)
        q = q / np.sqrt((q**2).sum(0) + 1e-20)
        channels = w[f"lin{level}.model.1.weight"].double().numpy().reshape(-1, 1, 1)
        total += float((channels * (p - q) ** 2).sum(0).mean())
    return total


@pytest.mark.parametrize(("network", "plan", "least"), [("vgg", VGG, 16), ("alex", ALEX, 31)])
def test_lpips_is_what_its_paper_defines(network: str, plan: str, least: int, pools: Pools, tmp_path: Path) -> None:
    """From the two files that one has: the network as torchvision saves it, the linear layers as lpips does."""
    state = features(network)
    for file, linear in (("network.pth", False), ("linear.pth", True)):
        part = {name: tensor for name, tensor in state.items() if name.startswith("lin") == linear}
        torch.save(part, tmp_path / file, _use_new_zipfile_serialization=linear)
    lpips = load_lpips(str(tmp_path))
    assert (lpips.network, lpips.least_side) == (network, least)
    for side in (least, 45):
        images = pools[0].draw(2, 64, (1, 1), 0, 0)[..., :side, :side]
        made = (images + 0.2 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)
        found = lpips(made, images)
        assert found.shape == (2,)
        for one, a, b in zip(found, made, images, strict=True):
            assert float(one) == pytest.approx(by_definition((a + 1) / 2, (b + 1) / 2, state, plan), rel=1e-4)
    assert torch.equal(lpips(images, images), torch.zeros(2))
    assert not any(parameter.requires_grad for parameter in lpips.parameters())
    with pytest.raises(RuntimeError, match="too small"):
        lpips(*torch.zeros(2, 1, 3, least - 1, 40))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features.28.bias": None}, r"features\.28\.bias is missing, expected \[512\]"),
        ({"lin2.model.1.weight": torch.zeros(1, 3, 1, 1)}, r"lin2\.model\.1\.weight is \[1, 3, 1, 1\], expected"),
    ],
    ids=["missing", "other shape"],
)
def test_lpips_weights_that_do_not_fit_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    changed = {name: tensor for name, tensor in (features() | change).items() if tensor is not None}
    safetensors.torch.save_file(changed, tmp_path / "x.safetensors")
    with pytest.raises(FormatError, match=message):
        load_lpips(str(tmp_path / "x.safetensors"))


def test_training_with_lpips_lowers_it_and_a_state_is_bound_to_its_weights(
    weights: Path, pools: Pools, tmp_path: Path
) -> None:
    recipe = tiny(losses={"l1": 0, "l2": 0.1, "lpips": 0.1}, steps=24, batch=2)
    lpips = load_lpips(str(weights))
    training(recipe, pools, tmp_path, lpips=lpips).run(TrainingLogSpec(every=8), max_seconds=0)
    other = Lpips()
    other.sha256 = "0" * 64
    with pytest.raises(FormatError, match="belongs to another recipe"):
        training(recipe, pools, tmp_path, lpips=other)
    training(recipe, pools, tmp_path, lpips=lpips).run(TrainingLogSpec(every=8))
    rows = [json.loads(line) for line in (tmp_path / "training" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["lpips"] < 0.9 * rows[0]["lpips"]
    with pytest.raises(SpecError, match=r"losses\.lpips needs a file of weights"):
        training(recipe, pools, tmp_path / "none")


def test_a_discriminator_judges_patches_and_learns_to_tell(pools: Pools) -> None:
    torch.manual_seed(0)
    adversary = Adversary(torch.device("cpu"))
    images = pools[0].draw(8, 32, (1, 1), 0, 0)
    noisy = images + 0.3 * torch.randn(images.shape)
    assert PatchDiscriminator()(images).shape == (8, 1, 2, 2)
    first = adversary.learn(images, noisy, 1e-3)
    for _ in range(30):
        last = adversary.learn(images, noisy, 1e-3)
    assert float(last) < 0.5 * float(first)
    assert adversary.loss(images) < adversary.loss(noisy)
    made = noisy.clone().requires_grad_()
    adversary.optimizer.zero_grad(set_to_none=True)
    adversary.loss(made).backward()
    assert made.grad is not None
    assert all(parameter.grad is None for parameter in adversary.discriminator.parameters())


def test_a_run_with_a_discriminator_stops_and_goes_on_to_the_same_weights(pools: Pools, tmp_path: Path) -> None:
    recipe = tiny(losses={"gan": 0.1, "gan_from": 0.25}, steps=16, batch=2)
    straight = training(recipe, pools, tmp_path / "straight").run(TrainingLogSpec(every=2))
    rows = [json.loads(line) for line in (tmp_path / "straight/training/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "gan" in row] == [6, 8, 10, 12, 14, 16]
    first = training(recipe, pools, tmp_path / "parts")
    while first.step < 9:
        first._one_step()
    first._checkpoint()
    resumed = training(recipe, pools, tmp_path / "parts")
    assert resumed.step == 9
    assert resumed.run().spec.fingerprint == straight.spec.fingerprint
    plain = training(tiny(steps=16, batch=2), pools, tmp_path / "plain").run()
    assert plain.spec.weights_sha256 != straight.spec.weights_sha256


def test_a_gradient_term_makes_sharper_edges_of_blurred_ones() -> None:
    from tokenshard.spec.recipe import Losses
    from tokenshard.training.losses import reconstruction_loss

    edge = torch.zeros(1, 3, 8, 8)
    edge[..., 4:] = 1.0
    shifted, blurred = edge + 0.25, functional.avg_pool2d(edge, (1, 3), 1, (0, 1), count_include_pad=False)
    plain, with_gradient = Losses(l1=1, l2=0), Losses(l1=1, l2=0, gradient=1)
    assert reconstruction_loss(shifted, edge, plain)[0] > reconstruction_loss(blurred, edge, plain)[0]
    assert reconstruction_loss(shifted, edge, with_gradient)[0] < reconstruction_loss(blurred, edge, with_gradient)[0]


def test_tensorboard_shows_every_row_and_picture_also_of_a_run_that_was_stopped(pools: Pools, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = TrainingLogSpec(every=4, checkpoint_every=8)
    training(tiny(steps=16), pools, tmp_path, tensorboard=True).run(log, max_seconds=0)
    training(tiny(steps=16), pools, tmp_path, tensorboard=True).run(log)
    shown = accumulator.EventAccumulator(str(tmp_path / "training" / "tensorboard"))
    shown.Reload()
    rows = [json.loads(line) for line in (tmp_path / "training" / "metrics.jsonl").read_text().splitlines()]
    assert [(event.step, event.value) for event in shown.Scalars("perplexity")] == [
        (row["step"], pytest.approx(row["perplexity"])) for row in rows
    ]
    assert [event.step for event in shown.Scalars("psnr")] == [8, 16]
    pictures = [event.encoded_image_string for event in shown.Images("samples")]
    assert pictures[-1] == (tmp_path / "training" / "samples-00000016.png").read_bytes()
    assert {"loss", "usage", "entropy", "collapsed", "train_psnr"} <= set(shown.Tags()["scalars"])
