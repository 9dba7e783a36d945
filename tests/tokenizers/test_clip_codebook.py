"""Codebooks of clips: as many codewords as a clip has, and what they stand for comes back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from torch import nn

from sources.video.conftest import write_video
from tokenshard.cli.main import cli
from tokenshard.errors import FormatError, InputError, SpecError
from tokenshard.store import Store
from tokenshard.tokenizers.clip_clusters import adaptively_clustered, clustered, means, normalized
from tokenshard.tokenizers.clip_codebook import ClipCodebookTokenizer, mean_cosine
from tokenshard.tokenizers.encoders import with_encoder
from tokenshard.tokenizers.folder import load_tokenizer, save_tokenizer
from tokenshard.tokenizers.registry import parse_tokenizer


def made_features(dim: int, clusters: int, noise: float, seed: int) -> NDArray[np.float32]:
    """16 frames x 64 features around so many directions: float32 [1024, dim]."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(clusters, dim))
    return (centres[rng.integers(clusters, size=1024)] + noise * rng.normal(size=(1024, dim))).astype(np.float32)


def scene(frames: int = 6, height: int = 40, width: int = 52, seed: int = 0) -> NDArray[np.uint8]:
    """A square that moves over stripes."""
    rng = np.random.default_rng(seed)
    clip = np.zeros((frames, height, width, 3), np.uint8)
    clip[:] = 20 * (np.arange(width)[:, None] // 8 % 8) + rng.integers(0, 40, 3)
    for number, frame in enumerate(clip):
        frame[8:24, 2 * number : 2 * number + 16] = rng.integers(150, 250, 3)
    return clip


@pytest.mark.parametrize("dim", [64, 384])
def test_as_many_codewords_are_found_as_there_are_and_cost_little(dim: int) -> None:
    features = made_features(dim, 20, 0.2, dim)
    found = adaptively_clustered(normalized(features), 64)
    assert 16 <= found.count <= 24
    codewords = means(features.astype(np.float64), found.ids).astype("<f2")
    map_bytes = len(found.ids) * int(np.ceil(np.log2(found.count))) / 8  # packed: what any codec stays below
    assert (codewords.nbytes + map_bytes) / (2 * features.size) <= 0.05
    assert mean_cosine(features, codewords.astype(np.float32)[found.ids]) >= 0.95


@pytest.mark.parametrize("clusters", [14, 30, 50])
def test_the_number_of_codewords_follows_the_clip(clusters: int) -> None:
    found = adaptively_clustered(normalized(made_features(64, clusters, 0.1, clusters)), 64)
    assert abs(found.count - clusters) <= clusters / 8


def test_clusters_go_by_direction_alone() -> None:
    features = made_features(32, 20, 0.2, 1)
    scaled = features * np.random.default_rng(2).uniform(0.5, 2, (len(features), 1)).astype(np.float32)
    assert np.array_equal(clustered(normalized(features), 20).ids, clustered(normalized(scaled), 20).ids)


def test_fewer_distinct_features_than_codewords_make_fewer_codewords() -> None:
    still = np.repeat(made_features(16, 5, 1, 3)[:5], 40, axis=0)
    assert clustered(normalized(still), 64).count == 5
    assert adaptively_clustered(normalized(still), 64).count == 5
    assert clustered(normalized(np.zeros((10, 4), np.float32)), 8).count == 1


@pytest.mark.parametrize("name", ["clip-codebook", "clip-codebook:patch:4x4,k=20", "clip-codebook:patch,most=16"])
def test_a_clip_becomes_codewords_and_a_map_and_comes_back(name: str, tmp_path: Path) -> None:
    kind, options = parse_tokenizer(name)
    assert kind == "clip-codebook"
    clip = scene()
    tokenizer = ClipCodebookTokenizer.fit(list(clip), 0, **options)
    ids, columns = tokenizer.encode_clip(clip)
    assert ids.shape == (1, 6, *tokenizer.grid(40, 52))
    assert columns["codewords"] == int(ids.max()) + 1 <= tokenizer.spec.levels[0]
    store = Store(str(tmp_path))
    save_tokenizer(tokenizer, store, "")
    loaded = load_tokenizer(store)
    assert isinstance(loaded, ClipCodebookTokenizer)
    assert loaded.spec.fingerprint == tokenizer.spec.fingerprint
    again = loaded.encode_clip(clip)
    assert np.array_equal(again[0], ids)
    assert again[1] == columns
    found = loaded.codebook_of({"codes": ids, **columns})
    own = tokenizer._features(clip)
    assert found.features().shape == own.shape
    flat = own.reshape(-1, own.shape[-1])
    for codeword in (0, found.codewords.shape[0] - 1):
        mean = flat[ids.ravel() == codeword].mean(0)
        np.testing.assert_allclose(found.codewords[codeword], mean, rtol=2e-3, atol=2e-2)
    assert columns["cosine"] == pytest.approx(mean_cosine(flat, found.features().reshape(flat.shape)))
    assert columns["cosine"] > 0.9


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    tokenizer = ClipCodebookTokenizer.fit([], 0)
    ids, columns = tokenizer.encode_clip(scene())
    for wrong in (
        {"codebook": columns["codebook"][:-2]},
        {"codewords": columns["codewords"] - 1},
        {"codewords": 0, "codebook": b""},
        {"codes": ids + 64},
    ):
        with pytest.raises(FormatError):
            tokenizer.codebook_of({"codes": ids, **columns, **wrong})
    with pytest.raises(SpecError, match="not pixels"):
        tokenizer.decode(ids)
    with pytest.raises(SpecError, match="of its own"):
        with_encoder(tokenizer, "made:encoder")
    with pytest.raises(SpecError, match="no features"):
        ClipCodebookTokenizer.fit(list(scene()), 0, features="canonical:q=25")
    with pytest.raises(ValueError, match="exclude"):
        ClipCodebookTokenizer.fit([], 0, k=20, most=30)
    spec = tokenizer.spec.model_copy(update={"levels": (65,)})
    with pytest.raises(FormatError, match="levels"):
        ClipCodebookTokenizer.from_tensors(spec, tokenizer.tensors())


class Lent(nn.Module):
    """Features of 16x16 patches: a random projection."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.project = nn.Conv2d(3, 24, 16, 16)
        with torch.no_grad():
            self.project.weight.mul_(scale)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.project(images)
        return found


def lent() -> nn.Module:
    return Lent()


def other() -> nn.Module:
    return Lent(2)


def huge() -> nn.Module:
    return Lent(1e9)


def test_an_encoder_is_lent_and_known_by_its_weights(tmp_path: Path) -> None:
    here = __name__
    tokenizer = ClipCodebookTokenizer.fit([], 0, encoder=f"{here}:lent", k=12)
    ids, columns = tokenizer.encode_clip(scene())
    assert ids.shape == (1, 6, 3, 4)
    assert len(columns["codebook"]) == 2 * 24 * columns["codewords"]
    store = Store(str(tmp_path))
    save_tokenizer(tokenizer, store, "")
    stored: Any = load_tokenizer(store)
    assert stored.codebook_of({"codes": ids, **columns}).codewords.shape[1] == 24  # reading needs no encoder
    with pytest.raises(SpecError, match="--encoder"):
        stored.encode_clip(scene())
    with pytest.raises(SpecError, match="--encoder"):
        with_encoder(stored, None)
    with pytest.raises(FormatError, match="SHA-256"):
        with_encoder(stored, f"{here}:other")
    again: Any = with_encoder(stored, f"{here}:lent")
    assert np.array_equal(again.encode_clip(scene())[0], ids)
    with pytest.raises(InputError, match="too large"):
        ClipCodebookTokenizer.fit([], 0, encoder=f"{here}:huge").encode_clip(scene())


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (["images", "--tokenizer", "clip-codebook"], "a tokenizer of clip samples; these are image samples"),
        (["video", "--tokenizer", "clip-codebook:k=1"], "from 2 to 4096"),
        (["video", "--tokenizer", "clip-codebook", "--encoder", "no:module"], "cannot be imported"),
        (["video", "--tokenizer", "patch", "--encoder", "no:module"], "leave 'no:module' out"),
    ],
)
def test_wrong_words_are_told_in_one_line(words: list[str], wrong: str, tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", list(scene()))
    done = CliRunner().invoke(cli, ["convert", words[0], str(tmp_path), str(tmp_path / "out"), *words[1:], "--quiet"])
    assert done.exit_code != 0
    assert wrong in done.output or wrong in str(done.exception)
