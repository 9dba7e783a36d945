"""Ready vectors of pages are found in arrays and tables, and what is none becomes a reject or an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from tokenshard.errors import SpecError
from tokenshard.sources.base import Reject, Sample
from tokenshard.sources.vectors.open import open_vector_source
from tokenshard.spec.documents import VectorSourceSpec

PAGES = [np.random.default_rng(n).standard_normal((3 + n, 8)).astype(np.float32) for n in range(5)]


def read(path: Path | str, **fields: Any) -> list[Sample | Reject]:
    """As the engine does: planned by one source, read by another."""
    spec = VectorSourceSpec(path=str(path), **fields)
    source = open_vector_source(spec)
    plans = list(source.plan())
    other = open_vector_source(spec, None, source.state())
    return [thunk() for plan in plans for thunk in other.read(pa.Table.from_batches([plan]))]


def samples(found: list[Sample | Reject]) -> dict[str, Sample]:
    assert all(isinstance(item, Sample) for item in found), found
    return {item.key: item for item in found if isinstance(item, Sample)}


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8"])
def test_each_array_file_is_a_page(dtype: str, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for number, page in enumerate(PAGES):
        np.save(tmp_path / "a" / f"{number}.npy", page.astype(dtype))
    found = samples(read(tmp_path))
    assert list(found) == [f"a/{number}" for number in range(5)]
    for number, page in enumerate(PAGES):
        sample = found[f"a/{number}"]
        assert (sample.data.dtype, sample.columns["document"]) == (np.float32, f"a/{number}")
        np.testing.assert_array_equal(sample.data, page.astype(dtype).astype(np.float32))


def test_an_array_of_three_axes_holds_many_pages(tmp_path: Path) -> None:
    np.save(tmp_path / "book.npy", np.stack([page[:3] for page in PAGES]))
    found = samples(read(tmp_path / "book.npy"))
    assert list(found) == [f"book#{page}" for page in range(1, 6)]
    assert [sample.columns for sample in found.values()] == [{"document": "book", "page": n} for n in range(1, 6)]
    np.testing.assert_array_equal(found["book#4"].data, PAGES[3][:3])


def test_tensors_are_pages_in_half_precision_of_both_kinds(tmp_path: Path) -> None:
    tensors = {f"p{n}": torch.from_numpy(page) for n, page in enumerate(PAGES)}
    save_file({**tensors, "half": tensors["p0"].half(), "brain": tensors["p0"].bfloat16()}, tmp_path / "v.safetensors")
    found = samples(read(tmp_path / "v.safetensors"))
    assert found.keys() == {"p0", "p1", "p2", "p3", "p4", "half", "brain"}
    np.testing.assert_array_equal(found["p3"].data, PAGES[3])
    np.testing.assert_array_equal(found["brain"].data, tensors["p0"].bfloat16().float().numpy())
    (tmp_path / "more").mkdir()
    save_file(tensors, tmp_path / "more" / "w.safetensors")
    assert "more/w/p0" in samples(read(tmp_path))


@pytest.mark.parametrize("inner", [pa.list_(pa.float16(), 8), pa.list_(pa.float32()), pa.large_list(pa.float64())])
def test_a_row_of_a_table_is_a_page_and_its_columns_go_along(inner: pa.DataType, tmp_path: Path) -> None:
    kind = np.dtype(inner.value_type.to_pandas_dtype())
    rows = [list(page.astype(kind)) for page in PAGES]
    table = pa.table(
        {
            "id": [f"row{n}" for n in range(5)],
            "year": [2000 + n for n in range(5)],
            "vectors": pa.array(rows, pa.list_(inner)),
        }
    )
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=2)
    with pa.OSFile(str(tmp_path / "t.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    for name in ("t.parquet", "t.arrow"):
        found = samples(read(tmp_path / name, key_column="id"))
        assert list(found) == [f"row{n}" for n in range(5)]
        assert found["row2"].columns == {"document": "row2", "page": None, "year": 2002}
        for number, page in enumerate(PAGES):
            np.testing.assert_array_equal(found[f"row{number}"].data, page.astype(kind).astype(np.float32))


def test_rows_without_vectors_or_with_uneven_ones_are_rejected(tmp_path: Path) -> None:
    rows = [[[1.0, 2.0]], None, [[1.0], [2.0, 3.0]], [[None, 1.0]], []]
    pq.write_table(pa.table({"v": pa.array(rows, pa.list_(pa.list_(pa.float32())))}), tmp_path / "t.parquet")
    found = read(tmp_path / "t.parquet")
    assert [item.message.partition(": ")[2] for item in found if isinstance(item, Reject)] == [
        "no vectors",
        "vectors of 1 and of 2 dimensions",
        "vectors with missing values",
    ]
    assert [item.data.shape for item in found if isinstance(item, Sample)] == [(1, 2), (0, 0)]


def test_arrays_that_are_no_vectors_are_rejected(tmp_path: Path) -> None:
    np.save(tmp_path / "good.npy", PAGES[0])
    np.save(tmp_path / "flat.npy", PAGES[0].ravel())
    np.save(tmp_path / "ids.npy", np.zeros((3, 8), np.int64))
    np.save(tmp_path / "objects.npy", np.array([[{}, 1]], object))
    np.save(tmp_path / "backwards.npy", np.asfortranarray(PAGES[0]))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "good.npy").read_bytes()[:-5])
    (tmp_path / "text.npy").write_bytes(b"no array")
    (tmp_path / "bad.safetensors").write_bytes(b"\xff" * 64)
    header = b'{"x":{"dtype":"F32","shape":[9,9],"data_offsets":[0,8]}}'
    (tmp_path / "lies.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    found = read(tmp_path)
    wrong = {item.key.partition(".")[0]: item.message for item in found if isinstance(item, Reject)}
    assert [item.key for item in found if isinstance(item, Sample)] == ["good"]
    for name, reason in {
        "flat": "vectors are floats",
        "ids": "vectors are floats",
        "objects": "vectors are floats",
        "backwards": "Fortran order",
        "cut": "do not hold an array",
        "text": "not an array of NumPy",
        "bad": "not a safetensors file",
        "lies": "do not fit its shape",
    }.items():
        assert reason in wrong[name], (name, wrong)


def test_what_holds_no_vectors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no such file"):
        read(tmp_path / "none")
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(SpecError, match="no vectors found; they are in"):
        read(tmp_path)
    pq.write_table(pa.table({"a": [1]}), tmp_path / "t.parquet")
    with pytest.raises(SpecError, match="cannot tell which column"):
        read(tmp_path)
