"""Tokenizers around a frozen encoder: it stays as it is, and is run only where the user names it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image

import some_encoders
import tokenshard as ts
from tokenshard.cli.main import cli
from tokenshard.errors import FormatError, SpecError
from tokenshard.spec.train import TrainingLogSpec
from tokenshard.store import Store
from tokenshard.tokenizers.conv import ConvVQ
from tokenshard.tokenizers.conv_network import StackConfig
from tokenshard.tokenizers.encoders import load_encoder, with_encoder
from tokenshard.tokenizers.folder import load_tokenizer
from tokenshard.tokenizers.frozen import FrozenConfig, FrozenEncoder, encoder_sha256, frozen_network, principal_axes
from tokenshard.training.crops import PixelPool
from tokenshard.training.frozen import preparation
from tokenshard.training.recipe import TokenizerRecipe
from tokenshard.training.tokenizer import TokenizerTraining

pytestmark = pytest.mark.usefixtures("one_thread")
NAME = "some_encoders:vit"
DECODER = StackConfig(stem=8, channels=(16,), blocks=(1,))


@pytest.fixture(scope="module")
def photos() -> list[NDArray[np.uint8]]:
    return [skimage.data.coffee()[:200, :300], skimage.data.chelsea()[:160, :200], skimage.data.astronaut()[:160, :160]]


@pytest.fixture(scope="module")
def pools(photos: list[NDArray[np.uint8]]) -> tuple[PixelPool, PixelPool]:
    return PixelPool.of(photos[:2]), PixelPool.of(photos[2:])


def recipe(encoder: torch.nn.Module, reweighted: bool = False, dim: int | None = 8, **changes: Any) -> TokenizerRecipe:
    network = frozen_network(NAME, encoder, DECODER, dim, reweighted).model_dump()
    fields = {"network": network, "quantizer_options": {"size": 32, "start": 1}, "crop": 64, "batch": 4, "steps": 30}
    return TokenizerRecipe.model_validate({**fields, "warmup": 5, "lr": 3e-3, "stored": "float32", **changes})


def training(encoder: torch.nn.Module, of: TokenizerRecipe, pools: Any, out: Path) -> TokenizerTraining:
    prepare = preparation(encoder, NAME, pools[0], of)
    return TokenizerTraining(of, *pools, Store(out), prepare=prepare, say=lambda text: None)


@pytest.fixture(scope="module")
def run(pools: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ConvVQ]:
    out, encoder = tmp_path_factory.mktemp("run"), some_encoders.vit()
    made = training(encoder, recipe(encoder), pools, out).run()
    assert made is not None
    return out, made


def test_the_encoder_stays_as_it_is_and_decoder_and_codes_learn(pools: Any, tmp_path: Path) -> None:
    encoder = some_encoders.vit()
    before = encoder_sha256(encoder)
    one = training(encoder, recipe(encoder), pools, tmp_path)
    decoder = {name: tensor.clone() for name, tensor in one.network.decoder.state_dict().items()}
    axes = one.network.get_buffer("encoder.axes").clone()
    made = one.run()
    assert made is not None
    assert encoder_sha256(encoder) == before == made.config.network.model_dump()["encoder_sha256"]
    assert (one.network.get_buffer("encoder.axes") == axes).all()
    assert all((one.network.decoder.state_dict()[name] != tensor).any() for name, tensor in decoder.items())
    losses = [row["l2"] for row in one.metrics.rows]
    assert losses[-1] < losses[0]
    assert not any(name.startswith("encoder.borrowed") for name in made.tensors())
    assert sum(tensor.size for name, tensor in made.tensors().items() if name.startswith("encoder")) == 24 + 8 * 24


def test_a_run_that_stops_goes_on_to_the_same_weights(run: tuple[Path, ConvVQ], pools: Any, tmp_path: Path) -> None:
    encoder = some_encoders.vit()
    first = training(encoder, recipe(encoder), pools, tmp_path)
    assert first.run(TrainingLogSpec(every=1), max_seconds=0) is None
    second = training(encoder, recipe(encoder), pools, tmp_path).run()
    assert second is not None
    assert second.spec.fingerprint == run[1].spec.fingerprint


def components(encoder: torch.nn.Module, image: NDArray[np.uint8]) -> torch.Tensor:
    """Features [N, 24] of an image."""
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        return encoder.eval()(pixels)[0].flatten(1).T


def test_reweighting_lowers_the_weighted_error_and_uses_no_fewer_codes(pools: Any, tmp_path: Path) -> None:
    encoder = some_encoders.vit()
    image = skimage.data.astronaut()[:256, :256]
    features = components(encoder, image).double()
    centred = features - features.mean(0)
    variances, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
    usage, error = {}, {}
    for reweighted in (False, True):
        of = recipe(encoder, reweighted, dim=24, steps=60, quantizer_options={"size": 64, "start": 1})
        made = training(encoder, of, pools, tmp_path / str(reweighted)).run()
        assert made is not None
        tokenizer = with_encoder(made, NAME)
        assert isinstance(tokenizer, ConvVQ)
        ids = tokenizer.encode(image[None])
        usage[reweighted] = len(np.unique(ids))
        borrower = tokenizer.network.encoder
        assert isinstance(borrower, FrozenEncoder)
        decoded = tokenizer.quantizer.vectors(torch.from_numpy(ids.astype(np.int64)))[0].flatten(1).T.double()
        restored = decoded @ torch.linalg.pinv(borrower.axes.double()).T + borrower.mean
        off = (restored - features) @ vectors
        error[reweighted] = float((off.square() * variances).sum(1).mean() / variances.sum())
    assert usage[True] >= usage[False] > 30
    assert error[True] < 0.95 * error[False]


def test_principal_axes_are_orthogonal_and_projections_have_variance_one_on_average() -> None:
    torch.manual_seed(0)
    features = torch.randn(50, 6, 8, 8) * torch.tensor([3, 2, 1, 0.5, 0.1, 0.01])[:, None, None] + 5
    rows = features.movedim(1, -1).reshape(-1, 6)
    for reweighted in (False, True):
        mean, axes = principal_axes(torch.split(features, 7), 3, reweighted)
        projected = (rows - mean) @ axes.T
        covariance = projected.T.cov(correction=0)
        assert torch.allclose(covariance, covariance.diagonal().diag(), atol=1e-4)
        assert covariance.diagonal().mean() == pytest.approx(1, abs=1e-4)
        spread = covariance.diagonal().sqrt()
        power = 2 if reweighted else 1
        assert float(spread[0] / spread[2]) == pytest.approx(3**power, rel=0.05)


# -- what is stored, and what needs the encoder ------------------------------------------------------------------------


def test_a_stored_one_decodes_without_its_encoder_and_encodes_with_it(run: tuple[Path, ConvVQ], photos: Any) -> None:
    stored = load_tokenizer(Store(run[0]))
    assert isinstance(stored, ConvVQ)
    image = photos[2][None, :100, :90]
    with pytest.raises(
        SpecError, match=r"needs the encoder it was trained with, 'some_encoders:vit' .* --encoder"
    ) as e:
        stored.encode(image)
    assert "\n" not in str(e.value)
    with_encoder(stored, NAME)
    ids = stored.encode(image)
    assert ids.shape == (1, 1, 13, 12)
    assert (stored.encode(image.repeat(3, 0)) == ids).all()
    assert (stored.on("cpu").encode(image) == ids).all()
    alone = load_tokenizer(Store(run[0]))
    assert (alone.decode(ids, (100, 90)) == stored.decode(ids, (100, 90))).all()


def test_loading_a_folder_imports_nothing(run: tuple[Path, ConvVQ], tmp_path: Path) -> None:
    folder = tmp_path / "tok"
    folder.mkdir()
    (tmp_path / "spy_module.py").write_text("raise SystemExit('imported')")
    description = json.loads((run[0] / "tokenizer.json").read_text())
    description["config"]["network"]["encoder"] = "spy_module:run"
    (folder / "tokenizer.json").write_text(json.dumps(description))
    (folder / "model.safetensors").write_bytes((run[0] / "model.safetensors").read_bytes())
    sys.path.insert(0, str(tmp_path))
    try:
        loaded = load_tokenizer(Store(folder))
        loaded.decode(np.zeros((1, 1, 2, 2), np.uint16))
        with pytest.raises(SpecError, match="spy_module:run"):
            loaded.encode(np.zeros((1, 16, 16, 3), np.uint8))
        assert "spy_module" not in sys.modules
    finally:
        sys.path.remove(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("some_encoders:other_vit", FormatError, "has weights of SHA-256 .* was trained with 'some_encoders:vit'"),
        ("no_such_module:vit", SpecError, "cannot be imported: No module named 'no_such_module'"),
        ("some_encoders:nothing", SpecError, "has no attribute 'nothing'"),
        ("some_encoders:number", SpecError, r"expected a torch\.nn\.Module, not a int"),
        ("some_encoders", SpecError, "expected MODULE:FUNCTION"),
        ("os.system('x'):y", SpecError, "expected MODULE:FUNCTION"),
        (None, SpecError, "needs the encoder it was trained with, 'some_encoders:vit'"),
    ],
)
def test_another_encoder_or_none_is_refused_in_one_line(
    run: tuple[Path, ConvVQ], name: str | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as raised:
        with_encoder(load_tokenizer(Store(run[0])), name)
    assert "\n" not in str(raised.value)


def test_an_encoder_for_a_tokenizer_that_has_its_own_is_refused() -> None:
    from tokenshard.tokenizers.packaged import saved_tokenizer

    with pytest.raises(SpecError, match="has an encoder of its own"):
        with_encoder(load_tokenizer(saved_tokenizer("default")), NAME)


def test_an_encoder_that_makes_no_grid_is_refused() -> None:
    with pytest.raises(SpecError, match=r"answered torch\.float32 \[1, 150528\] for images .* expected features"):
        frozen_network("some_encoders:flat", some_encoders.flat(), DECODER, None, False)
    with pytest.raises(SpecError, match="24 features do not have 99 components"):
        frozen_network(NAME, some_encoders.vit(), DECODER, 99, False)


def test_a_module_can_be_given_as_it_is() -> None:
    assert load_encoder("some_encoders:READY") is some_encoders.READY


def test_images_are_resized_for_patches_of_other_sizes() -> None:
    decoder = StackConfig(stem=16, channels=(16,), blocks=(1,))
    config = frozen_network("some_encoders:vit14", some_encoders.vit14(), decoder, 8, False)
    assert (config.patch, config.downsample) == (14, 16)
    encoder = FrozenEncoder(config)
    encoder.borrowed = None
    from tokenshard.tokenizers.frozen import lend_encoder

    lend_encoder(encoder, some_encoders.vit14(), "some_encoders:vit14")
    assert encoder(torch.zeros(2, 3, 48, 80)).shape == (2, 8, 3, 5)


def test_transformers_folders_are_encoders(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, patch_size=8, image_size=32
    )
    model = transformers.ViTModel(config, add_pooling_layer=False).eval()
    model.save_pretrained(tmp_path)
    settings = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    encoder = load_encoder(str(tmp_path))
    images = torch.rand(2, 3, 32, 32)
    normal = (images - torch.tensor([0.5, 0.4, 0.3])[:, None, None]) / torch.tensor([0.2, 0.3, 0.4])[:, None, None]
    with torch.inference_mode():
        expected = model(normal).last_hidden_state[:, 1:]
        found = encoder.eval()(images)
    assert torch.allclose(found.flatten(2).transpose(1, 2), expected, atol=1e-5)
    assert frozen_network("vit", encoder, DECODER, None, False) == FrozenConfig(
        architecture="frozen",
        encoder="vit",
        encoder_sha256=encoder_sha256(encoder),
        patch=8,
        features=16,
        dim=16,
        decoder=DECODER,
    )


def test_from_the_command_line_to_a_dataset_and_back(
    photos: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(some_encoders.__file__).parent)  # where the workers find it, too
    folder, out, tokens = tmp_path / "photos", str(tmp_path / "tok"), str(tmp_path / "tokens")
    folder.mkdir()
    for number, photo in enumerate(photos):
        Image.fromarray(photo[:96, :96]).save(folder / f"{number}.png")
    runner = CliRunner()

    def run(*words: str, code: int = 0) -> str:
        result = runner.invoke(cli, words)
        assert result.exit_code == code, (result.output, result.exception)
        return result.output + str(result.exception or "")

    options = ("--crop", "32", "--batch", "2", "--steps", "4", "--codes", "16", "--set", "start=1", "--dim", "6")
    run("tokenizer", "train", str(folder), out, "--encoder", NAME, "--network", "f8", "--reweight", *options)
    again = str(tmp_path / "again")
    run("tokenizer", "train", str(folder), again, "--encoder", NAME, "--recipe", f"{out}/training/recipe.json")
    assert load_tokenizer(Store(again)).spec.fingerprint == load_tokenizer(Store(out)).spec.fingerprint
    convert = ("convert", "images", str(folder), tokens, "--tokenizer", out, "--engine", "local", "--codec", "pack")
    assert "needs the encoder" in run(*convert, code=1)
    run(*convert, "--encoder", NAME)
    dataset = ts.open(tokens)
    assert dataset.tokenizer.decode(np.asarray(dataset[0]["codes"])[None, None]).shape == (1, 96, 96, 3)
    run("show", tokens, "--out", str(tmp_path / "grid.png"))
    assert json.loads(run("tokenizer", "eval", out, str(folder), "--encoder", NAME, "--json"))["images"] == 3


def test_a_patch_local_network_is_trained_like_any_other(photos: Any, pools: Any, tmp_path: Path) -> None:
    from tokenshard.training.recipe import PRESETS

    fields = {"network": PRESETS["patch-f8"].model_dump(), "quantizer_options": {"size": 32, "start": 1}}
    of = TokenizerRecipe.model_validate({**fields, "crop": 32, "batch": 4, "steps": 12, "warmup": 2})
    made = TokenizerTraining(of, *pools, Store(tmp_path), say=lambda text: None).run()
    assert made is not None
    image = photos[2][:96, :96].copy()
    before = load_tokenizer(Store(tmp_path)).encode(image[None])[0, 0]
    assert (made.encode(image[None])[0, 0] == before).all()
    image[40:48, 16:24] = 255 - image[40:48, 16:24]
    changed = np.argwhere(made.encode(image[None])[0, 0] != before)
    assert changed.tolist() in ([], [[5, 2]])
