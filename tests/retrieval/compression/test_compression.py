"""Every method of compression: codes stand for vectors near the pages', and MaxSim on codes is theirs."""

from __future__ import annotations

import numpy as np
import pytest

from tokenshard.errors import FormatError, InputError, SpecError
from tokenshard.retrieval.compression.accounting import code_bytes, state_bytes
from tokenshard.retrieval.compression.base import Compressor, Encoded, Streams
from tokenshard.retrieval.compression.bits import Bits
from tokenshard.retrieval.compression.ofec import Ofec
from tokenshard.retrieval.compression.registry import METHODS, Method
from tokenshard.retrieval.compression.saq import segmentation
from tokenshard.retrieval.compression.state import dump, load
from tokenshard.retrieval.exact import Multivectors, maxsim, ranking
from topical_pages import topical_pages

CODECS = {  # codec: the most it may lose of a vector's squared length, on these data
    "fp16": 1e-6,
    "ofec:0.16": 0.21,
    "ofec:0.06,64": 0.05,
    "plaid:1": 0.45,
    "plaid:2": 0.25,
    "plaid:4": 0.06,
    "pq16": 0.15,
    "opq16": 0.15,
    "rq8": 0.25,
    "rabitq:1": 0.6,
    "rabitq:3": 0.05,
    "rabitq:9": 1e-4,
    "caq:2": 0.16,
    "caq:4": 0.012,
    "saq:2": 0.12,
    "pvq:48": 0.35,
    "lvq:4": 0.03,
    "leanvec:32,4": 0.5,
    "int8": 1e-3,
    "int4": 0.03,
    "hpc:64": 0.6,
    "bits": 0.7,
}
QUERIES = 12


PAGES = topical_pages(120, seed=0)
QUERY = topical_pages(5, seed=1).vectors[:QUERIES]


@pytest.fixture(scope="module", params=CODECS)
def codec(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def fitted(codec: str) -> Compressor:
    return Method.parse(codec).fit(PAGES, seed=3)


@pytest.fixture(scope="module")
def encoded(fitted: Compressor) -> Encoded:
    return fitted.encode(PAGES)


def originals(encoded: Encoded) -> np.ndarray:
    return PAGES.vectors if encoded.order is None else PAGES.vectors[encoded.order]


def test_codes_stand_for_vectors_near_those_of_the_pages(codec: str, fitted: Compressor, encoded: Encoded) -> None:
    decoded = fitted.decode(encoded)
    np.testing.assert_array_equal(decoded.offsets, PAGES.offsets)
    assert ((decoded.vectors - originals(encoded)) ** 2).sum(1).mean() <= CODECS[codec]


def test_scores_on_codes_are_those_of_the_decoded_vectors(fitted: Compressor, encoded: Encoded) -> None:
    scorer = fitted.open(encoded)
    exact = maxsim(Multivectors(QUERY, np.array([0, QUERIES])), fitted.decode(encoded))[0]
    np.testing.assert_allclose(scorer.scores(QUERY), exact, atol=1e-4)
    some = np.array([7, 3, 3, 22, 90])
    np.testing.assert_allclose(scorer.scores(QUERY, some, threads=3), exact[some], atol=1e-4)
    assert np.isneginf(exact[5])
    assert scorer.nbytes > 0


def test_long_queries_are_scored_in_parts(fitted: Compressor, encoded: Encoded) -> None:
    long = topical_pages(6, seed=9).vectors[:140]
    assert len(long) > 128
    exact = maxsim(Multivectors(long, np.array([0, len(long)])), fitted.decode(encoded))[0]
    np.testing.assert_allclose(fitted.open(encoded).scores(long), exact, atol=1e-4 * len(long))


def test_negative_similarities_stay_negative(fitted: Compressor) -> None:
    page = Multivectors.of([np.repeat(QUERY[:1], 5, 0)])
    codes = fitted.encode(page)
    scores = fitted.open(codes).scores(-QUERY[:1])
    np.testing.assert_allclose(scores[0], (fitted.decode(codes).vectors @ -QUERY[0]).max(), atol=1e-4)
    assert scores[0] < 0


def test_a_page_alone_has_the_codes_it_has_among_others(fitted: Compressor, encoded: Encoded) -> None:
    for page in (0, 5, 33):
        alone = fitted.encode(PAGES.part(page, page + 1))
        rows = slice(PAGES.offsets[page], PAGES.offsets[page + 1])
        if encoded.ids is not None:
            np.testing.assert_array_equal(alone.ids, encoded.ids[:, rows])
        for name, stream in encoded.streams.items():
            assert alone.streams[name][0] == stream[page]


def test_a_stored_compressor_is_the_same(fitted: Compressor, encoded: Encoded) -> None:
    data = dump(fitted)
    again = load(data)
    assert dump(again) == data
    np.testing.assert_array_equal(again.decode(encoded).vectors, fitted.decode(encoded).vectors)
    assert state_bytes(fitted) == len(data)


def test_fitting_twice_gives_equal_bytes(codec: str, fitted: Compressor) -> None:
    assert dump(Method.parse(codec).fit(PAGES, seed=3)) == dump(fitted)


def test_vectors_of_another_size_or_not_finite_are_refused(fitted: Compressor) -> None:
    with pytest.raises(InputError, match="dimensions"):
        fitted.encode(Multivectors.of([np.ones((2, 8), np.float32)]))
    with pytest.raises(InputError, match="finite"):
        fitted.encode(Multivectors.of([np.full((1, 64), np.nan, np.float32)]))


def test_damaged_streams_and_codebooks_are_refused(fitted: Compressor, encoded: Encoded) -> None:
    for name, stream in encoded.streams.items():
        if len(stream.data):
            cut = Streams(stream.data[:-2], np.minimum(stream.offsets, len(stream.data) - 2))
            with pytest.raises(FormatError):
                fitted.open(Encoded(encoded.offsets, encoded.ids, {**encoded.streams, name: cut}))
    if encoded.ids is not None:
        with pytest.raises(FormatError, match="damaged"):
            fitted.open(Encoded(encoded.offsets, encoded.ids[:, :-1], encoded.streams))
    data = dump(fitted)
    for bad in (b"", data[:20], data[:-1]):
        with pytest.raises(FormatError):
            load(bad)


def test_all_methods_are_tested() -> None:
    assert {Method.parse(codec).compressor.name for codec in CODECS} == set(METHODS)


@pytest.mark.parametrize(
    "text",
    ["", "zip", "ofec", "ofec:x", "ofec:0", "ofec:0.1,2,3", "plaid:3", "pq", "rabitq:10", "hpc:1", "saq:0", "int5",
     "lvq:9", "pool:2", "pool:1|bits", "prune:luck,0.5|bits", "prune:random,2|bits"],
)  # fmt: skip
def test_wrong_codec_strings_are_refused(text: str) -> None:
    with pytest.raises(SpecError):
        Method.parse(text)


# -- ofec -------------------------------------------------------------------------------------------------------------


def test_ofec_integers_come_back_and_ids_are_sorted_within_pages() -> None:
    fitted = Ofec.fit(PAGES, 0, {"step": 0.1, "centroids": 64})
    codes = fitted.encode(PAGES)
    assert codes.ids is not None
    assert codes.order is not None
    for page in range(len(PAGES)):
        rows = slice(PAGES.offsets[page], PAGES.offsets[page + 1])
        assert (np.diff(codes.ids[0, rows].astype(int)) >= 0).all()
        assert sorted(codes.order[rows]) == list(range(rows.start, rows.stop))
    away = PAGES.vectors[codes.order] - fitted.centroids[codes.ids[0]]
    found = (fitted.decode(codes).vectors - fitted.centroids[codes.ids[0]]) @ fitted.rotation.astype(np.float32)
    wanted = away @ fitted.rotation.astype(np.float32)
    assert np.abs(found - wanted).max() <= 0.6 * 0.1 + 1e-3  # half a step and the dead zone


def test_values_beyond_the_tables_are_escaped() -> None:
    fitted = Ofec.fit(PAGES, 0, {"step": 0.1, "centroids": 16})
    far = Multivectors.of([40 * PAGES.vectors[:9]])
    codes = fitted.encode(far)
    assert codes.order is not None
    error = fitted.decode(codes).vectors - far.vectors[codes.order]
    assert (np.abs(error) < 0.06 * 64**0.5 + 40 * 2e-3).all()


@pytest.mark.parametrize(("width", "size"), [(320, 1.0), (24, 100.0)])
def test_entries_of_any_width_and_size_are_scored(width: int, size: float) -> None:
    """More dimensions, and larger values, than a byte can count."""
    rng = np.random.default_rng(0)
    pages = Multivectors.of([size * rng.standard_normal((40, width)).astype("f4") for _ in range(12)])
    fitted = Method.parse("ofec:0.5").fit(pages)
    encoded = fitted.encode(pages)
    query = rng.standard_normal((21, width)).astype("f4")
    exact = maxsim(Multivectors.of([query]), fitted.decode(encoded))[0]
    np.testing.assert_allclose(fitted.open(encoded).scores(query), exact, rtol=1e-5)


def test_vectors_unlike_the_sample_cost_bytes_and_not_precision() -> None:
    fitted = Ofec.fit(PAGES, 0, {"step": 0.16})
    noise = np.random.default_rng(0).standard_normal((3000, 64)).astype(np.float32)
    strange = Multivectors.of(list((noise / np.linalg.norm(noise, axis=1, keepdims=True)).reshape(30, 100, 64)))
    usual, other = fitted.encode(PAGES), fitted.encode(strange)
    per_vector = [code_bytes(fitted, codes) / codes.offsets[-1] for codes in (usual, other)]
    assert per_vector[1] >= 2 * per_vector[0]
    errors = [
        ((fitted.decode(codes).vectors - pages.vectors[codes.order]) ** 2).sum(1).mean()
        for codes, pages in ((usual, PAGES), (other, strange))
    ]
    assert errors[1] <= 1.6 * errors[0]


def test_the_number_of_centroids_may_be_what_takes_least_bytes() -> None:
    fitted = Ofec.fit(PAGES, 0, {"step": 0.1, "centroids": "auto"})
    chosen = len(fitted.codebook)

    def total(count: int) -> int:
        other = Ofec.fit(PAGES, 0, {"step": 0.1, "centroids": count})
        return code_bytes(other, other.encode(PAGES)) + state_bytes(other)

    assert total(chosen) <= min(total(count) for count in (chosen // 2, min(2 * chosen, len(PAGES.vectors) // 32)))


def test_without_order_it_takes_less_than_half_of_plaid() -> None:
    pages = topical_pages(300, seed=4)
    ofec, plaid = (Method.parse(codec).fit(pages) for codec in ("ofec:0.16,256", "plaid:1,256"))
    bytes_of = [code_bytes(fitted, fitted.encode(pages)) for fitted in (ofec, plaid)]
    assert bytes_of[0] < 0.8 * bytes_of[1]
    exact = ranking(maxsim(Multivectors(QUERY, np.array([0, QUERIES])), pages), 10)[0]
    kept = [
        len(set(exact) & set(ranking(fitted.open(fitted.encode(pages)).scores(QUERY), 10))) for fitted in (ofec, plaid)
    ]
    assert kept[0] >= kept[1] - 1


# -- others -----------------------------------------------------------------------------------------------------------


def test_hamming_counts_shared_signs() -> None:
    fitted = Bits.fit(PAGES, 0, {})
    scores = fitted.open_hamming(fitted.encode(PAGES)).scores(QUERY)
    for page in (0, 8, 50):
        shared = ((QUERY > 0)[:, None] == (PAGES[page] > 0)[None]).sum(2).max(1).sum()
        assert scores[page] == shared


def test_product_quantization_ranks_as_faiss_does() -> None:
    faiss = pytest.importorskip("faiss")
    fitted = Method.parse("pq16").fit(PAGES)
    codes = fitted.encode(PAGES)
    assert codes.ids is not None
    index = faiss.IndexPQ(64, 16, 8, faiss.METRIC_INNER_PRODUCT)
    faiss.copy_array_to_vector(fitted.arrays()["codebooks"].astype(np.float32).reshape(-1), index.pq.centroids)
    index.is_trained = True
    index.add(PAGES.vectors)
    singles = Multivectors(PAGES.vectors, np.arange(len(PAGES.vectors) + 1))
    scorer = fitted.open(Encoded(singles.offsets, codes.ids))
    _, found = index.search(QUERY, 10)
    shares = [
        len(set(ranking(scorer.scores(q[None]), 10)) & set(own)) / 10 for q, own in zip(QUERY, found, strict=True)
    ]
    assert np.mean(shares) >= 0.99


def test_rabitq_ranks_as_faiss_does() -> None:
    faiss = pytest.importorskip("faiss")
    vectors = PAGES.vectors - PAGES.vectors.mean(0)  # FAISS keeps one factor more a vector, for a centre that is not 0
    singles = Multivectors(vectors, np.arange(len(PAGES.vectors) + 1))
    fitted = Method.parse("rabitq:1").fit(singles, seed=0)
    arrays = fitted.arrays()
    rotation, centre = arrays["rotation"].astype(np.float32), arrays["centre"]
    index = faiss.IndexRaBitQ(64, faiss.METRIC_INNER_PRODUCT)
    rotated = np.ascontiguousarray(vectors @ rotation)
    index.train(rotated)
    index.qb = 0
    index.add(rotated)
    np.testing.assert_allclose(faiss.vector_to_array(index.center), centre @ rotation, atol=1e-4)
    scorer = fitted.open(fitted.encode(singles))
    _, found = index.search(np.ascontiguousarray(QUERY @ rotation), 10)
    shares = [
        len(set(ranking(scorer.scores(q[None]), 10)) & set(own)) / 10 for q, own in zip(QUERY, found, strict=True)
    ]
    assert np.mean(shares) >= 0.95


def test_saq_gives_bits_to_the_dimensions_that_matter_within_its_budget() -> None:
    plan = segmentation(tuple(np.repeat([1.0, 0.1, 0.001, 0.0], 32)), 2)
    assert sum(width for width, _ in plan) == 128
    assert sum(width * bits + 16 * (bits > 0) for width, bits in plan) <= 2 * 128 + 32
    bits = [each for _, each in plan]
    assert bits == sorted(bits, reverse=True)
    assert bits[0] > 2
    assert bits[-1] == 0


# -- fewer vectors ----------------------------------------------------------------------------------------------------


def test_pruning_keeps_the_most_salient_of_each_page() -> None:
    saliency = np.random.default_rng(0).random(len(PAGES.vectors)).astype(np.float32)
    pruned, labels = Method.parse("prune:attention,0.5|bits").reduce(PAGES, saliency)
    for page in range(len(PAGES)):
        rows = slice(PAGES.offsets[page], PAGES.offsets[page + 1])
        kept = np.flatnonzero(labels[rows] >= 0)
        assert len(kept) == -(-len(PAGES[page]) // 2)
        np.testing.assert_array_equal(pruned[page], PAGES[page][kept])
        if len(kept) < len(PAGES[page]):
            assert saliency[rows][kept].min() >= np.delete(saliency[rows], kept).max()
    with pytest.raises(InputError, match="attention"):
        Method.parse("prune:attention,0.5|bits").reduce(PAGES)


def test_random_pruning_does_not_depend_on_other_pages() -> None:
    method = Method.parse("prune:random,0.6|bits")
    whole, _ = method.reduce(PAGES)
    alone, _ = method.reduce(PAGES.part(8, 9))
    np.testing.assert_array_equal(whole[8], alone.vectors)


def test_pooling_halves_the_vectors_and_says_which_became_one() -> None:
    pooled, labels = Method.parse("pool:2|bits").reduce(PAGES)
    sizes = PAGES.lengths
    np.testing.assert_array_equal(pooled.lengths, np.where(sizes == 0, 0, np.maximum(sizes // 2, 1)))
    for row in (0, len(pooled.vectors) - 1):
        mean = PAGES.vectors[labels == row].mean(0)
        np.testing.assert_allclose(pooled.vectors[row], mean / np.linalg.norm(mean), atol=1e-5)
