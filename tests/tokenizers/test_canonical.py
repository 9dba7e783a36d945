"""The `canonical` tokenizer: ids are the bytes of a JPEG file, and give that very file back."""

from __future__ import annotations

import io
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from tokenshard.errors import FormatError, InputError, SpecError
from tokenshard.store import Store
from tokenshard.tokenizers import canonical
from tokenshard.tokenizers.canonical import CanonicalConfig, CanonicalTokenizer, encoder_version
from tokenshard.tokenizers.folder import load_tokenizer, save_tokenizer


def pillow_file(image: NDArray[np.uint8], quality: int) -> bytes:
    """What anybody gets who saves the image with Pillow."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return file.getvalue()


@pytest.fixture(scope="module")
def tiles(photos: list[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    """Photographs of 256 x 256 pixels."""
    return [np.ascontiguousarray(photo[y : y + 256, x : x + 256]) for photo in photos for y in (0, 40) for x in (0, 99)]


@pytest.fixture(scope="module")
def pairs_320(tiles: list[NDArray[np.uint8]]) -> CanonicalTokenizer:
    return CanonicalTokenizer.fit(tiles[::2], 0, q=25, vocabulary=320)


@pytest.mark.parametrize("vocabulary", [256, 320])
@pytest.mark.parametrize("quality", [1, 25, 90, 100])
def test_ids_give_back_the_file_that_pillow_writes(quality: int, vocabulary: int, photos, tmp_path: Path) -> None:
    made = CanonicalTokenizer.fit(photos, 0, q=quality, vocabulary=vocabulary)
    save_tokenizer(made, Store(tmp_path), "")
    loaded = load_tokenizer(Store(tmp_path))
    assert isinstance(loaded, CanonicalTokenizer)
    for image in (*photos, photos[0][:1, :1], photos[1][:17, :300], photos[2][:300, :9]):
        ids = loaded.encode(np.ascontiguousarray(image)[None])
        assert ids.dtype == np.uint16
        assert ids.max() < vocabulary
        assert np.array_equal(ids, made.encode(np.ascontiguousarray(image)[None]))
        content = pillow_file(image, quality)
        assert loaded.file(ids[0]) == content
        pixels = np.asarray(Image.open(io.BytesIO(content)))
        assert np.array_equal(loaded.decode(ids, image.shape[:2])[0], pixels)


def test_constant_tables_are_not_among_the_ids(tiles: list[NDArray[np.uint8]]) -> None:
    made = CanonicalTokenizer.fit(tiles, 0)
    saved = [len(pillow_file(tile, 25)) - made.encode(tile[None]).size for tile in tiles]
    assert min(saved) >= 600


def test_a_vocabulary_of_320_shortens_sequences_of_images_it_was_not_fitted_on(tiles, pairs_320) -> None:
    plain = CanonicalTokenizer.fit(tiles, 0)
    assert pairs_320.spec.levels == (320,)
    lengths = [[made.encode(tile[None]).size for tile in tiles[1::2]] for made in (plain, pairs_320)]
    assert all(short < long for long, short in zip(*lengths, strict=True))
    assert sum(lengths[1]) < 0.99 * sum(lengths[0])
    assert CanonicalTokenizer.fit(tiles[::2], 0, vocabulary=320).spec == pairs_320.spec


@given(st.lists(st.lists(st.integers(0, 3), max_size=40), max_size=4), st.integers(257, 264))
def test_pairs_are_those_that_counting_by_hand_joins(files: list[list[int]], vocabulary: int) -> None:
    expected: list[tuple[int, int]] = []
    texts = [list(file) for file in files]
    while len(expected) < vocabulary - 256:
        counts = Counter(pair for text in texts for pair in pairwise(text))
        best = min(counts, key=lambda pair: (-counts[pair], pair), default=None)
        if best is None or counts[best] < 2:
            break
        expected.append(best)
        for number, text in enumerate(texts):
            joined: list[int] = []
            while text:
                if tuple(text[:2]) == best:
                    joined, text = [*joined, 255 + len(expected)], text[2:]
                else:
                    joined, text = [*joined, text[0]], text[1:]
            texts[number] = joined
    found = canonical._fitted_pairs(iter(np.array(file, np.uint16) for file in files), vocabulary)
    assert [tuple(pair) for pair in found.tolist()] == expected


def test_no_id_stands_for_more_bytes_than_a_reader_allows() -> None:
    made = canonical._fitted_pairs(iter([np.zeros(1 << 16, np.uint16)]), 300)
    lengths = [1] * 256
    for first, second in made.tolist():
        lengths.append(lengths[first] + lengths[second])
    assert max(lengths) == canonical.LONGEST


def test_another_version_of_the_encoder_is_refused_for_encoding_alone(tiles, pairs_320) -> None:
    config = CanonicalConfig(quality=25, encoder="Pillow 1.0, libjpeg 6b")
    other = CanonicalTokenizer(config, pairs_320.header, pairs_320.pairs)
    ids = pairs_320.encode(tiles[0][None])
    assert np.array_equal(other.decode(ids), pairs_320.decode(ids))
    assert other.spec.fingerprint != pairs_320.spec.fingerprint
    with pytest.raises(SpecError, match=r"are files written by Pillow 1\.0, libjpeg 6b; here is Pillow"):
        other.encode(tiles[0][None])


def test_other_tables_than_those_stored_are_noticed(tiles, pairs_320) -> None:
    header = pairs_320.header.copy()
    header[30] ^= 1
    with pytest.raises(SpecError, match="writes other tables"):
        CanonicalTokenizer(pairs_320.config, header, pairs_320.pairs).encode(tiles[0][None])


def test_arrays_that_are_no_image_are_refused(pairs_320) -> None:
    for shape in ((2, 8, 8, 3), (1, 8, 8), (1, 0, 8, 3), (1, 8, 65_536, 3)):
        with pytest.raises(InputError):
            pairs_320.encode(np.zeros(shape, np.uint8))
    with pytest.raises(SpecError, match="has no token grid"):
        pairs_320.grid(8, 8)


def test_ids_that_are_no_file_are_refused(tiles, pairs_320) -> None:
    ids = pairs_320.encode(tiles[0][None])
    bad = ids.copy()
    bad[0, 0, 5] = 320
    huge = ids.copy()
    huge[0, 0, :4] = 255
    for codes, size, message in (
        (bad, None, "do not fit a vocabulary of 320"),
        (ids[:, :, :0], None, "are no image"),
        (huge, None, "no JPEG file"),
        (ids, (256, 255), "an image of 256 x 256 pixels"),
    ):
        with pytest.raises(FormatError, match=message):
            pairs_320.decode(codes, size)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("pairs"), "instead of header and pairs"),
        (lambda t: t.update(header=t["header"][:-1]), "not the header"),
        (lambda t: t.update(header=t["header"][2:]), "not the header"),
        (lambda t: t.update(header=np.concatenate([t["header"], t["header"]])), "with one frame"),
        (lambda t: t.update(pairs=t["pairs"][1:]), r"not \[64, 2\]"),
        (lambda t: t["pairs"].__setitem__(0, 256), "joins ids that come later"),
        (
            lambda t: t.update(pairs=np.stack(2 * [np.arange(64) + 255], 1).astype(np.uint16)),
            "more than",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused(pairs_320, change: Any, message: str) -> None:
    tensors = {name: tensor.copy() for name, tensor in pairs_320.tensors().items()}
    change(tensors)
    with pytest.raises(FormatError, match=message):
        CanonicalTokenizer.from_tensors(pairs_320.spec, tensors)


def test_the_encoder_is_named_with_its_version() -> None:
    assert encoder_version().startswith(f"Pillow {Image.__version__}, libjpeg")
