"""Checkpoints of other programs: ids and pixels are those they have there; nothing is missing, left over, or run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

import tokenshard as ts
import vqgan_checkpoints as made
from tokenshard.cli.main import cli
from tokenshard.errors import FormatError, SpecError
from tokenshard.store import Store
from tokenshard.tokenizers.checkpoints.load import import_checkpoint
from tokenshard.tokenizers.conv import ConvVQ
from tokenshard.tokenizers.folder import load_tokenizer, save_tokenizer
from tokenshard.tokenizers.weights import weights_to_bytes
from vqgan_checkpoints import Checkpoint, ibq_yaml, imported, saved

pytestmark = pytest.mark.usefixtures("one_thread", "seeded")


def nearest(z: Tensor, codebook: Tensor) -> Tensor:
    """int64 [B, rows, columns]."""
    return torch.cdist(z.movedim(1, -1).double(), codebook.double()).argmin(-1)


def largest(z: Tensor, codebook: Tensor) -> Tensor:
    return torch.einsum("bdhw,kd->bhwk", z.double(), codebook.double()).argmax(-1)


def check_equal(
    tokenizer: ConvVQ,
    images: NDArray[np.uint8],
    encode: Callable[[Tensor], Tensor],
    choose: Callable[[Tensor, Tensor], Tensor],
    decode: Callable[[Tensor], Tensor],
    codes: Tensor,
    unit: bool = False,
) -> None:
    """Latents and pixels within 1e-4 and all ids as those functions say; ``codes`` [K, dim] is what is decoded."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).double() / 255
    pixels = (pixels if unit else 2 * pixels - 1).float()
    with torch.inference_mode():
        z = encode(pixels)
        ids = choose(z, codes)
        out = decode(codes[ids].movedim(-1, 1))
        assert (tokenizer.network.encoder(pixels) - z).abs().max() < 1e-4
        assert (tokenizer.network.decoder(codes[ids].movedim(-1, 1)) - out).abs().max() < 1e-4
    assert len(ids.unique()) > 10
    found = tokenizer.encode(images)
    assert (found[:, 0] == ids.numpy()).all()
    shown = (out if unit else (out + 1) / 2).clamp(0, 1).mul(255).permute(0, 2, 3, 1).numpy()
    assert np.abs(tokenizer.decode(found) - shown).max() < 0.51


LAYOUTS: dict[str, Callable[[], Checkpoint]] = {
    "taming": made.taming,
    "llamagen": made.llamagen,
    "mage": made.mage,
    "muse": made.muse,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ids_and_pixels_are_those_of_a_plain_forward_pass(
    layout: str, tmp_path: Path, crops: NDArray[np.uint8]
) -> None:
    checkpoint = LAYOUTS[layout]()
    codes = F.normalize(checkpoint.codebook, dim=1) if layout == "llamagen" else checkpoint.codebook
    choose = (lambda z, codes: nearest(F.normalize(z, dim=1), codes)) if layout == "llamagen" else nearest
    unit = layout in ("mage", "muse")
    tokenizer = imported(tmp_path, checkpoint)
    check_equal(tokenizer, crops[:3], checkpoint.encode, choose, checkpoint.decode, codes, unit)


@pytest.mark.parametrize("attention", [True, False])
def test_ids_and_pixels_are_those_of_the_vqmodel_of_diffusers(
    attention: bool, tmp_path: Path, crops: NDArray[np.uint8]
) -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    model = diffusers.VQModel(
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D" if attention else "DownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D" if attention else "UpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=2,
        latent_channels=4,
        num_vq_embeddings=64,
        vq_embed_dim=8,
        norm_num_groups=8,
        mid_block_add_attention=attention,
    ).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, 0.5, 0.3)
    with torch.no_grad():  # latents of mean 0 and variance 1, and codes where some of them are
        pixels = torch.from_numpy(crops[6:24]).permute(0, 3, 1, 2).float() / 127.5 - 1
        latents = model.encode(pixels).latents.movedim(1, -1).reshape(-1, 8)
        mean, spread = latents.mean(0), latents.std(0)
        model.quant_conv.weight.div_(spread[:, None, None, None])
        model.quant_conv.bias.sub_(mean).div_(spread)
        distinct = torch.unique((latents - mean) / spread, dim=0)
        model.quantize.embedding.weight.copy_(distinct[torch.randperm(len(distinct))[:64]])
    model.save_pretrained(tmp_path)
    path = str(tmp_path / "diffusion_pytorch_model.safetensors")
    found = import_checkpoint(path)
    assert found.layout == "diffusers"
    assert found.document == str(tmp_path / "config.json")

    def choose(z: Tensor, _: Tensor) -> Tensor:
        return model.quantize(z)[2][2].reshape(len(z), *z.shape[2:])

    def decode(vectors: Tensor) -> Tensor:
        return model.decode(vectors, force_not_quantize=True).sample

    codes = model.quantize.embedding.weight.detach()
    check_equal(found.tokenizer, crops[:3], lambda x: model.encode(x).latents, choose, decode, codes)
    (tmp_path / "config.json").unlink()
    with pytest.raises(FormatError, match="32 groups"):  # the number of groups is in no tensor
        import_checkpoint(path)


def test_older_names_of_attention_in_diffusers_mean_the_same(tmp_path: Path, crops: NDArray[np.uint8]) -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    model = diffusers.VQModel(block_out_channels=(32,), num_vq_embeddings=64)
    torch.nn.init.normal_(model.quantize.embedding.weight)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = dict(state)
    for new, before in old.items():
        renamed = {name.replace(f".{new}.", f".{before}."): tensor for name, tensor in renamed.items()}
    assert renamed.keys() != state.keys()
    first = import_checkpoint(saved(tmp_path, state, "new.safetensors")).tokenizer
    second = import_checkpoint(saved(tmp_path, renamed, "old.safetensors")).tokenizer
    assert first.spec.weights_sha256 == second.spec.weights_sha256


def test_gumbel_codes_are_the_largest_logits(tmp_path: Path, crops: NDArray[np.uint8]) -> None:
    checkpoint = made.taming(z=8, dim=8)
    codes = checkpoint.state.pop("quantize.embedding.weight")
    checkpoint.state["quantize.embed.weight"] = codes
    weight, bias = torch.randn(64, 8, 1, 1), torch.randn(64)
    checkpoint.state.update({"quantize.proj.weight": weight, "quantize.proj.bias": bias})
    averages = {f"model_ema.{name.replace('.', '')}": tensor.clone() for name, tensor in checkpoint.state.items()}
    checkpoint.state.update(averages)
    tokenizer = imported(tmp_path, checkpoint)

    def choose(z: Tensor, _: Tensor) -> Tensor:
        return F.conv2d(z, weight, bias).argmax(1)

    check_equal(tokenizer, crops[:3], checkpoint.encode, choose, checkpoint.decode, codes)


def with_averages(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """As Lightning modules with an EMA of their weights are saved: the averages under names without dots."""
    state = {name: tensor + 0.01 * torch.randn_like(tensor) for name, tensor in checkpoint.state.items()}
    averages = {"model_ema." + name.replace(".", ""): tensor for name, tensor in checkpoint.state.items()}
    counters = {"model_ema.decay": torch.tensor(0.999), "model_ema.num_updates": torch.tensor(5)}
    return state | averages | counters | {"loss.discriminator.main.0.weight": torch.zeros(4, 3, 4, 4)}


def test_ibq_takes_the_averaged_weights_and_the_largest_dot_product(tmp_path: Path, crops: NDArray[np.uint8]) -> None:
    checkpoint = made.taming()
    path = saved(tmp_path, {"state_dict": with_averages(checkpoint), "epoch": 3}, "last.ckpt")
    with pytest.raises(FormatError, match="--search nearest"):  # nothing in the tensors says that it is IBQ
        import_checkpoint(path)
    (tmp_path / "config.yaml").write_text(ibq_yaml())
    found = import_checkpoint(path)
    assert (found.search, found.averaged, found.document) == ("dot", True, str(tmp_path / "config.yaml"))
    check_equal(found.tokenizer, crops[:3], checkpoint.encode, largest, checkpoint.decode, checkpoint.codebook)
    raw = import_checkpoint(path, weights="raw")
    assert not raw.averaged
    assert raw.tokenizer.spec.fingerprint != found.tokenizer.spec.fingerprint


def test_averages_of_llamagen_stand_beside_the_weights(tmp_path: Path) -> None:
    checkpoint = made.llamagen()
    raw = {name: tensor + 1 for name, tensor in checkpoint.state.items()}
    path = saved(tmp_path, {"model": raw, "ema": checkpoint.state, "steps": 7}, "vq.pt")
    plain = saved(tmp_path, checkpoint.state, "plain.safetensors")
    averaged, expected = import_checkpoint(path), import_checkpoint(plain)
    assert averaged.averaged
    with pytest.raises(SpecError, match="no moving averages"):
        import_checkpoint(plain, weights="ema")
    assert averaged.tokenizer.spec.weights_sha256 == expected.tokenizer.spec.weights_sha256
    assert (
        import_checkpoint(path, weights="raw").tokenizer.spec.weights_sha256 != expected.tokenizer.spec.weights_sha256
    )


@pytest.mark.parametrize("prefix", ["gen_vision_model.", "module."])
def test_a_tokenizer_inside_a_larger_model_is_found(prefix: str, tmp_path: Path) -> None:
    checkpoint = made.llamagen()
    inside = {prefix + name: tensor for name, tensor in checkpoint.state.items()}
    path = saved(tmp_path, {**inside, "language_model.layers.0.weight": torch.zeros(3, 3)}, "whole.safetensors")
    alone = import_checkpoint(saved(tmp_path, checkpoint.state)).tokenizer
    assert import_checkpoint(path).tokenizer.spec.weights_sha256 == alone.spec.weights_sha256
    twice = {**inside, **{f"teacher.{name}": tensor.clone() for name, tensor in checkpoint.state.items()}}
    both = saved(tmp_path, twice, "both.safetensors")
    with pytest.raises(SpecError, match=rf"--prefix: {prefix}, teacher\."):
        import_checkpoint(both)
    assert import_checkpoint(both, prefix="teacher.").tokenizer.spec.weights_sha256 == alone.spec.weights_sha256
    with pytest.raises(SpecError, match="begins with 'student'"):
        import_checkpoint(both, prefix="student")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_weights_stay_as_they_are_bit_for_bit(layout: str, dtype: torch.dtype, tmp_path: Path) -> None:
    checkpoint = LAYOUTS[layout]()
    state = {name: tensor.to(dtype) for name, tensor in checkpoint.state.items()}
    tokenizer = import_checkpoint(saved(tmp_path, state)).tokenizer
    save_tokenizer(tokenizer, Store(tmp_path), "tok")
    kept = safetensors.torch.load_file(tmp_path / "tok" / "model.safetensors")
    state.pop("quantize.codebook_used", None)
    if layout == "llamagen":  # its codes are stored with length one
        kept["quantizer.codebook_0"] = state["quantize.embedding.weight"]
    assert not kept.pop("quantizer.penalty_0").any()
    assert sorted(map(content, state.values())) == sorted(map(content, kept.values()))
    again = load_tokenizer(Store(tmp_path), "tok")
    assert again.spec == tokenizer.spec
    assert weights_to_bytes(again.tensors()) == (tmp_path / "tok" / "model.safetensors").read_bytes()


def content(tensor: Tensor) -> tuple[tuple[int, ...], bytes]:
    return tuple(tensor.shape), tensor.float().numpy().tobytes()


def test_images_of_any_size_come_back_in_their_size(tmp_path: Path) -> None:
    tokenizer = imported(tmp_path, made.llamagen())
    for height, width in np.random.default_rng(0).integers(17, 80, (4, 2)).tolist():
        image = np.random.default_rng(1).integers(0, 256, (1, height, width, 3), dtype=np.uint8)
        ids = tokenizer.encode(image)
        assert ids.shape == (1, 1, -(-height // 2), -(-width // 2))
        assert tokenizer.decode(ids, (height, width)).shape == image.shape


def test_codebooks_of_more_than_65_536_codes_make_wider_ids(tmp_path: Path, crops: NDArray[np.uint8]) -> None:
    checkpoint = made.taming(mult=(1, 1), codes=1 << 17)
    tokenizer = imported(tmp_path, checkpoint)
    ids = tokenizer.encode(crops[:2])
    assert ids.dtype == np.int32
    assert ids.max() >= 1 << 16
    assert (tokenizer.decode(ids) == tokenizer.decode(ids.astype(np.int64))).all()
    pixels = torch.from_numpy(crops[:2]).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.inference_mode():
        assert (nearest(checkpoint.encode(pixels), checkpoint.codebook).numpy() == ids[:, 0]).mean() > 0.99


def test_an_imported_one_converts_shows_and_evaluates(tmp_path: Path, photo_folder: Path) -> None:
    path = saved(tmp_path, made.mage().state, "vqgan.pt")
    out, tokens = str(tmp_path / "tok"), str(tmp_path / "tokens")
    runner = CliRunner()

    def run(*words: str) -> str:
        result = runner.invoke(cli, words, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    facts = json.loads(run("tokenizer", "import", path, out, "--json"))
    assert facts["layout"] == "maskgit"
    assert facts["downsample"] == [4, 4]
    run(
        "convert",
        "images",
        str(photo_folder),
        tokens,
        "--tokenizer",
        out,
        "--engine",
        "local",
        "--workers",
        "0",
        "--codec",
        "pack",
    )
    dataset = ts.open(tokens)
    assert dataset.manifest.tokenizer.fingerprint == facts["fingerprint"]
    assert dataset.tokenizer.decode(np.asarray(dataset[0]["codes"])[None, None]).shape[1:] == (64, 64, 3)
    run("show", tokens, "--out", str(tmp_path / "grid.png"))
    assert (tmp_path / "grid.png").stat().st_size > 1000
    assert json.loads(run("tokenizer", "eval", out, str(photo_folder), "--json"))["tokens"] == 3 * 16 * 16
