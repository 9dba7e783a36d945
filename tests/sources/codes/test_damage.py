"""Whatever is in the files: an error of ours that names the file, a reject, or a sample; never anything else."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import random
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from engine.arrays import import_arrays
from foreign import library, mosaic_streaming
from sources.codes.importing import imported, read_source
from tokenshard.api import open_dataset
from tokenshard.errors import FormatError, SpecError, TokenshardError
from tokenshard.shards.dataset import Dataset
from tokenshard.shards.export.registry import EXPORTERS, export
from tokenshard.sources.base import Reject, Sample

MUTATIONS = 40


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("dataset")
    codes = np.random.default_rng(0).integers(0, 300, (20, 1, 6, 6))
    import_arrays(folder, list(codes), codebook=np.eye(300, 4, dtype=np.float32), source={"alphabet": 300})
    return open_dataset(str(folder / "tokens"))


def mutated(data: bytes, draw: random.Random) -> bytes:
    kind = draw.randrange(4)
    if kind == 0:
        return data[: draw.randrange(len(data))]
    if kind == 1:
        return data + draw.randbytes(draw.randrange(1, 50))
    changed = bytearray(data)
    for _ in range(draw.choice([1, 1, 4, 30])):
        place = draw.randrange(min(len(data), 400) if kind == 2 else len(data))  # headers, or anywhere
        changed[place] = draw.choice([0, 255, draw.randrange(256), changed[place] ^ 1])
    return bytes(changed)


@pytest.mark.parametrize("described", [True, False])
@pytest.mark.parametrize("format", list(EXPORTERS))
def test_damaged_files_never_surprise(format: str, described: bool, dataset: Dataset, tmp_path: Path) -> None:
    if format == "mds":
        mosaic_streaming()
    if format == "litdata":
        library("litdata")
    export(dataset, tmp_path / "out", format, columns=["label", "split", "tags"])
    names = [path for path in sorted((tmp_path / "out").rglob("*")) if path.is_file() and "tokenizer" not in path.parts]
    if not described:
        names.remove(tmp_path / "out" / "tokenshard.json")
        (tmp_path / "out" / "tokenshard.json").unlink()
    draw, outcomes = random.Random(0), set()
    for path in names:
        data = path.read_bytes()
        for _ in range(max(4, MUTATIONS // len(names))):
            path.write_bytes(mutated(data, draw))
            try:
                source, samples = read_source(tmp_path / "out", format)
                assert source.layout().alphabets
                assert all(isinstance(sample, Sample | Reject) for sample in samples)
                outcomes.add("read")
            except TokenshardError as error:
                outcomes.add("refused" if str(tmp_path / "out") in str(error) else f"names no file: {error}")
        path.write_bytes(data)
    assert "refused" in outcomes
    assert outcomes <= {"read", "refused"}


# -- what is said about it ---------------------------------------------------------------------------------------------


def refused(path: Path, format: str, message: str, **options: Any) -> None:
    with pytest.raises((FormatError, SpecError), match=message) as caught:
        read_source(path, format, **options)
    assert str(path) in str(caught.value)


def test_an_empty_folder_says_what_was_looked_for(tmp_path: Path) -> None:
    for format, what in (
        ("parquet", "no .parquet files found"),
        ("hf", "no .parquet or .arrow files found"),
        ("webdataset", "no .tar files found"),
        ("npy", "no .npy files found"),
        ("npz", "no .npz files found"),
        ("mds", "no index.json found"),
        ("litdata", "no index.json found"),
        ("megatron", "no .idx files found"),
        ("seit", "no files …token.data.bin.gz found"),
    ):
        (tmp_path / format).mkdir()
        refused(tmp_path / format, format, f"{what}; check the path")


def test_arrays_that_would_have_to_be_unpickled_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{"x": 1}], dtype=object), allow_pickle=True)
    refused(tmp_path / "a.npy", "npy", "an array of object; save numbers or text")
    (tmp_path / "b.npy").write_bytes(pickle.dumps(np.zeros(3)))
    refused(tmp_path / "b.npy", "npy", "no readable NumPy array")


def test_sizes_in_headers_are_checked_before_memory_is_taken(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<u2", "fortran_order": False, "shape": (1 << 40, 16, 16)})
    (tmp_path / "a.npy").write_bytes(header.getvalue() + bytes(100))
    refused(tmp_path / "a.npy", "npy", r"do not fit an array of uint16 and shape \[1099511627776, 16, 16\]")

    (tmp_path / "b.idx").write_bytes(b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, 1 << 50, 1))
    (tmp_path / "b.bin").write_bytes(b"")
    refused(tmp_path / "b.idx", "megatron", "are too few for 1125899906842624 sequences")

    folder = tmp_path / "c"
    folder.mkdir()
    column = {"column_names": ["codes"], "column_encodings": ["ndarray"], "column_sizes": [None]}
    shard = {"format": "mds", "samples": 1 << 30, "raw_data": {"basename": "shard.mds"}, **column}
    (folder / "index.json").write_text(json.dumps({"shards": [shard]}))
    (folder / "shard.mds").write_bytes(struct.pack("<I", 1 << 30))
    refused(folder, "mds", "1073741824 samples, the index says 1073741824|the file is cut off")

    folder = tmp_path / "d"
    folder.mkdir()
    (folder / "train-token.data.bin.gz").write_bytes(gzip.compress(b"\0"))
    (folder / "train-token.index.npy.gz").write_bytes(gzip.compress(header.getvalue()))
    refused(folder, "seit", r"no readable index \(an array of uint16 and shape")


def test_paths_in_an_index_do_not_leave_the_folder(tmp_path: Path) -> None:
    column = {"column_names": ["codes"], "column_encodings": ["ndarray"], "column_sizes": [None]}
    for name in ("../secret", "/etc/passwd", "a/../../b"):
        shard = {"format": "mds", "samples": 1, "raw_data": {"basename": name}, **column}
        (tmp_path / "index.json").write_text(json.dumps({"shards": [shard]}))
        with pytest.raises(FormatError, match="its path leaves the folder"):
            read_source(tmp_path, "mds")


def test_a_codebook_that_is_a_pickle_is_refused_unread(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return (__import__("os").mkdir, (str(tmp_path / "pwned"),))

    (tmp_path / "train-token.data.bin.gz").write_bytes(gzip.compress(bytes(4)))
    index = io.BytesIO()
    np.save(index, np.array([0, 4]))
    (tmp_path / "train-token.index.npy.gz").write_bytes(gzip.compress(index.getvalue()))
    torch.save({"codebook": Evil()}, tmp_path / "codebook.ckpt")
    refused(tmp_path, "seit", r"not a tensor that torch.load\(weights_only=True\) reads")
    assert not (tmp_path / "pwned").exists()


def test_bad_samples_are_rejects_and_the_others_are_imported(tmp_path: Path) -> None:
    rows = [[[1, 2], [3, 4]], [[1, 2], [3]], None, [[5, 6], [7, 8]], [[1], [2]]]
    pq.write_table(pa.table({"codes": rows, "key": list("abcde")}), tmp_path / "t.parquet")
    with pytest.raises(TokenshardError, match="2 of 5 inputs were rejected"):
        imported(tmp_path / "t.parquet", "parquet", tmp_path / "x")
    found = imported(tmp_path / "t.parquet", "parquet", tmp_path / "tokens", max_rejects=1)
    assert [found[n]["key"] for n in range(len(found))] == ["a", "d", "e"]
    (entry,) = found.manifest.rejects
    reasons = {row["key"]: row["message"] for row in pq.read_table(tmp_path / "tokens" / entry.path).to_pylist()}
    assert set(reasons) == {"b", "c"}
    assert "lists of different lengths: not a token grid" in reasons["b"]
    assert "no ids in this row" in reasons["c"]


def test_a_seit_sample_whose_escape_stands_alone_is_a_reject(tmp_path: Path) -> None:
    pieces = [bytes([1, 2, 3, 4]), bytes([1, 2, 3, 255]), bytes([255, 255, 1, 2, 3]), bytes([255, 0, 1, 2, 255, 9])]
    (tmp_path / "train-token.data.bin.gz").write_bytes(gzip.compress(b"".join(pieces)))
    index = io.BytesIO()
    np.save(index, np.cumsum([0, *map(len, pieces)]))
    (tmp_path / "train-token.index.npy.gz").write_bytes(gzip.compress(index.getvalue()))
    _, samples = read_source(tmp_path, "seit")
    assert [isinstance(sample, Reject) for sample in samples] == [False, True, True, False]
    assert isinstance(samples[3], Sample)
    assert samples[3].data.tolist() == [[[255, 1], [2, 264]]]


def test_values_and_keys_that_no_column_can_hold_are_rejects(dataset: Dataset, tmp_path: Path) -> None:
    export(dataset, tmp_path / "out", "webdataset", columns=["serial"], split="test")
    (name,) = (tmp_path / "out").glob("*.tar")
    with tarfile.open(name) as archive:
        members = [(info.name, archive.extractfile(info).read()) for info in archive.getmembers()]  # type: ignore[union-attr]
    with tarfile.open(name, "w") as archive:
        for number, (member, data) in enumerate(members):
            if member.endswith(".json"):
                row = {**json.loads(data), **{1: {"serial": 1 << 40}, 3: {"key": "\ud800"}}.get(number, {})}
                data = json.dumps(row).encode()
            info = tarfile.TarInfo(member)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    _, samples = read_source(tmp_path / "out", "webdataset")
    messages = [sample.message if isinstance(sample, Reject) else "" for sample in samples]
    assert "'1099511627776' in column 'serial' is no int32" in messages[0]
    assert "the key is not Unicode text" in messages[1]
    assert not any(messages[2:])


def test_negative_ids_and_ids_outside_the_alphabet_are_rejects(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[1, 2], [-1, 3], [9, 4]]))
    with pytest.raises(TokenshardError, match="2 of 3 inputs were rejected"):
        imported(tmp_path / "a.npy", "npy", tmp_path / "tokens", alphabet=9)


def test_an_archive_with_a_zip_bomb_is_read_only_as_far_as_its_header_allows(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "<u2", "fortran_order": False, "shape": (4, 2)})
        archive.writestr("codes.npy", header.getvalue() + bytes(50_000_000))
    refused(tmp_path / "a.npz", "npz", "50000128 bytes do not fit an array of uint16 and shape")
