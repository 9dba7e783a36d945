"""Checkpoints of transformers as page encoders: image tokens only, each on its patch, whatever is in the batch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny_checkpoints as tiny
from tokenshard.errors import FormatError, InputError, SpecError
from tokenshard.retrieval.encoders.base import PageEncoder
from tokenshard.retrieval.encoders.registry import load_encoder, open_encoder, save_encoder
from tokenshard.sources.base import Sample
from tokenshard.sources.documents.words import plain_text
from tokenshard.store import Store

pytestmark = pytest.mark.usefixtures("one_thread")

MAKERS: dict[str, Callable[[Path], None]] = {
    "colpali": tiny.colpali,
    "colqwen2": tiny.colqwen2,
    "colqwen2.5": partial(tiny.colqwen2, inside="qwen2_5_vl"),
    "colmodernvbert": tiny.colmodernvbert,
}
GRIDS = {"colpali": (4, 4), "colqwen2": (4, 3), "colqwen2.5": (4, 3), "colmodernvbert": (4, 4)}
"""Of an image of 112 x 84 pixels."""


@pytest.fixture(scope="module", params=MAKERS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Kind and folder of a vision checkpoint."""
    folder = tmp_path_factory.mktemp("checkpoint")
    MAKERS[request.param](folder)
    return request.param, folder


@pytest.fixture(scope="module")
def encoder(checkpoint: tuple[str, Path]) -> PageEncoder:
    return open_encoder(f"hf:{checkpoint[1]}")


def drawn(seed: int, height: int = 112, width: int = 84) -> Sample:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Sample(str(seed), str(seed), pixels, 0)


def test_each_image_token_is_a_vector_on_its_patch(checkpoint: tuple[str, Path], encoder: PageEncoder) -> None:
    grid = GRIDS[checkpoint[0]]
    (page,) = encoder.encode_pages([drawn(0)])
    assert page.grid == grid
    assert page.vectors.shape == (len(page.positions), tiny.DIMENSIONS)
    np.testing.assert_allclose(np.linalg.norm(page.vectors, axis=1), 1, atol=1e-5)
    cells = [tuple(cell) for cell in page.positions.tolist()]
    assert set(cells) == {(row, column) for row in range(grid[0]) for column in range(grid[1])}
    if checkpoint[0] == "colmodernvbert":  # the whole page comes after its tiles
        assert len(cells) == grid[0] * grid[1] + 4
    else:
        assert cells == sorted(cells)


def test_saliency_is_the_attention_of_one_layer_in_even_shares(encoder: PageEncoder) -> None:
    (page,) = encoder.encode_pages([drawn(0)])
    assert page.saliency is not None
    assert page.saliency.shape == (len(page.vectors),)
    assert page.saliency.min() >= 0
    assert page.saliency.mean() == pytest.approx(1, abs=1e-4)
    assert page.saliency.std() > 0


def test_vectors_do_not_depend_on_the_pages_beside(encoder: PageEncoder) -> None:
    pages = [drawn(1), drawn(2, 84, 112), drawn(3)]
    together = encoder.encode_pages(pages)
    for page, found in zip(pages, together, strict=True):
        np.testing.assert_array_equal(encoder.encode_pages([page])[0].vectors, found.vectors)


def test_batches_of_the_model_agree_with_single_pages(encoder: PageEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = [drawn(seed) for seed in range(3)]
    single = encoder.encode_pages(pages)
    monkeypatch.setattr(encoder, "_device", torch.device("cpu"))  # as any device that is not simply named "cpu"
    for one, other in zip(single, encoder.encode_pages(pages), strict=True):
        np.testing.assert_allclose(one.vectors, other.vectors, atol=1e-4)
        np.testing.assert_array_equal(one.positions, other.positions)


def test_text_and_images_are_queries(encoder: PageEncoder) -> None:
    text = encoder.encode_query("what wing")
    assert text.ndim == 2
    assert text.shape[1] == tiny.DIMENSIONS
    np.testing.assert_allclose(np.linalg.norm(text, axis=1), 1, atol=1e-5)
    assert not np.array_equal(text, encoder.encode_query("what drag"))
    page = drawn(4)
    np.testing.assert_array_equal(encoder.encode_query(page.data), encoder.encode_pages([page])[0].vectors)


def test_bf16_is_close_to_fp32_and_another_space(checkpoint: tuple[str, Path], encoder: PageEncoder) -> None:
    half = open_encoder(f"hf:{checkpoint[1]}", numerics="bf16")
    exact, rounded = encoder.encode_pages([drawn(0)])[0], half.encode_pages([drawn(0)])[0]
    assert (exact.vectors * rounded.vectors).sum(1).min() > 0.98
    assert half.spec.fingerprint != encoder.spec.fingerprint


def test_a_saved_encoder_is_found_again_with_its_weights(
    checkpoint: tuple[str, Path], encoder: PageEncoder, tmp_path: Path
) -> None:
    save_encoder(encoder, Store(tmp_path), "encoder")
    assert load_encoder(Store(tmp_path), "encoder").spec == encoder.spec
    assert encoder.spec.weight_licence == "mit"


def test_pages_that_are_not_drawn_are_refused(encoder: PageEncoder) -> None:
    with pytest.raises(InputError, match="not drawn"):
        encoder.encode_pages([Sample("a", "a", np.zeros((0, 0, 3), np.uint8), 0)])


# -- encoders of text --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def text_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    tiny.bert(folder)
    return folder


def lettered(text: str) -> Sample:
    return Sample(text, text, np.zeros((0, 0, 3), np.uint8), 0, text=plain_text(text))


def test_any_encoder_of_text_gives_a_vector_a_token(text_checkpoint: Path) -> None:
    pages = [lettered("a b c d"), lettered("e f"), lettered(" ".join("abcdefghij" * 20))]
    encoder = open_encoder(f"hf:{text_checkpoint}").fitted(pages)
    found = encoder.encode_pages(pages)
    assert [page.vectors.shape for page in found] == [(4, 16), (2, 16), (200, 16)]  # the last in several windows
    np.testing.assert_array_equal(encoder.encode_pages([pages[1]])[0].vectors, found[1].vectors)
    assert encoder.encode_query("a b").shape == (4, 16)  # with the special tokens


def test_other_weights_are_not_taken_for_those_that_made_the_vectors(text_checkpoint: Path, tmp_path: Path) -> None:
    encoder = open_encoder(f"hf:{text_checkpoint}").fitted([lettered("a b c")])
    save_encoder(encoder, Store(tmp_path), "encoder")
    other = tmp_path / "other"
    tiny.bert(other)
    weights = other / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    with pytest.raises(FormatError, match="not the encoder that made"):
        load_encoder(Store(tmp_path), "encoder", f"hf:{other}")
    np.testing.assert_array_equal(
        load_encoder(Store(tmp_path), "encoder").encode_query("a b"), encoder.encode_query("a b")
    )


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"no config.json"):
        open_encoder(f"hf:{tmp_path}")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(SpecError, match="cannot load it"):
        open_encoder(f"hf:{tmp_path}")
    with pytest.raises(SpecError, match="unknown"):
        open_encoder("clip")
