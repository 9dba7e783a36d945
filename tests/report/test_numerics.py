"""Reports on numerics modes, and on layers in eight bits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from numpy.typing import NDArray
from PIL import Image

from integration.command import tokenshard_command
from tokenshard.quantizers.registry import make_quantizer
from tokenshard.report.numerics import compare_modes, layer_sensitivity
from tokenshard.store import Store
from tokenshard.tokenizers.conv import ConvVQ
from tokenshard.tokenizers.conv_network import AutoEncoder, NetworkConfig, StackConfig
from tokenshard.tokenizers.folder import save_tokenizer
from tokenshard.tokenizers.trained import ConvConfig

NETWORK = NetworkConfig(
    dim=4,
    encoder=StackConfig(stem=4, channels=(16,), blocks=(2,)),
    decoder=StackConfig(stem=4, channels=(16,), blocks=(2,)),
)


@pytest.fixture(scope="module")
def small() -> ConvVQ:
    """A small random tokenizer with all its weights away from zero."""
    torch.manual_seed(0)
    quantizer = make_quantizer("vq", dim=4, size=64).eval().exported()
    network = AutoEncoder(NETWORK)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.08)
    config = ConvConfig(network=NETWORK, quantizer=quantizer.name, quantizer_options=quantizer.options())
    return ConvVQ(config, network, quantizer)


@pytest.fixture(scope="module")
def images() -> list[NDArray[np.uint8]]:
    """Two windows of photographs, of different sizes."""
    return [skimage.data.chelsea()[60:156, 60:188], skimage.data.coffee()[100:164, 200:264]]


def test_modes_are_compared_with_fp32(small: ConvVQ, images: list[NDArray[np.uint8]]) -> None:
    reference, again, int8 = compare_modes(small, images, ["fp32", "int8"])
    assert (reference.ids_changed, again.ids_changed, again.psnr_change) == (0, 0, 0)
    in_int8 = small.on("cpu", "int8")
    changed = [small.encode(image[None]) != in_int8.encode(image[None]) for image in images]
    assert int8.ids_changed == pytest.approx(np.concatenate([one.ravel() for one in changed]).mean())
    assert int8.images_changed == np.mean([one.any() for one in changed])
    assert int8.psnr - reference.psnr == pytest.approx(int8.psnr_change)


@pytest.mark.parametrize(("part", "layer"), [("encoder", "2.conv2"), ("decoder", "2.conv2")])
def test_a_layer_that_eight_bits_ruin_ranks_first(
    small: ConvVQ, images: list[NDArray[np.uint8]], part: str, layer: str
) -> None:
    """Large weights of an input that is always zero: in float32 they change nothing, in eight bits they set the scale
    of the layer and all its other weights are rounded to zero."""
    hostile = small.on("cpu")
    block = getattr(hostile.network, part).get_submodule(layer.partition(".")[0])
    with torch.no_grad():
        block.conv1.weight[0] = 0
        block.conv1.bias[0] = 0
        block.conv2.weight[:, 0] = 1e4
    hostile = ConvVQ(hostile.config, hostile.network, hostile.quantizer)
    reports = layer_sensitivity(hostile, images)
    assert (reports[0].part, reports[0].layer) == (part, layer)
    assert [report.pixel_change for report in reports] == sorted((r.pixel_change for r in reports), reverse=True)


def test_all_convolutions_are_ranked_and_the_decoder_changes_no_ids(
    small: ConvVQ, images: list[NDArray[np.uint8]]
) -> None:
    reports = layer_sensitivity(small, images[1:])
    assert len(reports) == 2 * 6
    assert all(report.ids_changed == 0 for report in reports if report.part == "decoder")
    assert all(report.pixel_change > 0 for report in reports)
    assert any(report.ids_changed > 0 for report in reports if report.part == "encoder")


@pytest.mark.integration
def test_both_reports_are_commands(small: ConvVQ, images: list[NDArray[np.uint8]], tmp_path: Path) -> None:
    save_tokenizer(small, Store(tmp_path / "small"), "")
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.fromarray(images[1]).save(photos / "0.png")
    saved, source = str(tmp_path / "small"), str(photos)
    done = tokenshard_command("tokenizer", "numerics", saved, source, "--modes", "int8", "--json")
    found = json.loads(done.stdout)
    assert [mode["numerics"] for mode in found["modes"]] == ["fp32", "int8"]
    done = tokenshard_command("tokenizer", "sensitivity", saved, source)
    assert "encoder.2.conv1" in done.stdout
    done = tokenshard_command("tokenizer", "numerics", "patch", source)
    assert "numerics modes are those of conv tokenizers" in done.stderr
