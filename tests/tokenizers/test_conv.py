"""The `conv` tokenizer: any size, ids of the sample alone, and folders that are refused when anything is off."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tokenshard.errors import FormatError, InputError
from tokenshard.quantizers.registry import make_quantizer
from tokenshard.report.quality import psnr
from tokenshard.store import Store
from tokenshard.tokenizers.conv import ConvVQ
from tokenshard.tokenizers.conv_network import AutoEncoder, NetworkConfig, StackConfig
from tokenshard.tokenizers.folder import load_tokenizer, save_tokenizer
from tokenshard.tokenizers.packaged import saved_tokenizer
from tokenshard.tokenizers.trained import ConvConfig
from tokenshard.tokenizers.weights import weights_sha256, weights_to_bytes

Photos = list[NDArray[np.uint8]]


def untrained(network: NetworkConfig, quantizer: str = "rvq", **options: Any) -> ConvVQ:
    """A small random tokenizer with all its weights away from zero."""
    torch.manual_seed(0)
    made = make_quantizer(quantizer, dim=network.dim, **options).eval().exported()
    modules = AutoEncoder(network)
    for parameter in modules.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    config = ConvConfig(network=network, quantizer=made.name, quantizer_options=made.options())
    return ConvVQ(config, modules, made)


SMALL = NetworkConfig(
    dim=4,
    encoder=StackConfig(stem=2, channels=(8, 8), blocks=(1, 1)),
    decoder=StackConfig(stem=1, channels=(8, 8, 8), blocks=(1, 0, 1)),
)
VQGAN = NetworkConfig(
    dim=8,
    norm="group",
    encoder=StackConfig(channels=(32, 32, 64), blocks=(1, 1, 1), middle=2, attention=True),
    decoder=StackConfig(channels=(32, 32, 64), blocks=(1, 1, 1), middle=2, attention=True),
)


@pytest.fixture(scope="session")
def default() -> ConvVQ:
    loaded = load_tokenizer(saved_tokenizer("default"))
    assert isinstance(loaded, ConvVQ)
    return loaded


@pytest.fixture(scope="session")
def small() -> ConvVQ:
    return untrained(SMALL, size=32, depth=2)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 9), (8, 8), (17, 30), (31, 64)], ids=str)
def test_images_of_any_size_give_whole_tokens_and_come_back_in_their_size(small: ConvVQ, size: tuple[int, int]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, *size, 3), dtype=np.uint8)
    ids = small.encode(images)
    assert ids.shape == (2, 2, -(-size[0] // 4), -(-size[1] // 4)) == (2, 2, *small.grid(*size))
    assert ids.dtype == np.uint16
    assert ids.max() < 32
    assert small.decode(ids, size).shape == images.shape


def test_edges_are_mirrored_up_to_whole_tokens(small: ConvVQ, photos: Photos) -> None:
    image = photos[0][None, 40:70, 80:105]
    padded = np.pad(image, ((0, 0), (0, 2), (0, 3), (0, 0)), mode="reflect")
    assert (small.encode(image) == small.encode(padded)).all()


@pytest.mark.parametrize("network", [SMALL, VQGAN], ids=["plain", "vqgan"])
def test_ids_and_pixels_do_not_depend_on_the_batch(network: NetworkConfig, crops: NDArray[np.uint8]) -> None:
    tokenizer = untrained(network, "vq", size=64)
    ids = tokenizer.encode(crops[:8])
    assert len(np.unique(ids)) > 8
    alone = np.concatenate([tokenizer.encode(crop[None]) for crop in crops[:8]])
    assert (ids == alone).all()
    pixels = np.concatenate([tokenizer.decode(one[None]) for one in ids])
    assert (tokenizer.decode(ids) == pixels).all()


def test_ids_and_pixels_do_not_depend_on_the_number_of_threads(default: ConvVQ, photos: Photos) -> None:
    image = photos[0][None, :203, :310]
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            ids = default.encode(image)
            found.append((ids.tobytes(), default.decode(ids).tobytes()))
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1] == found[2]


def test_ids_do_not_depend_on_the_process(default: ConvVQ, crops: NDArray[np.uint8], tmp_path: Path) -> None:
    np.save(tmp_path / "crops.npy", crops[:16])
    program = (
        "import sys, numpy as np\n"
        "from tokenshard.tokenizers.folder import load_tokenizer\n"
        "from tokenshard.tokenizers.packaged import saved_tokenizer\n"
        "np.save(sys.argv[2], load_tokenizer(saved_tokenizer('default')).encode(np.load(sys.argv[1])))"
    )
    files = [str(tmp_path / "crops.npy"), str(tmp_path / "ids.npy")]
    subprocess.run([sys.executable, "-c", program, *files], check=True)
    assert (np.load(tmp_path / "ids.npy") == default.encode(crops[:16])).all()


def test_without_normalization_an_id_depends_on_a_window_of_pixels_only(small: ConvVQ, photos: Photos) -> None:
    image = photos[0][:64, :64].copy()
    before = small.encode(image[None])
    image[:8, :8] = 255 - image[:8, :8]
    changed = (small.encode(image[None]) != before).any((0, 1))
    assert changed[:2, :2].any()
    assert not changed[8:].any()
    assert not changed[:, 8:].any()


def test_bfloat16_is_another_tokenizer_with_nearly_the_same_ids(default: ConvVQ, crops: NDArray[np.uint8]) -> None:
    short = default.on("cpu", "bf16")
    assert short.spec.fingerprint != default.spec.fingerprint
    assert short.spec.weights_sha256 == default.spec.weights_sha256
    assert (short.encode(crops[:16]) == default.encode(crops[:16])).mean() > 0.85
    assert (default.on("cpu").encode(crops[:16]) == default.encode(crops[:16])).all()


def test_the_default_tokenizer_shows_photographs_as_they_are(default: ConvVQ, photos: Photos) -> None:
    for photo, least in zip(photos, (25.5, 27.5, 28.5), strict=True):
        ids = default.encode(photo[None, :256, :256])
        assert psnr(photo[:256, :256], default.decode(ids)[0]) > least


def test_the_default_tokenizer_was_made_by_the_recipe_of_the_benchmarks(default: ConvVQ) -> None:
    recipe = json.loads((Path(__file__).parents[2] / "benchmarks" / "default_tokenizer.json").read_text())
    assert recipe == {**default.config.recipe, "network": default.config.network.model_dump(mode="json")}
    assert sum(tensor.nbytes for tensor in default.tensors().values()) < 5e6


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 8, 8, 3), np.float32), r"not float32 \[1, 8, 8, 3\]"),
        (np.zeros((8, 8, 3), np.uint8), r"not uint8 \[8, 8, 3\]"),
        (np.zeros((1, 8, 8, 1), np.uint8), "height, width, 3"),
        (np.zeros((1, 0, 8, 3), np.uint8), "height, width, 3"),
    ],
)
def test_other_arrays_are_refused(small: ConvVQ, images: NDArray[Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        small.encode(images)


@pytest.mark.parametrize(
    ("codes", "size", "message"),
    [
        (np.full((1, 2, 2, 2), 32), None, "ids 32 to 32 of level 0 do not fit 32 codes"),
        (np.full((1, 2, 2, 2), -1), None, "ids -1 to -1"),
        (np.zeros((1, 3, 2, 2), np.uint16), None, "2 levels"),
        (np.zeros((1, 2, 2, 2), np.uint16), (8, 9), "is not 8x9 pixels"),
        (np.zeros((1, 2, 2, 2), np.uint16), (4, 8), "is not 4x8 pixels"),
    ],
)
def test_codes_that_are_not_of_this_tokenizer_are_refused(
    small: ConvVQ, codes: NDArray[Any], size: tuple[int, int] | None, message: str
) -> None:
    with pytest.raises(FormatError, match=message):
        small.decode(codes, size)


@pytest.fixture
def folder(small: ConvVQ, tmp_path: Path) -> Path:
    save_tokenizer(small, Store(tmp_path), "tok")
    return tmp_path / "tok"


def test_a_saved_one_comes_back_with_the_same_ids_pixels_and_fingerprint(
    small: ConvVQ, folder: Path, crops: NDArray[np.uint8]
) -> None:
    loaded = load_tokenizer(Store(folder))
    ids = small.encode(crops[:4])
    assert loaded.spec == small.spec
    assert (loaded.encode(crops[:4]) == ids).all()
    assert (loaded.decode(ids) == small.decode(ids)).all()
    save_tokenizer(loaded, Store(folder), "")


@pytest.mark.parametrize(
    ("quantizer", "options"),
    [("fsq", {"values": [8, 5, 5, 5]}), ("lfq", {}), ("bsq", {}), ("pq", {"size": 8, "parts": 2})],
)
def test_with_any_quantizer_a_saved_one_comes_back_with_the_same_ids_and_pixels(
    quantizer: str, options: dict[str, Any], crops: NDArray[np.uint8], tmp_path: Path
) -> None:
    made = untrained(SMALL, quantizer, **options)
    save_tokenizer(made, Store(tmp_path), "")
    loaded, ids = load_tokenizer(Store(tmp_path)), made.encode(crops[:2])
    assert len(np.unique(ids)) > 4
    assert (loaded.encode(crops[:2]) == ids).all()
    assert (loaded.decode(ids) == made.decode(ids)).all()


Change = Callable[[dict[str, Any], dict[str, NDArray[Any]]], bytes | None]


def tamper(folder: Path, change: Change) -> None:
    """Change description and tensors and make the hash fit, as someone would who knows the format."""
    description = json.loads((folder / "tokenizer.json").read_text())
    tensors = dict(load_tokenizer(Store(folder)).tensors())
    weights = change(description, tensors) or weights_to_bytes(tensors)
    description["weights_sha256"] = weights_sha256(weights)
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "tokenizer.json").write_text(json.dumps(description))


def set_tensor(name: str, value: NDArray[Any] | None) -> Change:
    def change(_: dict[str, Any], tensors: dict[str, NDArray[Any]]) -> None:
        assert name in tensors or value is not None
        tensors.pop(name, None)
        if value is not None:
            tensors[name] = value

    return change


def set_config(path: str, value: Any) -> Change:
    def change(description: dict[str, Any], _: dict[str, NDArray[Any]]) -> None:
        *parents, name = path.split(".")
        place = description
        for parent in parents:
            place = place[parent]
        if value is None:
            del place[name]
        else:
            place[name] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            set_tensor("quantizer.codebook_0", np.zeros((31, 4), np.float32)),
            r"quantizer\.codebook_0 is float32 \[31, 4\]",
        ),
        (set_tensor("encoder.1.weight", np.zeros((8, 12, 3, 3), np.float16)), r"encoder\.1\.weight is float16"),
        (set_tensor("encoder.1.bias", None), r"the weights lack encoder\.1\.bias$"),
        (set_tensor("surplus", np.zeros(3, np.float32)), "does not belong there: surplus"),
        (set_tensor("encoder.1.bias", np.full(8, np.nan, np.float32)), "not finite"),
        (lambda _, tensors: pickle.dumps(tensors), "not a safetensors file"),
        (set_config("config.network.dim", 5), "network 5"),
        (set_config("config.network.encoder.channels", [8]), r"config\.network\.encoder"),
        (set_config("config.network.encoder.channels", [1 << 30, 8]), r"config\.network\.encoder\.channels"),
        (set_config("config.network.encoder.channels", [4096, 4096]), "expected float32"),
        (set_config("config.network", None), r"config\.network: Field required"),
        (set_config("config.quantizer", "telepathy"), "unknown quantizer 'telepathy'"),
        (set_config("config.quantizer_options.levels", [1 << 40, 1 << 40]), "quantizer"),
        (set_config("config.quantizer_options", {"size": 4}), r"config\.quantizer"),
        (set_config("levels", [32, 1 << 40]), "do not fit an f4 conv tokenizer"),
        (set_config("levels", [32]), "levels"),
        (set_config("downsample", [8, 8]), "do not fit an f4 conv tokenizer"),
        (set_config("numerics", "fp8"), "numerics 'fp8' is not one of fp32, bf16, int8"),
    ],
)
def test_a_tampered_folder_is_refused_in_one_line_that_names_it(folder: Path, change: Change, message: str) -> None:
    tamper(folder, change)
    with pytest.raises(FormatError, match=message) as error:
        load_tokenizer(Store(folder))
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_a_changed_byte_anywhere_in_the_weights_is_refused(folder: Path) -> None:
    weights = bytearray((folder / "model.safetensors").read_bytes())
    for place in range(0, len(weights), len(weights) // 20):
        damaged = weights.copy()
        damaged[place] ^= 1
        (folder / "model.safetensors").write_bytes(damaged)
        with pytest.raises(FormatError, match="SHA-256"):
            load_tokenizer(Store(folder))
