"""Text corpora in the BEIR layout: a line a document, a bad line a reject named by its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tokenshard.errors import SpecError
from tokenshard.sources.base import Reject, Sample
from tokenshard.sources.documents import corpus
from tokenshard.sources.documents.open import open_document_source
from tokenshard.spec.documents import DocumentSourceSpec

LINES = (
    b'{"_id": "a", "title": "Wings", "text": "lift and drag", "metadata": {"year": 1958}}\n'
    b'{"_id": "b", "text": "only text"}\n'
    b"\n"
    b'{"_id": "c", "title": "Wings", "text": "Wings again"}\n'
)


def items(path: Path, **fields: Any) -> dict[str, Sample | Reject]:
    spec = DocumentSourceSpec(path=str(path), **fields)
    source = open_document_source(spec)
    plan = pa.Table.from_batches(list(source.plan()))
    reader = open_document_source(spec, state=source.state())
    return {item.key: item for item in (thunk() for thunk in reader.read(plan))}


def test_lines_are_documents_with_their_title_before_their_text(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_bytes(LINES)
    found = items(tmp_path)
    assert {key: item.columns["text"] for key, item in found.items() if isinstance(item, Sample)} == {
        "a": "Wings lift and drag",
        "b": "only text",
        "c": "Wings again",
    }
    first = found["a"]
    assert isinstance(first, Sample)
    assert first.text is not None
    assert first.text.boxes is None
    assert (first.columns["title"], json.loads(first.columns["metadata"])) == ("Wings", {"year": 1958})
    assert (first.columns["document"], first.columns["page"], first.columns["needs_ocr"]) == ("a", None, False)


def test_queries_beside_a_corpus_are_not_documents(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_bytes(LINES)
    (tmp_path / "queries.jsonl").write_text('{"_id": "q", "text": "wing"}\n')
    assert list(items(tmp_path)) == ["a", "b", "c"]
    assert list(items(tmp_path / "queries.jsonl")) == ["q"]


def test_lines_are_read_in_blocks_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "corpus.jsonl").write_bytes(LINES)
    whole = items(tmp_path)
    monkeypatch.setattr(corpus, "_BLOCK", 60)
    assert [item.columns for item in items(tmp_path).values()] == [item.columns for item in whole.values()]  # type: ignore[union-attr]


@pytest.mark.data
def test_bad_lines_are_rejects_and_the_others_are_read(data_dir: Path) -> None:
    found = items(data_dir / "bad" / "retrieval" / "corpus.jsonl")
    assert [key for key, item in found.items() if isinstance(item, Sample)] == ["a", "5"]
    assert {key: item.message.partition(": ")[2] for key, item in found.items() if isinstance(item, Reject)} == {
        "corpus.jsonl:2": "BadLine: no text",
        "a#2": "duplicate key: an earlier input has it; give every input a key of its own",
        "corpus.jsonl:4": "BadLine: not JSON",
        "corpus.jsonl:6": "BadLine: text is not UTF-8",
        "corpus.jsonl:8": "BadLine: title and text are empty",
    }


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ('{"text": "x"}', "no _id"),
        ('{"_id": true, "text": "x"}', "no _id"),
        ('{"_id": "a", "text": 3}', "is no text"),
        ('["a"]', "not a JSON object"),
        ("[" * 100_000, "not JSON"),
        ('{"_id": "a", "text": "\\ud800"}', "surrogate"),
        ('{"_id": "a", "text": "long text"}', "max_chars"),
    ],
)
def test_what_is_wrong_with_a_line_is_said(tmp_path: Path, line: str, wrong: str) -> None:
    (tmp_path / "corpus.jsonl").write_text(line + '\n{"_id": "ok", "text": "fine"}\n')
    found = items(tmp_path, max_chars=6)
    reject = found["corpus.jsonl:1"]
    assert isinstance(reject, Reject)
    assert wrong in reject.message
    assert isinstance(found["ok"], Sample)


def test_a_line_over_max_bytes_is_skipped_and_rejected(tmp_path: Path) -> None:
    long = json.dumps({"_id": "a", "text": "x" * 500})
    (tmp_path / "corpus.jsonl").write_text(long + '\n{"_id": "b", "text": "fine"}')
    found = items(tmp_path, max_bytes=100)
    assert [type(item) for item in found.values()] == [Reject, Sample]


def test_a_folder_without_lines_is_refused(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text("\n")
    with pytest.raises(SpecError):
        items(tmp_path)
