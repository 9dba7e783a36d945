"""Large images in tiles: the ids and pixels of the whole, and for patch-local networks of any tiles in any order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

from tokenshard.errors import InputError
from tokenshard.quantizers.registry import make_quantizer
from tokenshard.tokenizers import conv
from tokenshard.tokenizers.conv import ConvVQ
from tokenshard.tokenizers.conv_network import AutoEncoder, NetworkConfig, StackConfig
from tokenshard.tokenizers.patch_network import PatchLocalConfig
from tokenshard.tokenizers.tiling import reach, spans
from tokenshard.tokenizers.trained import ConvConfig

pytestmark = pytest.mark.usefixtures("one_thread")
CHAIN = NetworkConfig(
    dim=4,
    encoder=StackConfig(stem=2, channels=(8, 8), blocks=(1, 1), middle=1),
    decoder=StackConfig(stem=1, channels=(8, 8, 8), blocks=(1, 0, 1)),
)
GROUPED = NetworkConfig(
    dim=4,
    norm="group",
    encoder=StackConfig(channels=(32, 32), blocks=(1, 1)),
    decoder=StackConfig(channels=(32, 32), blocks=(1, 1)),
)
PATCH_LOCAL = PatchLocalConfig(
    architecture="patch-local",
    patch=8,
    width=64,
    blocks=2,
    dim=8,
    decoder=StackConfig(stem=4, channels=(8, 16), blocks=(1, 1)),
)


def untrained(network: NetworkConfig | PatchLocalConfig, codes: int = 256) -> ConvVQ:
    """A random tokenizer whose codes are where latents of noise are."""
    torch.manual_seed(0)
    modules = AutoEncoder(network)
    for parameter in modules.parameters():
        if parameter.ndim > 1:
            nn.init.kaiming_normal_(parameter)
    quantizer = make_quantizer("lookup", dim=network.dim, levels=[codes])
    with torch.no_grad():
        z = modules.encoder(2 * torch.rand(4, 3, 64, 64) - 1).movedim(1, -1).reshape(-1, network.dim)
        quantizer.get_buffer("codebook_0").copy_(z[torch.randint(len(z), (codes,))])
    config = ConvConfig(network=network, quantizer="lookup", quantizer_options=quantizer.options())
    return ConvVQ(config, modules, quantizer)


@pytest.fixture(scope="module")
def patch_local() -> ConvVQ:
    return untrained(PATCH_LOCAL)


@pytest.fixture(scope="module")
def chain() -> ConvVQ:
    return untrained(CHAIN)


def scene(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth areas with noise on them: uint8 [height, width, 3]."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 16 + 2, width // 16 + 2, 3))
    smooth = coarse.repeat(16, 0).repeat(16, 1)[:height, :width]
    return np.clip(smooth + rng.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conv, "TILE", 48)
    monkeypatch.setattr(conv, "DECODE_PIXELS", 1)


# -- halo ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", [CHAIN, PATCH_LOCAL], ids=["chain", "patch-local"])
def test_the_reach_that_is_computed_is_what_a_changed_cell_changes(network: NetworkConfig | PatchLocalConfig) -> None:
    modules, unit = AutoEncoder(network), network.downsample
    for parameter in modules.parameters():
        nn.init.uniform_(parameter, 0.01, 0.02)
    seen, shown = reach(modules.encoder), reach(modules.decoder)
    assert seen is not None
    assert shown is not None
    cells, middle = 31, 15
    with torch.no_grad():
        x = torch.rand(1, 3, cells * unit, cells * unit)
        y = x.clone()
        y[:, :, middle * unit + unit // 2, middle * unit + unit // 2] += 1
        moved = (modules.encoder(x) != modules.encoder(y)).any(1)[0].nonzero() - middle
        assert moved.abs().max() <= -(-seen // unit)
        assert (moved.abs().max() > 0) == (seen > 0)
        z = torch.rand(1, network.dim, cells, cells)
        w = z.clone()
        w[:, :, middle, middle] += 1
        moved = (modules.decoder(z) != modules.decoder(w)).any(1)[0].nonzero() // unit - middle
        assert moved.abs().max() == shown


def test_normalization_and_attention_see_everything() -> None:
    modules = AutoEncoder(GROUPED)
    assert reach(modules.encoder) is None
    assert reach(modules.decoder) is None


@given(st.integers(1, 200), st.integers(1, 50), st.integers(0, 20))
def test_tiles_cover_an_axis_once_and_are_read_with_their_halo(count: int, tile: int, halo: int) -> None:
    axis = np.arange(count)
    found = spans(count, tile, halo)
    assert np.concatenate([axis[span.read(1)][span.inside(1)] for span in found]).tolist() == axis.tolist()
    assert np.concatenate([axis[span.kept(1)] for span in found]).tolist() == axis.tolist()
    for span in found:
        assert span.start == max(0, span.low - halo)
        assert span.stop == min(count, span.high + halo)


# -- ids and pixels ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(200, 300), (47, 400), (97, 97)], ids=str)
def test_tiles_have_the_ids_and_pixels_of_the_whole_image(
    chain: ConvVQ, size: tuple[int, int], request: pytest.FixtureRequest
) -> None:
    image = scene(*size)[None]
    ids = chain.encode(image)
    pixels = chain.decode(ids, size)
    assert len(np.unique(ids)) > 20
    request.getfixturevalue("small_tiles")
    assert (chain.encode(image) == ids).all()
    error = np.abs(chain.decode(ids, size).astype(int) - pixels)
    assert error.max() <= 1  # a convolution may round the last digit otherwise on another size
    assert (error > 0).mean() < 1e-3


def test_only_tiles_of_an_image_are_in_memory(chain: ConvVQ, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conv, "TILE", 64)
    monkeypatch.setattr(conv, "DECODE_PIXELS", 1)
    seen: list[int] = []
    hooks = [
        module.register_forward_hook(lambda _m, _i, output: seen.append(output.numel()))
        for module in chain.network.modules()
        if isinstance(module, nn.Conv2d)
    ]
    most = []
    for side in (192, 384):
        seen.clear()
        chain.decode(chain.encode(scene(side, side)[None]))
        most.append(max(seen))
    for hook in hooks:
        hook.remove()
    assert most[0] == most[1] < 8 * 192 * 192


def test_an_image_too_large_for_a_network_that_cannot_be_tiled_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(conv, "MAX_WHOLE_PIXELS", 64 * 64)
    tokenizer = untrained(GROUPED)
    assert tokenizer.encode(scene(64, 64)[None]).shape == (1, 1, 32, 32)
    with pytest.raises(InputError, match=r"66x64 pixels is too large .* cannot be tiled") as error:
        tokenizer.encode(scene(66, 64)[None])
    assert "\n" not in str(error.value)


# -- patch-local ---------------------------------------------------------------------------------------------------


def test_patch_local_tiles_in_any_order_and_batch_have_the_ids_of_the_whole(patch_local: ConvVQ) -> None:
    image = scene(1024, 1024)
    whole = patch_local.encode(image[None])[0, 0]
    assert len(np.unique(whole)) > 100
    rng = np.random.default_rng(1)
    for side, batch in ((64, 7), (256, 1), (8, 1000)):
        tiles = image.reshape(1024 // side, side, -1, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)
        order = rng.permutation(len(tiles))
        ids = np.empty((len(tiles), side // 8, side // 8), np.uint16)
        for start in range(0, len(tiles), batch):
            ids[order[start : start + batch]] = patch_local.encode(tiles[order[start : start + batch]])[:, 0]
        rows = 1024 // side
        assert (ids.reshape(rows, rows, side // 8, -1).swapaxes(1, 2).reshape(128, 128) == whole).all()


def test_patch_local_ids_do_not_depend_on_the_number_of_threads(patch_local: ConvVQ) -> None:
    image, before = scene(200, 310)[None], torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(patch_local.encode(image).tobytes())
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1] == found[2]


def test_changing_one_patch_changes_its_id_alone(patch_local: ConvVQ) -> None:
    image = scene(128, 160)
    before = patch_local.encode(image[None])[0, 0]
    for row, column in ((0, 0), (7, 19), (15, 3)):
        changed = image.copy()
        patch = changed[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        patch[:] = 255 - patch
        places = np.argwhere(patch_local.encode(changed[None])[0, 0] != before)
        assert places.tolist() == [[row, column]]


def test_patch_local_images_of_any_size_come_back_in_their_size(patch_local: ConvVQ) -> None:
    for size in ((1, 1), (17, 300), (64, 8)):
        ids = patch_local.encode(scene(*size)[None].repeat(2, 0))
        assert ids.shape == (2, 1, *patch_local.grid(*size))
        assert (ids[0] == ids[1]).all()
        assert patch_local.decode(ids, size).shape == (2, *size, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"patch": 3}, "patch"), ({"patch": 4}, "4 pixels a side, the decoder is f8"), ({"stem": 1}, "stem")],
)
def test_a_patch_local_description_that_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PatchLocalConfig.model_validate({**PATCH_LOCAL.model_dump(), **change})
