"""Trainings beyond the plain codebook: taken where they rank better on held-out queries, refused where they do not."""

from __future__ import annotations

import numpy as np
import pytest

from tokenshard.errors import FormatError, SpecError
from tokenshard.retrieval.compression.balanced import shares
from tokenshard.retrieval.compression.base import Compressor
from tokenshard.retrieval.compression.held_out import Lessons
from tokenshard.retrieval.compression.query_map import QueryMap
from tokenshard.retrieval.compression.registry import Method
from tokenshard.retrieval.compression.state import dump, load
from tokenshard.retrieval.compression.training import TRAININGS, trained
from tokenshard.retrieval.exact import Multivectors, maxsim
from topical_pages import topical_pages

PAGES = topical_pages(120, seed=0, dimensions=32)
QUERY = topical_pages(3, seed=1, dimensions=32).vectors[:9]


@pytest.fixture(scope="module")
def plain() -> Compressor:
    return Method.parse("pq4").fit(PAGES, seed=3)


@pytest.fixture(scope="module", params=["distill", "querymap"])
def helped(request: pytest.FixtureRequest) -> Compressor:
    return Method.parse(f"{request.param}|pq4").fit(PAGES, seed=3)


def test_what_is_taken_finds_more_of_the_exact_best_pages_of_new_queries(plain: Compressor, helped: Compressor) -> None:
    others = Lessons.of(PAGES, seed=99)
    before, after = (others.train.overlaps(each, others.pages).mean() for each in (plain, helped))
    assert after > before + 0.002


def test_a_trained_method_is_stored_and_scores_what_it_decodes_to(helped: Compressor) -> None:
    codes = helped.encode(PAGES)
    again = load(dump(helped))
    assert dump(again) == dump(helped)
    exact = maxsim(Multivectors(QUERY, np.array([0, len(QUERY)])), again.decode(codes))[0]
    np.testing.assert_allclose(again.open(codes).scores(QUERY), exact, atol=1e-3)


def test_training_twice_gives_equal_bytes(helped: Compressor) -> None:
    name = "querymap" if isinstance(helped, QueryMap) else "distill"
    assert dump(Method.parse(f"{name}|pq4").fit(PAGES, seed=3)) == dump(helped)


def test_a_query_map_leaves_codes_as_they_are(plain: Compressor) -> None:
    mapped = QueryMap(plain, np.eye(32, dtype=np.float16)[::-1].copy())
    codes, own = mapped.encode(PAGES), plain.encode(PAGES)
    assert (mapped.alphabets, mapped.streams) == (plain.alphabets, plain.streams)
    np.testing.assert_array_equal(codes.ids, own.ids)
    np.testing.assert_allclose(mapped.open(codes).scores(QUERY), plain.open(own).scores(QUERY[:, ::-1].copy()))


@pytest.mark.parametrize("codec", ["querymap|rabitq:9", "balanced|hpc:32"])
def test_what_does_not_rank_better_is_refused_with_both_figures(codec: str) -> None:
    name = codec.partition("|")[0]
    with pytest.raises(SpecError, match=rf"{name} does not help here: .* 0\.\d+ .* without it, 0\.\d+ with it"):
        Method.parse(codec).fit(PAGES, seed=3)


def test_balanced_assignment_gives_every_codeword_its_share() -> None:
    vectors = PAGES.vectors[:2048, :8]
    plan = shares(vectors, vectors[:64] + np.float32(0.01))
    np.testing.assert_allclose(plan.sum(1), 1, atol=0.1)  # after a limited number of rounds
    np.testing.assert_allclose(plan.sum(0), 2048 / 64)
    nearest = ((vectors[:, None] - vectors[:64]) ** 2).sum(2).argmin(1)
    assert np.bincount(plan.argmax(1), minlength=64).std() < 0.5 * np.bincount(nearest, minlength=64).std()


def test_pseudo_queries_come_from_pages_that_they_do_not_rank() -> None:
    lessons = Lessons.of(PAGES, seed=0)
    for part in (lessons.train, lessons.choose, lessons.accept):
        assert np.isneginf(part.exact[np.arange(len(part)), part.homes]).all()
        home = lessons.pages[part.homes[3]]
        assert (home @ part.queries[3].T).max(0) == pytest.approx(1, abs=1e-5)


def test_too_small_a_sample_and_wrong_places_are_refused(plain: Compressor) -> None:
    with pytest.raises(SpecError, match="40 pages"):
        trained(("distill",), plain, PAGES.part(0, 20), 0)
    for codec in ("distill|ofec:0.16", "balanced|rabitq:1", "querymap", "querymap:1"):
        with pytest.raises(SpecError):
            Method.parse(codec)
    with pytest.raises(SpecError, match="right before"):
        trained(("distill",), QueryMap(plain, np.eye(32, dtype=np.float16)), PAGES, 0)
    assert set(TRAININGS) == {"balanced", "distill", "querymap"}


def test_a_damaged_query_map_is_refused(plain: Compressor) -> None:
    data = dump(QueryMap(plain, np.eye(31, dtype=np.float16)))
    with pytest.raises(FormatError, match="query_map"):
        load(data)
