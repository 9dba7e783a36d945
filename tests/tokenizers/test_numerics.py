"""Numerics modes: eight-bit convolutions against integer arithmetic, ids within a mode, and datasets of one mode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

import tokenshard
from tokenshard.engine.convert import Mode
from tokenshard.errors import SpecError
from tokenshard.report.quality import psnr
from tokenshard.shards.verify import verify
from tokenshard.store import Store
from tokenshard.tokenizers import int8
from tokenshard.tokenizers.conv import ConvVQ
from tokenshard.tokenizers.folder import load_tokenizer, save_tokenizer
from tokenshard.tokenizers.int8 import Int8Convolution, convolutions, in_int8
from tokenshard.tokenizers.packaged import saved_tokenizer
from tokenshard.tokenizers.trained import Numerics


@pytest.fixture(scope="module")
def default() -> ConvVQ:
    loaded = load_tokenizer(saved_tokenizer("default"))
    assert isinstance(loaded, ConvVQ)
    return loaded


@pytest.fixture(scope="module")
def pictures(photos: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Four windows [4, 96, 128, 3] of photographs."""
    windows = [photo[row : row + 96, 40:168] for photo in photos[:2] for row in (0, 150)]
    return np.ascontiguousarray(np.stack(windows))


@pytest.mark.parametrize("fast", [True, False], ids=["oneDNN", "float"])
def test_an_int8_convolution_is_that_of_rounded_integers(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if fast and not int8._FAST:
        pytest.skip("this build of PyTorch has no integer convolution")
    monkeypatch.setattr(int8, "_FAST", fast)
    torch.manual_seed(1)
    convolution = nn.Conv2d(6, 5, 3, 2, 1)
    x = torch.randn(3, 6, 9, 12) * torch.tensor([1.0, 30.0, 0.01])[:, None, None, None]
    convolution.requires_grad_(False)
    made = Int8Convolution(convolution)(x)
    low, high = (side((1, 2, 3), keepdim=True) for side in (x.amin, x.amax))
    step = (high - low) / 255
    scale = convolution.weight.abs().amax((1, 2, 3), keepdim=True) / 127
    integers = nn.functional.conv2d(
        (x * (1 / step)).round().double(), (convolution.weight / scale).round().double(), None, 2, 1
    )
    expected = integers * step.double() * scale.reshape(1, 5, 1, 1) + convolution.bias.double()[:, None, None]
    assert (integers == integers.round()).all()
    assert torch.allclose(made.double(), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    assert (made - convolution(x)).abs().max() > 0


def test_first_and_last_convolution_stay_as_they_are(default: ConvVQ) -> None:
    encoder = default.network.encoder
    names = list(convolutions(encoder))
    assert list(convolutions(in_int8(encoder))) == [names[0], names[-1]]
    assert list(convolutions(encoder)) == names


@pytest.mark.parametrize("mode", ["fp32", "bf16", "int8"])
def test_ids_of_a_mode_depend_neither_on_batch_nor_threads(
    default: ConvVQ, pictures: NDArray[np.uint8], mode: Numerics
) -> None:
    tokenizer = default.on("cpu", mode)
    ids = tokenizer.encode(pictures)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            again = np.concatenate([tokenizer.encode(pictures[:1]), tokenizer.encode(pictures[1:])])
            assert (again == ids).all()
            assert (default.on("cpu", mode).encode(pictures[::-1])[::-1] == ids).all()
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("mode", ["bf16", "int8"])
def test_a_mode_changes_some_ids_and_hardly_any_quality(
    default: ConvVQ, pictures: NDArray[np.uint8], mode: Numerics
) -> None:
    tokenizer = default.on("cpu", mode)
    ids, expected = tokenizer.encode(pictures), default.encode(pictures)
    assert 0 < (ids != expected).mean() < 0.12
    reference = psnr(pictures, default.decode(expected))
    assert psnr(pictures, tokenizer.decode(ids)) == pytest.approx(reference, abs=0.05)
    assert tokenizer.spec.numerics == mode
    assert tokenizer.spec.fingerprint != default.spec.fingerprint
    assert tokenizer.spec.weights_sha256 == default.spec.weights_sha256


def test_a_tokenizer_saved_in_a_mode_is_loaded_in_it(
    default: ConvVQ, pictures: NDArray[np.uint8], tmp_path: Path
) -> None:
    tokenizer = default.with_tables(()).on("cpu", "int8")
    save_tokenizer(tokenizer, Store(tmp_path), "")
    loaded = load_tokenizer(Store(tmp_path))
    assert loaded.spec == tokenizer.spec
    assert (loaded.encode(pictures) == tokenizer.encode(pictures)).all()


def test_int8_is_not_compiled(default: ConvVQ) -> None:
    with pytest.raises(SpecError, match="int8 is not compiled"):
        default.on("cpu", "int8", compiled=True)


# -- datasets ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def folders(pictures: NDArray[np.uint8], tmp_path: Path) -> tuple[Path, Path]:
    """Two folders of two images."""
    for number, picture in enumerate(pictures):
        path = tmp_path / ("first", "second")[number // 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(picture).save(path)
    return tmp_path / "first", tmp_path / "second"


def convert(source: Path, output: Path, **options: Any) -> None:
    mode = Mode(append=options.pop("append", False), mix_numerics=options.pop("mix_numerics", False))
    tokenshard.convert_images(source, output, tokenizer="default", mode=mode, engine={"workers": 0}, **options)


def test_the_manifest_names_the_mode_and_another_is_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    output = tmp_path / "tokens"
    convert(folders[0], output, numerics="int8")
    manifest = tokenshard.open(output).manifest
    assert manifest.tokenizer.numerics == "int8"
    with pytest.raises(SpecError, match=r"its ids are int8, the job's would be fp32; .*--mix-numerics"):
        convert(folders[1], output, numerics="fp32", append=True)
    assert tokenshard.open(output).manifest == manifest


def test_without_a_mode_an_append_goes_on_in_that_of_the_dataset(
    folders: tuple[Path, Path], default: ConvVQ, pictures: NDArray[np.uint8], tmp_path: Path
) -> None:
    output = tmp_path / "tokens"
    convert(folders[0], output, numerics="int8")
    convert(folders[1], output, append=True)
    dataset = tokenshard.open(output)
    assert dataset.manifest.tokenizer.numerics == "int8"
    assert (dataset.codes(range(4)) == default.on("cpu", "int8").encode(pictures)[:, 0]).all()


def test_modes_are_mixed_with_a_flag_and_the_manifest_says_so(
    folders: tuple[Path, Path], default: ConvVQ, pictures: NDArray[np.uint8], tmp_path: Path
) -> None:
    output = tmp_path / "tokens"
    convert(folders[0], output)
    convert(folders[1], output, numerics="int8", append=True, mix_numerics=True)
    dataset = tokenshard.open(output)
    assert dataset.manifest.tokenizer.numerics == "fp32+int8"
    assert [dataset.reader(shard).footer.tokenizer.numerics for shard in (0, 1)] == ["fp32", "int8"]
    expected = [*default.encode(pictures[:2]), *default.on("cpu", "int8").encode(pictures[2:])]
    assert (dataset.codes(range(4)) == np.concatenate(expected)).all()
    assert verify(Store(output), deep=True).errors == ()


def test_modes_are_for_conv_tokenizers(folders: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="patch: numerics, device and compile are for conv tokenizers"):
        tokenshard.convert_images(folders[0], tmp_path / "tokens", tokenizer="patch", numerics="bf16")
