"""Dataset -> export -> import gives the dataset back: ids, keys, labels, columns, splits, sizes, tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from engine.arrays import import_arrays
from foreign import library, mosaic_streaming
from sources.codes.importing import imported, read_source
from tokenshard.api import open_dataset
from tokenshard.shards.dataset import Dataset
from tokenshard.shards.export.registry import EXPORTERS, export
from tokenshard.sources.base import Sample

JSON_COLUMNS = ("label", "split", "tags", "serial")
"""All columns but the timestamps, which JSON cannot hold."""
LEFT_OUT = {"npy": {"tags", "taken"}, "npz": {"tags", "taken"}}


def grids(kind: str) -> tuple[list[NDArray[np.int64]], dict[str, Any]]:
    """Codes [levels, *grid] of 24 samples, and what else is said of them."""
    rng = np.random.default_rng(0)

    def ids(*shape: int, alphabet: int = 256) -> NDArray[np.int64]:
        return rng.integers(0, alphabet, shape)

    if kind == "square":
        return [ids(1, 6, 6) for _ in range(24)], {
            "sizes": np.tile([24, 22], (24, 1)),
            "codebook": np.eye(256, dtype="f4"),
        }
    if kind == "levels":
        return [ids(3, 4, 5) for _ in range(24)], {}
    if kind == "ragged":
        sizes = rng.integers(4, 30, (24, 2))
        return [ids(1, -(-height // 4), -(-width // 4)) for height, width in sizes], {"sizes": sizes}
    if kind == "video":
        return [ids(1, 2, 3, 4) for _ in range(24)], {}
    if kind == "sequence":
        return [ids(1, int(length)) for length in rng.integers(1, 40, 24)], {}
    return [ids(1, 5, 5, alphabet=100_000) for _ in range(24)], {"source": {"alphabet": 100_000}}


CANNOT = {
    "ragged": {"npy", "npz", "seit"},
    "sequence": {"npy", "npz", "seit"},
    "levels": {"seit"},
    "video": {"seit"},
    "large": {"seit"},
}
"""What formats cannot hold is refused; the tests of exports say how."""
CASES = [
    (kind, format)
    for kind in ("square", "levels", "ragged", "video", "sequence", "large")
    for format in EXPORTERS
    if format not in CANNOT.get(kind, ())
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dataset]:
    found: dict[str, Dataset] = {}
    for kind in dict.fromkeys(kind for kind, _ in CASES):
        folder = tmp_path_factory.mktemp(kind)
        codes, said = grids(kind)
        import_arrays(folder, codes, **said)
        found[kind] = open_dataset(str(folder / "tokens"))
    return found


def exported(dataset: Dataset, format: str, out: Path) -> set[str]:
    """Exports it; the names of the columns that do not come back."""
    if format == "mds":
        mosaic_streaming()
    if format == "litdata":
        library("litdata")
    as_json = format in {"webdataset", "mds", "litdata"}
    done = export(dataset, out, format, columns=JSON_COLUMNS if as_json else None)
    assert set(done.left_out) == LEFT_OUT.get(format, set())
    return set(done.left_out) | ({"taken"} if as_json else set())


@pytest.mark.parametrize("format", list(EXPORTERS))
def test_a_dataset_comes_back(format: str, made: Mapping[str, Dataset], tmp_path: Path) -> None:
    dataset = made["square"]
    left_out = exported(dataset, format, tmp_path / "out")
    back = imported(tmp_path / "out", format, tmp_path / "back")
    old, new = dataset.manifest, back.manifest
    assert (new.kind, new.code.grid, new.splits) == (old.kind, old.code.grid, old.splits)
    assert [level.alphabet for level in new.code.levels] == [level.alphabet for level in old.code.levels]
    assert new.tokenizer == old.tokenizer
    assert back.tokenizer_files() == dataset.tokenizer_files()
    assert back.reader(0).columns.extents == dataset.reader(0).columns.extents
    columns = {c.name: c for c in old.columns if c.role in {"label", "metadata"} and c.name not in left_out}
    assert {c.name: c for c in new.columns if c.role in {"label", "metadata"}} == columns
    assert len(back) == len(dataset)
    for number in range(len(dataset)):
        before = dataset[number]
        after = back[back.index(before["key"])]
        np.testing.assert_array_equal(after.pop("codes"), before.pop("codes"))
        assert after == {name: value for name, value in before.items() if name not in left_out}


@pytest.mark.parametrize(("kind", "format"), [case for case in CASES if case[0] != "square"])
def test_grids_of_every_kind_come_back(kind: str, format: str, made: Mapping[str, Dataset], tmp_path: Path) -> None:
    dataset = made[kind]
    left_out = exported(dataset, format, tmp_path / "out")
    source, samples = read_source(tmp_path / "out", format)
    layout, columns = source.layout(), dataset.reader(0).columns
    assert layout.alphabets == tuple(level.alphabet for level in dataset.manifest.code.levels)
    assert (layout.grid, layout.extents, layout.downsample) == (
        dataset.manifest.code.grid,
        columns.extents,
        columns.downsample,
    )
    assert len(samples) == len(dataset)
    names = [c.name for c in dataset.manifest.columns if c.role in {"label", "metadata"} and c.name not in left_out]
    for sample in samples:
        assert isinstance(sample, Sample)
        before = dataset[dataset.index(sample.key)]
        np.testing.assert_array_equal(sample.data if kind == "levels" else sample.data[0], before["codes"])
        assert sample.size == (tuple(before[name] for name in columns.extents) or None)
        values = {n: v.as_py() if isinstance(v, pa.Scalar) else v for n, v in sample.columns.items()}
        assert values == {name: before[name] for name in names}


@pytest.mark.parametrize("format", ["parquet", "webdataset", "npy", "npz", "hf", "megatron", "seit"])
def test_what_came_back_exports_to_the_same_bytes(format: str, made: Mapping[str, Dataset], tmp_path: Path) -> None:
    columns = {"columns": JSON_COLUMNS} if format == "webdataset" else {}
    export(made["square"], tmp_path / "a", format, **columns)
    back = imported(tmp_path / "a", format, tmp_path / "back")
    export(back, tmp_path / "b", format, **columns)
    for path in sorted((tmp_path / "a").rglob("*")):
        if path.is_file() and path.name != "tokenshard.json":  # names the dataset it was made of
            assert (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes() == path.read_bytes(), path.name


@pytest.mark.integration
@pytest.mark.parametrize("format", ["webdataset", "npz", "seit"])
def test_an_export_on_s3_is_imported_from_there(
    format: str, made: Mapping[str, Dataset], tmp_path: Path, s3_url: str
) -> None:
    columns = {"columns": JSON_COLUMNS} if format == "webdataset" else {}
    export(made["square"], s3_url, format, **columns)
    back = imported(s3_url, format, tmp_path / "back")
    for number in range(0, 24, 7):
        before = made["square"][number]
        after = back[back.index(before["key"])]
        np.testing.assert_array_equal(after["codes"], before["codes"])
        assert after["label"] == before["label"]
