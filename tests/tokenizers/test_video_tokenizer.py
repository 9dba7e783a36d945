"""The `video` tokenizer: causal in time, an image is a clip of one frame, the same ids in any company."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from numpy.typing import NDArray

from tokenshard.errors import FormatError, InputError, SpecError
from tokenshard.quantizers.registry import make_quantizer
from tokenshard.store import Store
from tokenshard.tokenizers.causal_network import CausalBlock, CausalConfig, group_count
from tokenshard.tokenizers.conv import ConvVQ
from tokenshard.tokenizers.conv_network import AutoEncoder, StackConfig, to_signed
from tokenshard.tokenizers.folder import load_tokenizer, save_tokenizer
from tokenshard.tokenizers.frames import decode_frames, encode_frames
from tokenshard.tokenizers.trained import ConvConfig
from tokenshard.tokenizers.video import VideoVQ

pytestmark = pytest.mark.usefixtures("one_thread")
NETWORK = CausalConfig(
    architecture="causal",
    frames=4,
    dim=4,
    encoder=StackConfig(stem=4, channels=(12, 16), blocks=(1, 0), middle=2),
    decoder=StackConfig(stem=4, channels=(12, 16), blocks=(1, 0), middle=2),
)
Clip = NDArray[np.uint8]


def untrained(network: CausalConfig = NETWORK, quantizer: str = "fsq", **options: Any) -> VideoVQ:
    """A tokenizer whose weights are random, those that start at zero too, with latents that fill many cells."""
    torch.manual_seed(0)
    modules = AutoEncoder(network)
    for module in modules.modules():
        if isinstance(module, CausalBlock):
            torch.nn.init.normal_(module.conv2.weight, 0, 0.1)
    with torch.no_grad():
        list(modules.encoder.modules())[-1].weight *= 20  # type: ignore[operator]
    made = make_quantizer(quantizer, dim=network.dim, **(options or {"size": 1024})).exported()
    config = ConvConfig(network=network, quantizer=made.name, quantizer_options=made.options())
    return VideoVQ(config, modules, made)


@pytest.fixture(scope="module")
def tokenizer() -> VideoVQ:
    return untrained()


@pytest.fixture(scope="module")
def clip() -> Clip:
    """A camera that moves over a photograph: 14 frames of 40 x 52."""
    photo = skimage.data.coffee()
    return np.stack([photo[100 + 3 * t : 140 + 3 * t, 200 + 5 * t : 252 + 5 * t] for t in range(14)])


@pytest.mark.parametrize(("frames", "groups"), [(1, 1), (2, 2), (5, 2), (6, 3), (9, 3), (14, 5)])
def test_the_first_frame_is_one_step_of_time_and_each_four_after_it_are_one_more(
    tokenizer: VideoVQ, clip: Clip, frames: int, groups: int
) -> None:
    codes = tokenizer.encode(clip[None, :frames])
    assert codes.shape == (1, 1, groups, 5, 7)
    assert group_count(frames, 4) == groups
    shown = decode_frames(tokenizer, codes[0], (frames, 40, 52))
    assert shown.shape == (frames, 40, 52, 3)


def test_the_ids_of_a_prefix_are_a_prefix_of_the_ids(tokenizer: VideoVQ, clip: Clip) -> None:
    whole = tokenizer.encode(clip[None])
    for frames in (1, 5, 9, 13):
        part = tokenizer.encode(clip[None, :frames])
        assert np.array_equal(part, whole[:, :, : part.shape[2]])


def test_later_frames_change_no_earlier_ids_and_earlier_ones_change_later_ids(tokenizer: VideoVQ, clip: Clip) -> None:
    whole, other = tokenizer.encode(clip[None]), clip.copy()
    other[7] = 255 - other[7]  # in the third step of time, of frames 5 to 8
    changed = (tokenizer.encode(other[None]) != whole)[0, 0].any(axis=(1, 2))
    assert changed.tolist()[:3] == [False, False, True]
    assert changed[3:].any()  # the blocks see the step before


def test_a_prefix_of_the_ids_decodes_to_a_prefix_of_the_frames(tokenizer: VideoVQ, clip: Clip) -> None:
    codes = tokenizer.encode(clip[None])
    whole = tokenizer.decode(codes)
    assert whole.shape == (1, 17, 40, 56, 3)
    assert np.array_equal(tokenizer.decode(codes[:, :, :3]), whole[:, :9])


def test_an_image_is_a_clip_of_one_frame(tokenizer: VideoVQ, clip: Clip) -> None:
    codes = tokenizer.encode(clip[:1, None])
    assert codes.shape == (1, 1, 1, 5, 7)
    assert np.array_equal(codes[:, :, 0], tokenizer.encode(clip[None])[:, :, 0])
    assert tokenizer.decode(codes, (40, 52)).shape == (1, 1, 40, 52, 3)


def test_an_incomplete_group_gets_the_last_frame_once_more(tokenizer: VideoVQ, clip: Clip) -> None:
    padded = np.concatenate([clip[:7], clip[6:7], clip[6:7]])
    assert np.array_equal(tokenizer.encode(clip[None, :7]), tokenizer.encode(padded[None]))


def test_ids_and_pixels_depend_neither_on_the_batch_nor_on_the_threads(tokenizer: VideoVQ, clip: Clip) -> None:
    clips = np.stack([clip, clip[::-1], 255 - clip])
    codes = tokenizer.encode(clips)
    shown = tokenizer.decode(codes)
    for number, one in enumerate(clips):
        alone = tokenizer.encode(one[None])
        assert np.array_equal(alone[0], codes[number])
        assert np.array_equal(tokenizer.decode(alone)[0], shown[number])
    torch.set_num_threads(2)
    try:
        assert np.array_equal(tokenizer.encode(clips), codes)
        assert np.array_equal(tokenizer.decode(codes), shown)
    finally:
        torch.set_num_threads(1)


def test_group_by_group_is_the_network_as_it_learns(tokenizer: VideoVQ, clip: Clip) -> None:
    """Training computes all groups at once; only rounding may differ."""
    pixels = torch.from_numpy(clip[None, :13, :40, :48].copy()).permute(0, 4, 1, 2, 3)
    with torch.inference_mode():
        z = tokenizer.network.encoder(to_signed(pixels))
        ids = tokenizer.quantizer.encode(z).numpy()
        shown = tokenizer.network.decoder(tokenizer.quantizer.vectors(torch.from_numpy(ids)))
    stepped = tokenizer.encode(clip[None, :13, :40, :48])
    assert (ids == stepped).mean() > 0.99
    pixels_stepped = to_signed(torch.from_numpy(tokenizer.decode(ids))).permute(0, 4, 1, 2, 3)
    assert (pixels_stepped - shown.clamp(-1, 1)).abs().max() < 1 / 127


def test_a_saved_one_is_the_same_and_describes_itself(tokenizer: VideoVQ, clip: Clip, tmp_path: Path) -> None:
    save_tokenizer(tokenizer, Store(tmp_path), "")
    loaded = load_tokenizer(Store(tmp_path))
    assert isinstance(loaded, VideoVQ)
    assert loaded.spec == tokenizer.spec
    assert (loaded.spec.kind, loaded.spec.modality, loaded.spec.downsample) == ("video", "video", (4, 8, 8))
    assert np.array_equal(loaded.encode(clip[None]), tokenizer.encode(clip[None]))


@pytest.mark.parametrize("quantizer", ["vq", "rvq"])
def test_other_quantizers_do_as_well_and_first_levels_decode(clip: Clip, quantizer: str) -> None:
    made = untrained(quantizer=quantizer, size=64)
    codes = encode_frames(made, clip)
    assert codes.shape == (len(made.spec.levels), 5, 5, 7)
    assert decode_frames(made, codes[:1], (14, 40, 52)).shape == clip.shape
    assert [book.shape for book in made.codebooks()] == [(64, 4)] * len(made.spec.levels)


def test_int8_computes_the_same_network(tokenizer: VideoVQ, clip: Clip) -> None:
    other = tokenizer.on("cpu", "int8")
    assert isinstance(other, VideoVQ)
    assert other.spec.fingerprint != tokenizer.spec.fingerprint
    assert (other.encode(clip[None]) == tokenizer.encode(clip[None])).mean() > 0.5


def test_what_is_no_clip_or_too_large_is_refused(tokenizer: VideoVQ, clip: Clip) -> None:
    with pytest.raises(InputError, match=r"expected clips uint8 \[batch, frames, height, width, 3\]"):
        tokenizer.encode(clip)
    with pytest.raises(InputError, match="are too large for a video tokenizer"):
        tokenizer.encode(np.zeros((1, 1, 2048, 2056, 3), np.uint8))
    codes = tokenizer.encode(clip[None])
    with pytest.raises(FormatError, match="are not those of a clip of 18"):
        decode_frames(tokenizer, codes[0], (18, 40, 52))
    with pytest.raises(FormatError, match="is not 40x60 pixels"):
        tokenizer.decode(codes, (40, 60))
    with pytest.raises(FormatError, match="do not fit 1000 codes"):
        tokenizer.decode(codes + 1000)
    with pytest.raises(FormatError, match=r"are not \[batch, 1 levels, frames, rows, columns\]"):
        tokenizer.decode(codes[:, :, 0])
    with pytest.raises(SpecError, match="int8 is not compiled"):
        tokenizer.on("cpu", "int8", compiled=True)


def test_kinds_and_networks_must_fit(tokenizer: VideoVQ) -> None:
    tensors = tokenizer.tensors()
    with pytest.raises(FormatError, match="of a tokenizer of kind 'video'"):
        ConvVQ.from_tensors(tokenizer.spec.model_copy(update={"kind": "conv"}), tensors)
    spec = tokenizer.spec.model_copy(update={"downsample": (8, 8, 8)})
    with pytest.raises(FormatError, match="do not fit an f8 video tokenizer"):
        VideoVQ.from_tensors(spec, tensors)
    config = {**tokenizer.spec.config, "network": {"dim": 4, **NETWORK.model_dump(include={"encoder", "decoder"})}}
    with pytest.raises(FormatError, match="not a causal network"):
        VideoVQ.from_tensors(tokenizer.spec.model_copy(update={"config": config}), tensors)
