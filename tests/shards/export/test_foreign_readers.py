"""Exports as the programs they are made for read them: the real libraries, and readers from the published layouts."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pytest
import torch
import webdataset as wds
from numpy.typing import NDArray
from safetensors.numpy import load

from engine.arrays import import_arrays
from foreign import library, mosaic_streaming
from tokenshard.errors import SpecError
from tokenshard.shards.dataset import Dataset, open_dataset
from tokenshard.shards.export.registry import export
from tokenshard.shards.export.seit import seit_bytes
from tokenshard.shards.export.webdataset import member_name
from tokenshard.store import Store

Sample = dict[str, Any]


@pytest.fixture
def tokens(make_rows: Callable[..., Any], make_dataset: Callable[..., Store]) -> Dataset:
    """80 samples of 8 x 8 ids; labels, captions with nulls, lists of tags."""
    return open_dataset(make_dataset(make_rows(50), make_rows(30, first=50)).root)


@pytest.fixture
def ragged(make_rows: Callable[..., Any], make_dataset: Callable[..., Store]) -> Dataset:
    return open_dataset(make_dataset(make_rows(20, varied=True)).root)


@pytest.fixture
def levels(tmp_path: Path) -> Dataset:
    """12 samples of two levels of 4 x 6 ids below 300, made by an import."""
    rng = np.random.default_rng(0)
    codes = [rng.integers(0, 300, (2, 4, 6)) for _ in range(12)]
    import_arrays(tmp_path, codes, source={"alphabet": 300})
    return open_dataset(tmp_path / "tokens")


def samples(dataset: Dataset, split: str | None = None) -> list[Sample]:
    rows = [dataset[number] for number in range(len(dataset))]
    return [row for row in rows if split in {None, row["split"]}]


def assert_ids(found: Any, expected: NDArray[Any]) -> None:
    np.testing.assert_array_equal(np.asarray(found), expected)
    assert np.asarray(found).shape == expected.shape


# -- webdataset --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tokens", "ragged", "levels"])
def test_webdataset_reads_ids_labels_and_columns(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    dataset = request.getfixturevalue(name)
    columns = ["label", "split", "tags"]
    export(dataset, tmp_path / "out", "webdataset", columns=columns)
    url = str(tmp_path / "out" / "train-000000.tar")
    found = list(wds.WebDataset(url, shardshuffle=False, empty_check=False).decode())
    expected = samples(dataset, "train")
    assert len(found) == len(expected)
    for sample, row in zip(found, expected, strict=True):
        assert_ids(sample["npy"], row["codes"])
        assert sample["npy"].dtype == row["codes"].dtype
        assert sample["cls"] == row["label"]
        assert sample["json"]["key"] == row["key"]
        assert sample["json"]["tags"] == row["tags"]


def test_webdataset_keeps_samples_apart_whose_keys_differ_behind_a_dot() -> None:
    keys = ["a.b.jpg", "a.c.jpg", "a", "/a", "x//y", "../a", "100%.png", "dir.d/b.png", "back\\slash"]
    names = [member_name(key) for key in keys]
    assert len(set(names)) == len(keys)
    assert all("." not in name and not name.startswith("/") and "//" not in name for name in names)


# -- Parquet and Hugging Face ------------------------------------------------------------------------------------------


def test_duckdb_and_polars_see_the_ids_of_plain_parquet(tokens: Dataset, tmp_path: Path) -> None:
    export(tokens, tmp_path / "out", "parquet")
    file = tmp_path / "out" / "train-00000.parquet"
    expected = samples(tokens, "train")
    rows = duckdb.sql(f"SELECT key, codes, grid_height, grid_width, label, caption FROM '{file}'").fetchall()
    for (key, codes, height, width, label, caption), row in zip(rows, expected, strict=True):
        assert_ids(np.array(codes, np.uint16).reshape(height, width), row["codes"])
        assert (key, label, caption) == (row["key"], row["label"], row["caption"])
    frame = pl.read_parquet(file)
    assert frame["codes"].dtype == pl.List(pl.UInt16)
    assert frame["codes"].to_list() == [row["codes"].ravel().tolist() for row in expected]


@pytest.mark.parametrize("name", ["tokens", "ragged", "levels"])
def test_datasets_loads_the_folder_with_splits_grids_and_class_names(
    name: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = library("datasets")
    dataset = request.getfixturevalue(name)
    export(dataset, tmp_path / "out", "hf")
    loaded = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert set(loaded) == {"train", "test"}
    for split in ("train", "test"):
        expected = samples(dataset, split)
        assert loaded[split]["key"][:] == [row["key"] for row in expected]
        for sample, row in zip(loaded[split], expected, strict=True):
            assert_ids(sample["codes"], row["codes"])
            assert (sample["label"], sample["tags"]) == (row["label"], row["tags"])
    if name == "levels":
        assert loaded["train"].features["label"].names == ["cat", "dog", "fox"]


# -- NumPy -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tokens", "levels"])
def test_numpy_memory_maps_the_ids(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    dataset = request.getfixturevalue(name)
    done = export(dataset, tmp_path / "out", "npy")
    expected = samples(dataset, "train")
    codes = np.load(tmp_path / "out" / "train.npy", mmap_mode="r", allow_pickle=False)
    assert isinstance(codes, np.memmap)
    assert_ids(codes, np.stack([row["codes"] for row in expected]))
    load = {path.name: np.load(path, allow_pickle=False) for path in (tmp_path / "out").glob("train.*.npy")}
    assert load["train.keys.npy"].tolist() == [row["key"] for row in expected]
    assert load["train.label.npy"].tolist() == [row["label"] for row in expected]
    assert load["train.split.npy"].tolist() == ["train"] * len(expected)
    assert "tags" in done.left_out
    assert not (tmp_path / "out" / "train.tags.npy").exists()


def test_numpy_loads_the_archive(tokens: Dataset, tmp_path: Path) -> None:
    export(tokens, tmp_path / "out", "npz", columns=["label"])
    expected = samples(tokens, "test")
    with np.load(tmp_path / "out" / "test.npz", allow_pickle=False) as arrays:
        assert set(arrays.files) == {"codes", "keys", "label", "height", "width"}
        assert_ids(arrays["codes"], np.stack([row["codes"] for row in expected]))
        assert arrays["keys"].tolist() == [row["key"] for row in expected]


def test_arrays_hold_no_grids_of_different_sizes(ragged: Dataset, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="token grids of different sizes, which no array holds; export to parquet"):
        export(ragged, tmp_path / "out", "npy")
    assert not (tmp_path / "out").exists()


# -- MosaicML streaming, LitData ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tokens", "ragged", "levels"])
def test_mosaic_streaming_reads_its_shards(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    streaming = mosaic_streaming()
    dataset = request.getfixturevalue(name)
    columns = None if name == "tokens" else ["label", "split", "tags"]
    export(dataset, tmp_path / "out", "mds", columns=columns, options={"shard_bytes": "4KiB"})
    expected = samples(dataset, "train")
    found = streaming.LocalDataset(str(tmp_path / "out" / "train"))
    assert len(found) == len(expected)
    for number, row in enumerate(expected):
        sample = found[number]
        assert_ids(sample["codes"], row["codes"])
        assert sample["codes"].dtype == row["codes"].dtype
        assert {name: sample[name] for name in ("key", "label", "tags")} == {
            n: row[n] for n in ("key", "label", "tags")
        }
    assert len(list((tmp_path / "out" / "train").glob("*.mds"))) > (name == "tokens")


@pytest.mark.parametrize("name", ["tokens", "ragged", "levels"])
def test_litdata_streams_its_chunks(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    litdata = library("litdata")
    dataset = request.getfixturevalue(name)
    export(dataset, tmp_path / "out", "litdata", columns=["label", "split", "tags"], options={"shard_bytes": "4KiB"})
    expected = samples(dataset, "train")
    found = list(litdata.StreamingDataset(str(tmp_path / "out" / "train"), shuffle=False))
    assert len(found) == len(expected)
    for sample, row in zip(found, expected, strict=True):
        assert_ids(sample["codes"], row["codes"])
        assert (sample["key"], sample["label"], json.loads(sample["tags"])) == (row["key"], row["label"], row["tags"])


def test_a_missing_library_is_named_with_its_remedy(
    tokens: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, format, package in (
        ("streaming", "mds", "mosaicml-streaming"),
        ("litdata.streaming.writer", "litdata", "litdata"),
    ):
        monkeypatch.setitem(__import__("sys").modules, module, None)
        with pytest.raises(SpecError, match=f"cannot be imported .*pip install {package}"):
            export(tokens, tmp_path / "out", format)
    assert not (tmp_path / "out").exists()


# -- Megatron-LM -------------------------------------------------------------------------------------------------------


def read_megatron(prefix: Path) -> list[NDArray[Any]]:
    """The documents of an indexed dataset, by its published layout."""
    index = prefix.with_suffix(".idx").read_bytes()
    assert index[:9] == b"MMIDIDX\x00\x00"
    version, code, sequences, documents = struct.unpack_from("<QBQQ", index, 9)
    assert (version, documents) == (1, sequences + 1)
    lengths = np.frombuffer(index, "<i4", sequences, 34)
    pointers = np.frombuffer(index, "<i8", sequences, 34 + 4 * sequences)
    bounds = np.frombuffer(index, "<i8", documents, 34 + 12 * sequences)
    assert 34 + 12 * sequences + 8 * documents == len(index)
    data, dtype = prefix.with_suffix(".bin").read_bytes(), {4: "<i4", 8: "<u2"}[code]
    flat = [np.frombuffer(data, dtype, n, start) for n, start in zip(lengths.tolist(), pointers.tolist(), strict=True)]
    return [np.concatenate(flat[a:b]) for a, b in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)]


@pytest.mark.parametrize("name", ["tokens", "ragged", "levels"])
def test_megatron_finds_each_sample_as_a_document(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    dataset = request.getfixturevalue(name)
    export(dataset, tmp_path / "out", "megatron")
    expected = samples(dataset, "train")
    found = read_megatron(tmp_path / "out" / "train")
    assert len(found) == len(expected)
    for document, row in zip(found, expected, strict=True):
        assert_ids(document, row["codes"].ravel())
    table = pl.read_parquet(tmp_path / "out" / "train.columns.parquet")
    assert table["key"].to_list() == [row["key"] for row in expected]


def test_megatron_gets_32_bits_for_ids_above_65535(
    make_rows: Callable[..., Any], make_dataset: Callable[..., Store], tmp_path: Path
) -> None:
    dataset = open_dataset(make_dataset(make_rows(9, alphabet=100_000)).root)
    export(dataset, tmp_path / "out", "megatron", split="train")
    found = read_megatron(tmp_path / "out" / "train")
    assert max(int(document.max()) for document in found) > 65_535
    for document, row in zip(found, samples(dataset, "train"), strict=True):
        assert_ids(document, row["codes"].ravel())


# -- SeiT --------------------------------------------------------------------------------------------------------------


def read_seit(folder: Path, split: str) -> tuple[list[list[int]], list[int]]:
    """Ids and labels as a trainer of SeiT takes them from its files: byte by byte, 255 added where it stands."""
    stream = gzip.decompress((folder / f"{split}-token.data.bin.gz").read_bytes())
    starts = np.load(io.BytesIO(gzip.decompress((folder / f"{split}-token.index.npy.gz").read_bytes())))
    labels = [int(line) for line in (folder / f"{split}-label.txt").read_text().splitlines()]
    found = []
    for start, end in itertools.pairwise(starts):
        ids, more = [], 0
        for byte in stream[start:end]:
            if byte == 255:
                more = 255
            else:
                ids.append(byte + more)
                more = 0
        found.append(ids)
    return found, labels


@pytest.fixture
def seit_set(tmp_path: Path) -> Dataset:
    """20 samples of 6 x 6 ids below 510, every id among them, with a codebook."""
    rng = np.random.default_rng(0)
    ids = np.concatenate([np.arange(510), rng.integers(0, 510, 20 * 36 - 510)])
    codebook = rng.normal(size=(510, 8)).astype(np.float32)
    import_arrays(tmp_path, list(ids.reshape(20, 1, 6, 6)), source={"alphabet": 510}, codebook=codebook)
    return open_dataset(tmp_path / "tokens")


def test_seit_reads_every_id_up_to_509_and_the_labels(seit_set: Dataset, tmp_path: Path) -> None:
    export(seit_set, tmp_path / "out", "seit")
    for split in ("train", "test"):
        ids, labels = read_seit(tmp_path / "out", split)
        expected = samples(seit_set, split)
        assert ids == [row["codes"].ravel().tolist() for row in expected]
        assert labels == [row["label"] for row in expected]


def test_seit_loads_codebook_and_synonyms(seit_set: Dataset, tmp_path: Path) -> None:
    export(seit_set, tmp_path / "out", "seit")
    codebook = torch.load(tmp_path / "out" / "codebook.ckpt", weights_only=True)
    assert codebook.dtype == torch.float32
    np.testing.assert_array_equal(codebook.numpy(), seit_set_codebook(seit_set))
    synonyms = json.loads((tmp_path / "out" / "synonyms.json").read_text())
    unit = torch.nn.functional.normalize(codebook, dim=1)
    similar = unit @ unit.T
    assert list(synonyms) == [str(code) for code in range(510)]
    for code in (0, 17, 509):
        row = similar[code].clone()
        row[code] = -1
        assert synonyms[str(code)] == row.topk(10).indices.tolist()


def seit_set_codebook(dataset: Dataset) -> NDArray[Any]:
    return load(dataset.tokenizer_files()[1])["codebook"]


def test_seit_refuses_an_id_of_510_and_names_the_sample(tmp_path: Path) -> None:
    codes = [np.full((1, 4, 4), 7), np.full((1, 4, 4), 510)]
    import_arrays(tmp_path, codes, source={"alphabet": 511})
    with pytest.raises(
        SpecError, match="sample 's00001' has the id 510; SeiT files hold ids up to 509: use a tokenizer"
    ):
        export(open_dataset(tmp_path / "tokens"), tmp_path / "out", "seit")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["ragged", "levels"])
def test_seit_refuses_what_is_not_one_square_grid(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="one square token grid that all samples share"):
        export(request.getfixturevalue(name), tmp_path / "out", "seit")


def test_seit_refuses_samples_without_labels(tokens: Dataset, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="there is no label column"):
        export(tokens, tmp_path / "out", "seit", columns=["caption"])


@pytest.mark.parametrize(("ids", "data"), [([0, 254], [0, 254]), ([255, 509, 1], [255, 0, 255, 254, 1]), ([], [])])
def test_the_bytes_of_ids_are_those_of_the_description(ids: list[int], data: list[int]) -> None:
    assert seit_bytes(np.array(ids, np.uint16)).tolist() == data
