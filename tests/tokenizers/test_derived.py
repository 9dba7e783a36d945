"""Tokenizers derived from another one: fewer codes, and coarse and fine ids, by tables alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tokenshard.codecs.base import id_dtype
from tokenshard.errors import FormatError, SpecError
from tokenshard.report.quality import order0_entropy, psnr
from tokenshard.sources.base import CodeLayout
from tokenshard.spec.tokenizer import TokenizerSpec
from tokenshard.store import Store
from tokenshard.tokenizers import clusters
from tokenshard.tokenizers.base import CodebookTokenizer
from tokenshard.tokenizers.clusters import cluster_codes
from tokenshard.tokenizers.coarse import CoarseFine, CoarseFineTokenizer
from tokenshard.tokenizers.derived import DEEPEST, codebook_tokenizer
from tokenshard.tokenizers.external import ExternalTokenizer
from tokenshard.tokenizers.folder import load_tokenizer, save_tokenizer
from tokenshard.tokenizers.packaged import saved_tokenizer
from tokenshard.tokenizers.patch import PatchTokenizer
from tokenshard.tokenizers.reduced import ReducedTokenizer


@pytest.fixture(scope="module")
def base(photos: list[NDArray[np.uint8]]) -> PatchTokenizer:
    """256 codes of 8x8 patches."""
    return PatchTokenizer.fit(photos, 0, patch=(8, 8), k=256)


@pytest.fixture(scope="module")
def ids(base: PatchTokenizer, photos: list[NDArray[np.uint8]]) -> list[NDArray[np.uint16]]:
    return [base.encode(photo[None]) for photo in photos]


def counts_of(ids: list[NDArray[np.uint16]], k: int) -> NDArray[np.int64]:
    return np.bincount(np.concatenate([one.ravel() for one in ids]), minlength=k)


def reloaded(tokenizer: Any, folder: Any) -> Any:
    store = Store(folder)
    save_tokenizer(tokenizer, store, "")
    return load_tokenizer(store)


# -- clusters ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [clusters.MOST_MERGED, 59], ids=["merged", "seeds"])
def test_clusters_are_the_obvious_ones_and_their_centroids_are_weighted_means(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clusters, "MOST_MERGED", most)
    rng = np.random.default_rng(3)
    centres = 100 * rng.normal(size=(5, 4))
    truth = rng.permutation(np.repeat(np.arange(5), 12))
    vectors, weights = centres[truth] + rng.normal(size=(60, 4)), rng.integers(1, 9, 60)
    found = cluster_codes(vectors, weights, 5, 0)
    assert len(np.unique(np.stack([truth, found.members]), axis=1).T) == 5
    for cluster in range(5):
        mine = found.members == cluster
        expected = np.average(vectors[mine], axis=0, weights=weights[mine])
        assert np.allclose(found.centroids[cluster], expected, atol=1e-4)
    first = [int((found.members == cluster).argmax()) for cluster in range(5)]
    assert first == sorted(first)


def test_they_start_from_the_merges_that_cost_least() -> None:
    """Against all pairs compared at every step."""
    rng = np.random.default_rng(4)
    vectors, weights = rng.normal(size=(160, 6)), rng.integers(1, 30, 160).astype(float)
    means, mass = list(vectors), list(weights)
    while len(means) > 40:
        costs = {
            (i, j): mass[i] * mass[j] / (mass[i] + mass[j]) * ((means[i] - means[j]) ** 2).sum()
            for i in range(len(means))
            for j in range(i)
        }
        i, j = min(costs, key=costs.__getitem__)
        means[j] = (mass[i] * means[i] + mass[j] * means[j]) / (mass[i] + mass[j])
        mass[j] += mass[i]
        del means[i], mass[i]
    found = clusters._merged(vectors, weights, 40)
    assert np.allclose(sorted(found.tolist()), sorted(map(list, means)))


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 5), st.randoms(use_true_random=False))
def test_no_cluster_is_empty_whatever_codes_are_equal_or_unused(k: int, codes: int, values: int, random: Any) -> None:
    vectors = np.array([[random.randint(0, values)] for _ in range(codes)], np.float32)
    weights = np.array([random.randint(0, 2) for _ in range(codes)])
    found = cluster_codes(vectors, weights, k, 0)
    heavy = weights > 0 if weights.any() else np.ones(codes, bool)
    assert len(found.centroids) == min(k, len(np.unique(vectors[heavy])))
    assert set(found.members[heavy].tolist()) == set(range(len(found.centroids)))
    assert cluster_codes(vectors, weights, k, 0).members.tolist() == found.members.tolist()


def test_frequent_codes_keep_their_vectors_and_rare_ones_are_merged() -> None:
    vectors = np.arange(8, dtype=np.float32)[:, None]
    weights = np.array([1, 1, 1, 1, 1000, 1000, 1, 1])
    found = cluster_codes(vectors, weights, 4, 0)
    assert {4.0, 5.0} <= {round(float(value), 1) for value in found.centroids.ravel()}


# -- fewer codes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("factor", "fall"), [(4, 1.8), (16, 3.5)])
def test_a_fraction_of_the_codes_costs_so_many_bits_less_and_hardly_more_than_encoding_again(
    factor: int, fall: float, base: PatchTokenizer, ids: list[NDArray[np.uint16]], photos: list[NDArray[np.uint8]]
) -> None:
    made = ReducedTokenizer.of(base, [counts_of(ids, 256)], [256 // factor], 0)
    fewer = [made.derived(one) for one in ids]
    flat = [np.concatenate([one.ravel() for one in some]) for some in (ids, fewer)]
    assert order0_entropy(flat[0]) - order0_entropy(flat[1]) >= fall
    again = base.with_codebooks(made.vectors)
    both = [
        (
            psnr(photo, made.decode(one, photo.shape[:2])[0]),
            psnr(photo, again.decode(again.encode(photo[None]), photo.shape[:2])[0]),
        )
        for photo, one in zip(photos, fewer, strict=True)
    ]
    mine, theirs = np.mean(both, axis=0)
    assert mine >= theirs - 0.3


def test_new_images_get_what_the_map_makes_of_the_ids_of_the_base(base, ids, photos, tmp_path) -> None:
    made = ReducedTokenizer.of(base, [counts_of(ids, 256)], [32], 0)
    loaded = reloaded(made, tmp_path)
    for photo, one in zip(photos, ids, strict=True):
        assert np.array_equal(loaded.encode(photo[None]), made.maps[0][one])
        assert np.array_equal(loaded.decode(made.derived(one)), made.decode(made.derived(one)))
    assert loaded.spec == made.spec
    assert made.spec.levels == (32,)
    assert made.spec.fingerprint != base.spec.fingerprint
    assert made.encode(photos[0][None]).dtype == np.uint16


def test_what_is_reduced_can_be_reduced_again(base, ids, photos, tmp_path) -> None:
    once = ReducedTokenizer.of(base, [counts_of(ids, 256)], [64], 0)
    fewer = [once.derived(one) for one in ids]
    twice = reloaded(ReducedTokenizer.of(once, [counts_of(fewer, 64)], [16], 0), tmp_path)
    assert np.array_equal(twice.encode(photos[1][None]), twice.derived(fewer[1]))
    assert 17 < psnr(photos[1], twice.decode(twice.derived(fewer[1]), photos[1].shape[:2])[0]) < 30


def test_the_packaged_network_takes_fewer_codes(photos, tmp_path) -> None:
    base = load_tokenizer(saved_tokenizer("default"))
    assert isinstance(base, CodebookTokenizer)
    photo = photos[1][:96, :128]
    ids = base.encode(photo[None])
    made = reloaded(ReducedTokenizer.of(base, [counts_of([ids], 1024)], [40], 0), tmp_path)
    assert np.array_equal(made.encode(photo[None]), made.derived(ids))
    few, all_codes = (psnr(photo, one.decode(codes)[0]) for one, codes in ((made, made.derived(ids)), (base, ids)))
    assert all_codes - 3 < few < all_codes


def test_a_codebook_that_came_with_ids_is_reduced_without_a_tokenizer(tmp_path) -> None:
    codebook = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    base = ExternalTokenizer.of(CodeLayout((50,), (None,)), {"codebook": codebook})
    made = reloaded(ReducedTokenizer.of(base, [np.ones(50, np.int64)], [7], 0), tmp_path)
    assert made.spec.levels == (7,)
    assert made.derived(np.arange(50)[None, None]).max() == 6
    bare = ExternalTokenizer.of(CodeLayout((50,), (None,)), {})
    with pytest.raises(SpecError, match="no codebook came with them"):
        ReducedTokenizer.of(bare, [np.ones(50, np.int64)], [7], 0)


# -- coarse and fine --------------------------------------------------------------------------------------------------


@given(st.integers(2, 200), st.integers(1, 60), st.integers(0, 99))
def test_coarse_and_fine_ids_restore_every_id(k: int, coarse: int, seed: int) -> None:
    coarse = min(coarse, k - 1)
    codebook = np.random.default_rng(seed).normal(size=(k, 3))
    view = CoarseFine.of(codebook, coarse)
    ids = np.arange(k, dtype=np.uint16).reshape(1, -1)
    first, second = view.split(ids)
    assert np.array_equal(view.join(first, second), ids)
    assert view.join(first, second).dtype == id_dtype(k)
    assert (int(first.max()) + 1, int(second.max()) + 1) == view.alphabets
    assert view.alphabets[0] == coarse


def test_fine_ids_that_no_code_has_are_refused() -> None:
    view = CoarseFine(np.array([0, 1, 0, 0], np.int32))
    with pytest.raises(FormatError, match="not below the number of ids of its cluster"):
        view.join(np.array([1]), np.array([1]))
    with pytest.raises(FormatError, match="fine ids 0 to 3 do not fit an alphabet of 3"):
        view.join(np.array([0, 0]), np.array([0, 3]))
    with pytest.raises(SpecError, match="4 coarse ids of 4 ids"):
        CoarseFine.of(np.eye(4), 4)


def test_both_levels_decode_like_the_base_and_the_first_alone_is_a_preview(base, ids, photos, tmp_path) -> None:
    made = reloaded(CoarseFineTokenizer.of(base, 16), tmp_path)
    codes = made.encode(photos[2][None])
    assert codes.shape[1] == 2
    assert np.array_equal(made.restored(codes), ids[2])
    size = photos[2].shape[:2]
    assert np.array_equal(made.decode(codes, size), base.decode(ids[2], size))
    whole, preview = (psnr(photos[2], made.decode(part, size)[0]) for part in (codes, codes[:, :1]))
    assert whole - 6 < preview < whole


# -- stored ones ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("map.0"), "are not"),
        (lambda t: t.update(extra=t["map.0"]), "are not"),
        (lambda t: t.update({"map.0": t["map.0"] + 32}), "leads outside the alphabet of 32"),
        (lambda t: t.update({"map.0": t["map.0"][1:]}), r"not int32 \[256\]"),
        (lambda t: t.update({"codebook.0": t["codebook.0"][:, 1:]}), r"not float32 \[32, 192\]"),
        (lambda t: t.update({"codebook.0": t["codebook.0"] * np.float32(np.nan)}), "not finite"),
        (lambda t: t.pop("base.centroids"), "the weights lack centroids"),
    ],
)
def test_tables_that_do_not_fit_are_refused(base, ids, change, message) -> None:
    made = ReducedTokenizer.of(base, [counts_of(ids, 256)], [32], 0)
    tensors = made.tensors()
    change(tensors)
    with pytest.raises(FormatError, match=message):
        ReducedTokenizer.from_tensors(made.spec, tensors)


def test_descriptions_that_do_not_fit_are_refused(base, ids) -> None:
    made = ReducedTokenizer.of(base, [counts_of(ids, 256)], [32], 0)
    spec, tensors = made.spec, made.tensors()

    def with_base(**fields: Any) -> TokenizerSpec:
        return spec.model_copy(update={"config": {"base": {**spec.config["base"], **fields}}})

    deep: dict[str, Any] = spec.config["base"]
    for _ in range(DEEPEST):
        deep = {**spec.config["base"], "kind": "reduced", "config": {"base": deep}}
    for broken, message in (
        (spec.model_copy(update={"config": {}}), "config.base"),
        (with_base(kind="oracle"), "unknown tokenizer kind 'oracle'"),
        (with_base(levels=()), "config.base.levels"),
        (spec.model_copy(update={"config": {"base": {**deep, "kind": "reduced"}}}), f"more than {DEEPEST} tokenizers"),
        (spec.model_copy(update={"downsample": (4, 4)}), "do not fit its tables"),
    ):
        with pytest.raises(FormatError, match=message):
            ReducedTokenizer.from_tensors(broken, tensors)
    coarse = CoarseFineTokenizer.of(base, 8)
    wrong = coarse.spec.model_copy(update={"levels": (9, *coarse.levels[1:])})
    with pytest.raises(FormatError, match="does not have 9 clusters"):
        CoarseFineTokenizer.from_tensors(wrong, coarse.tensors())
    with pytest.raises(SpecError, match="do not stand for vectors"):
        codebook_tokenizer(coarse)
