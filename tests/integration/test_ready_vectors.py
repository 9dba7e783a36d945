"""`convert vectors`: vectors that were made elsewhere become a dataset that is searched, and datasets are recoded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import tokenshard
from integration.documents import compress
from tokenshard.cli.main import cli
from tokenshard.engine.convert import Mode
from tokenshard.errors import JobError, SpecError
from tokenshard.retrieval.exact import Multivectors, maxsim
from tokenshard.retrieval.patches import Patches
from tokenshard.retrieval.search import PageSearch
from tokenshard.shards.rejects import read_rejects
from tokenshard.shards.verify import verify
from tokenshard.sources.documents.base import MADE
from tokenshard.store import Store

pytestmark = pytest.mark.integration
D = 16


def unit_vectors(count: int, seed: int) -> Any:
    found = np.random.default_rng(seed).standard_normal((count, D)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


PAGES = [unit_vectors(20 + number % 5, number) for number in range(40)]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vectors") / "pages.parquet"
    vectors = pa.array([list(page) for page in PAGES], pa.list_(pa.list_(pa.float32(), D)))
    keys, year = [f"p{number:02d}" for number in range(40)], [1980 + number for number in range(40)]
    pq.write_table(pa.table({"key": keys, "year": year, "vectors": vectors}), path)
    return path


def test_vectors_of_a_table_are_searched_by_vectors(table: Path, tmp_path: Path) -> None:
    done = compress(table, tmp_path / "pages", compression="ofec:0.1")
    assert (done.num_samples, done.num_rejects) == (40, 0)
    assert verify(Store(tmp_path / "pages"), deep=True).ok
    search = PageSearch(tokenshard.open(tmp_path / "pages"))
    query = unit_vectors(6, 99)
    (exact,) = maxsim(Multivectors.of([query]), Multivectors.of(PAGES))
    scores = search.scores(query)
    assert np.abs(scores - exact).max() < 0.1 * len(query)
    assert search.find(PAGES[17]).hits[0].key == "p17"
    row = tokenshard.open(tmp_path / "pages")[17]
    assert (row["document"], row["page"], row["year"]) == ("p17", None, 1997)
    with pytest.raises(SpecError, match="not known what made these vectors; ask with vectors"):
        search.find("text")
    with pytest.raises(SpecError, match=r"expected finite vectors \[m, 16\]"):
        search.find(query[:, :8])
    np.save(tmp_path / "some.npy", np.stack([PAGES[17][:5], PAGES[3][:5]]))
    words = ["search", "query", str(tmp_path / "pages"), "--queries", str(tmp_path / "some.npy"), "--top", "1"]
    done = CliRunner().invoke(cli, words, catch_exceptions=False)
    answers = {line["_id"]: line["hits"][0]["key"] for line in map(json.loads, done.stdout.splitlines())}
    assert answers == {"some#1": "p17", "some#2": "p03"}


def test_files_of_arrays_make_the_same_codes_as_a_table(table: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number, page in enumerate(PAGES):
        np.save(tmp_path / "in" / f"p{number:02d}.npy", page)
    compress(table, tmp_path / "a", compression="plaid:2")
    compress(tmp_path / "in", tmp_path / "b", compression="plaid:2")
    one, other = (tokenshard.open(tmp_path / name) for name in "ab")
    assert one.manifest.tokenizer == other.manifest.tokenizer
    for number in range(40):
        np.testing.assert_array_equal(one[number]["codes"], other[number]["codes"])
    assert [row["key"] for row in other.table(["key"]).to_pylist()] == [f"p{number:02d}" for number in range(40)]


def test_pages_of_another_size_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number, page in enumerate(PAGES):
        np.save(tmp_path / "in" / f"p{number:02d}.npy", page[:, :8] if number == 3 else page)
    np.save(tmp_path / "in" / "p04.npy", np.full((5, D), np.nan, np.float32))
    done = compress(tmp_path / "in", tmp_path / "out", compression="int8", max_rejects=0.1)
    assert (done.num_samples, done.num_rejects) == (38, 2)
    rejects = read_rejects(Store(tmp_path / "out"), tokenshard.open(tmp_path / "out").manifest).to_pylist()
    assert {row["key"]: row["message"].partition(": ")[2] for row in rejects}.keys() == {"p03", "p04"}


@pytest.mark.parametrize("method", ["prune:random,0.6|fp16", "pool:2|ofec:0.2"])
def test_a_dataset_is_recoded_with_its_columns_and_what_became_of_each_vector(
    method: str, table: Path, tmp_path: Path
) -> None:
    compress(table, tmp_path / "first", compression=method)
    compress(tmp_path / "first", tmp_path / "second", compression="pool:2|hpc:8", unit={"samples": 9})
    first, second = (tokenshard.open(tmp_path / name) for name in ("first", "second"))
    assert verify(Store(tmp_path / "second"), deep=True).ok
    assert second.table(["key", "year"]).equals(first.table(["key", "year"]))
    made = {column.name for column in MADE}
    assert set(second.schema.names) == set(first.schema.names) - {"vectors", "residual"} | {"squared_error"}
    assert made <= set(second.schema.names)
    for number in (0, 21):
        before, after = Patches.of(first[number]), Patches.of(second[number])
        assert len(after.labels) == len(before.labels) == len(PAGES[number])
        assert ((after.labels < 0) == (before.labels < 0)).all()
        for code in range(len(after.positions)):  # what was one code is a part of one code still
            assert {int(one) for one in after.labels[before.labels == before.labels[after.labels == code][0]]} == {code}
    folder = f"tokenizer/{second.manifest.tokenizer.fingerprint}"
    assert second.store.read(f"{folder}/encoder.json") == first.store.read(
        f"tokenizer/{first.manifest.tokenizer.fingerprint}/encoder.json"
    )
    assert len(PageSearch(second).find(PAGES[3]).hits) == 10


def test_what_does_not_fit_is_refused(table: Path, tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"vectors of 16 dimensions, and patch-dct makes some of 128"):
        compress(table, tmp_path / "a", encoder="patch-dct")
    with pytest.raises(JobError, match="come without attention"):
        compress(table, tmp_path / "b", compression="prune:attention,0.5|hpc:4")
    compress(table, tmp_path / "c", compression="hpc:4")
    np.save(tmp_path / "new.npy", unit_vectors(9, 7)[:, :8])
    with pytest.raises(SpecError, match="compressed by hpc:4"):
        compress(tmp_path / "new.npy", tmp_path / "c", Mode(append=True), compression="hpc:8")
    np.save(tmp_path / "new.npy", unit_vectors(9, 7))
    with pytest.raises(SpecError, match="different: year"):
        compress(tmp_path / "new.npy", tmp_path / "c", Mode(append=True), compression="hpc:4")
    with pytest.raises(SpecError, match="is source and output at once"):
        compress(tmp_path / "c", tmp_path / "c", compression="hpc:8")


def test_the_encoder_that_made_the_vectors_encodes_queries(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from safetensors.numpy import save_file

    from tiny_checkpoints import DIMENSIONS, colpali
    from tokenshard.retrieval.encoders.registry import open_encoder
    from tokenshard.sources.base import Sample

    colpali(tmp_path / "model")
    name, draw = f"hf:{tmp_path / 'model'}", np.random.default_rng(0)
    images = [draw.integers(0, 256, (56, 56, 3)).astype(np.uint8) for _ in range(12)]
    encoder = open_encoder(name)
    pages = encoder.encode_pages([Sample(str(n), "", image, 0) for n, image in enumerate(images)])
    save_file({f"p{n:02d}": page.vectors for n, page in enumerate(pages)}, tmp_path / "pages.safetensors")
    compress(tmp_path / "pages.safetensors", tmp_path / "out", compression="int8", encoder=name)
    search = PageSearch(tokenshard.open(tmp_path / "out"))
    assert pages[0].vectors.shape == (16, DIMENSIONS)
    assert search.find(images[5]).hits[0].key == "p05"
    assert len(search.find("what lift").hits) == 10
