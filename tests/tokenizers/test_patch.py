"""The patch tokenizer: ids that depend on nothing but the image, sizes of any kind, and quality on real photographs."""

from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import skimage.data
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tokenshard.errors import FormatError, InputError, SpecError
from tokenshard.report.quality import psnr
from tokenshard.tokenizers.patch import PatchTokenizer
from tokenshard.tokenizers.weights import weights_to_bytes

Images = NDArray[np.uint8]


def reference_ids(tokenizer: PatchTokenizer, images: Images) -> NDArray[np.int64]:
    """The definition, in 64-bit integers: project, round half up, try every centroid."""
    (height, width), batch = tokenizer.patch, len(images)
    rows, columns = tokenizer.grid(*images.shape[1:3])
    patches = images.reshape(batch, rows, height, columns, width, 3).swapaxes(2, 3).reshape(batch * rows * columns, -1)
    y = ((patches.astype(np.int64) - 128) @ tokenizer.components.T.astype(np.int64) + 128) // 256
    centroids = tokenizer.centroids.astype(np.int64)
    scores = (centroids**2).sum(axis=1) - 2 * y @ centroids.T
    return scores.argmin(axis=1).reshape(batch, 1, rows, columns)


def test_ids_are_those_of_the_definition_in_integer_arithmetic(tokenizer: PatchTokenizer, crops: Images) -> None:
    ids = tokenizer.encode(crops)
    assert ids.dtype == np.uint16
    assert (ids == reference_ids(tokenizer, crops)).all()


@pytest.mark.parametrize("patch", [(1, 1), (2, 2), (8, 8), (2, 8), (16, 8)])
def test_the_definition_holds_for_every_patch_shape(patch: tuple[int, int], crops: Images) -> None:
    tokenizer = PatchTokenizer.fit(list(crops), 0, patch=patch, k=50)
    assert (tokenizer.encode(crops) == reference_ids(tokenizer, crops)).all()


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_ids_do_not_depend_on_the_batch_size(tokenizer: PatchTokenizer, crops: Images, batch: int) -> None:
    parts = [tokenizer.encode(crops[start : start + batch]) for start in range(0, len(crops), batch)]
    assert (np.concatenate(parts) == tokenizer.encode(crops)).all()


def test_threads_may_share_one_tokenizer(tokenizer: PatchTokenizer, crops: Images) -> None:
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda image: tokenizer.encode(image[None]), crops))
    assert (np.concatenate(parts) == tokenizer.encode(crops)).all()


_FIT_AND_ENCODE = """
import hashlib, skimage.data
from tokenshard.tokenizers.patch import PatchTokenizer
photo = skimage.data.chelsea()
tokenizer = PatchTokenizer.fit([photo], 0, patch=(8, 8), k=64)
print(tokenizer.spec.fingerprint, hashlib.sha256(tokenizer.encode(photo[None])).hexdigest())
"""


def test_weights_and_ids_do_not_depend_on_the_number_of_threads_or_the_process() -> None:
    photo = skimage.data.chelsea()
    tokenizer = PatchTokenizer.fit([photo], 0, patch=(8, 8), k=64)
    expected = f"{tokenizer.spec.fingerprint} {hashlib.sha256(tokenizer.encode(photo[None]).tobytes()).hexdigest()}"
    for threads in ("1", "2"):
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
        done = subprocess.run(
            [sys.executable, "-c", _FIT_AND_ENCODE], env=environment, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == expected


def test_fitting_twice_gives_equal_bytes_and_another_seed_gives_others(photos: list[Images]) -> None:
    first, again, other = (weights_to_bytes(PatchTokenizer.fit(photos, seed, k=64).tensors()) for seed in (5, 5, 6))
    assert first == again
    assert first != other


def test_a_pickled_tokenizer_gives_the_same_ids(tokenizer: PatchTokenizer, crops: Images) -> None:
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert (copy.encode(crops) == tokenizer.encode(crops)).all()
    assert copy.spec == tokenizer.spec


def test_photographs_keep_a_sensible_quality() -> None:
    photos = [skimage.data.coffee(), skimage.data.chelsea(), skimage.data.astronaut()]
    tokenizer = PatchTokenizer.fit(photos, 0)
    for photo, least in zip(photos, (27.5, 29.5, 27.0), strict=True):
        assert psnr(photo, tokenizer.decode(tokenizer.encode(photo[None]), photo.shape[:2])[0]) > least


def test_more_codes_and_smaller_patches_keep_more(photos: list[Images]) -> None:
    photo = photos[1]
    found = []
    for patch, k in (((8, 8), 64), ((4, 4), 64), ((4, 4), 256), ((2, 2), 256)):
        tokenizer = PatchTokenizer.fit([photo], 0, patch=patch, k=k)
        found.append(psnr(photo, tokenizer.decode(tokenizer.encode(photo[None]), photo.shape[:2])[0]))
    assert found == sorted(found)
    assert found[-1] > found[0] + 4


def test_codewords_are_the_mean_patch_of_their_code(photos: list[Images]) -> None:
    photo = photos[1][:256, :256]
    tokenizer = PatchTokenizer.fit([photo], 0, k=16)
    ids = tokenizer.encode(photo[None])[0, 0]
    patches = photo.reshape(64, 4, 64, 4, 3).swapaxes(1, 2)
    for code in range(16):
        mean = patches[ids == code].mean(axis=0)
        assert np.abs(mean - tokenizer.codewords[code]).max() <= 0.5


def test_encoding_a_reconstruction_gives_its_ids_back(tokenizer: PatchTokenizer, crops: Images) -> None:
    ids = tokenizer.encode(crops)
    assert (tokenizer.encode(tokenizer.decode(ids)) == ids).mean() > 0.99


def test_images_of_few_distinct_patches_are_kept_exactly() -> None:
    flat = np.zeros((4, 64, 64, 3), np.uint8)
    flat += np.array([0, 90, 200, 255], np.uint8)[:, None, None, None]
    tokenizer = PatchTokenizer.fit(list(flat), 0, k=32)
    assert len(tokenizer.codewords) == 32
    assert (tokenizer.decode(tokenizer.encode(flat)) == flat).all()


def test_an_alphabet_larger_than_the_number_of_patches_is_reduced_to_it(crops: Images) -> None:
    tokenizer = PatchTokenizer.fit([crops[0]], 0, k=1024)
    assert tokenizer.spec.levels == (64,)
    assert psnr(crops[0], tokenizer.decode(tokenizer.encode(crops[:1]))[0]) > 35


def test_greyscale_images_get_no_colour_axes(photos: list[Images]) -> None:
    grey = np.repeat(photos[1][..., :1], 3, axis=2)
    tokenizer = PatchTokenizer.fit([grey], 0, k=64, components=48)
    assert len(tokenizer.components) <= 16


@settings(deadline=None, max_examples=60)
@given(height=st.integers(1, 40), width=st.integers(1, 40), batch=st.integers(0, 3), seed=st.integers(0, 1000))
def test_any_size_makes_the_round_trip(
    tokenizer: PatchTokenizer, height: int, width: int, batch: int, seed: int
) -> None:
    images = np.random.default_rng(seed).integers(0, 256, (batch, height, width, 3), np.uint8)
    ids = tokenizer.encode(images)
    assert ids.shape == (batch, 1, *tokenizer.grid(height, width)) == (batch, 1, -(-height // 4), -(-width // 4))
    assert tokenizer.decode(ids, (height, width)).shape == images.shape


def test_edges_are_padded_by_repeating_pixels(tokenizer: PatchTokenizer, crops: Images) -> None:
    cut = crops[:, :29, :30]
    whole = np.pad(cut, ((0, 0), (0, 3), (0, 2), (0, 0)), mode="edge")
    assert (tokenizer.encode(cut) == tokenizer.encode(whole)).all()


def test_views_with_any_strides_encode_like_their_copies(tokenizer: PatchTokenizer, crops: Images) -> None:
    view = crops[::-2, ::-1].transpose(0, 2, 1, 3)
    assert (tokenizer.encode(view) == tokenizer.encode(view.copy())).all()


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((1, 8, 8, 4), np.uint8),
        np.zeros((1, 8, 8, 3)),
        np.zeros((1, 0, 8, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused_by_name(tokenizer: PatchTokenizer, images: Images) -> None:
    with pytest.raises(InputError, match="expected images uint8"):
        tokenizer.encode(images)


def test_ids_outside_the_codebook_are_refused(tokenizer: PatchTokenizer) -> None:
    for bad in (256, -1):
        with pytest.raises(FormatError, match="codebook of 256"):
            tokenizer.decode(np.full((1, 1, 2, 2), bad, np.int32))


def test_a_size_that_is_not_the_grids_is_refused(tokenizer: PatchTokenizer) -> None:
    with pytest.raises(FormatError, match="2x2 grid"):
        tokenizer.decode(np.zeros((1, 1, 2, 2), np.uint16), (9, 8))


@pytest.mark.parametrize("options", [{"k": 0}, {"k": 65_537}, {"patch": (0, 4)}, {"patch": (4, 17)}, {"components": 0}])
def test_options_out_of_range_are_refused(crops: Images, options: dict[str, int]) -> None:
    with pytest.raises(SpecError, match="must be 1 to"):
        PatchTokenizer.fit([crops[0]], 0, **options)  # type: ignore[arg-type]


def test_fitting_without_images_is_refused() -> None:
    with pytest.raises(SpecError, match="at least one image"):
        PatchTokenizer.fit([], 0)
