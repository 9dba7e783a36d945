"""Files that other programs wrote, with nothing of ours beside them: ids, keys, labels and alphabets are found."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import webdataset as wds
from numpy.typing import NDArray

from foreign import library, mosaic_streaming
from sources.codes.importing import imported, read_source
from tokenshard.errors import SpecError
from tokenshard.shards.export.registry import export
from tokenshard.sources.base import Reject, Sample

COUNT, ALPHABET = 40, 391
LABELS = [n % 3 for n in range(COUNT)]
NAMES = ["cat", "dog", "fox"]


@pytest.fixture
def ids() -> NDArray[np.uint16]:
    """uint16 [40, 6, 6] below 391."""
    found = np.random.default_rng(0).integers(0, ALPHABET, (COUNT, 6, 6)).astype(np.uint16)
    found[0, 0, 0] = ALPHABET - 1
    return found


def table_of(ids: NDArray[Any], **columns: Any) -> pa.Table:
    return pa.table({"codes": ids.tolist(), **columns})


# -- Parquet, Hugging Face ---------------------------------------------------------------------------------------------


def test_parquet_with_nested_lists_and_class_names_in_a_text_column(ids: NDArray[np.uint16], tmp_path: Path) -> None:
    label = [NAMES[n] for n in LABELS]
    for part in range(2):
        half = slice(part * 20, part * 20 + 20)
        table = table_of(ids[half], label=label[half], note=[f"n{n}" for n in range(20)])
        pq.write_table(table, tmp_path / f"part-{part}.parquet", row_group_size=7)
    found = imported(tmp_path, "parquet", tmp_path / "tokens")
    np.testing.assert_array_equal(found.codes(range(COUNT)), ids)
    assert found.manifest.code.levels[0].alphabet == ALPHABET
    assert found[25]["key"] == "part-1.parquet/00000005"
    assert found.table(["label"])["label"].to_pylist() == LABELS
    (column,) = [column for column in found.manifest.columns if column.name == "label"]
    assert column.names == tuple(NAMES)


def test_parquet_with_flat_lists_takes_the_grid_and_the_columns_it_is_told(
    ids: NDArray[np.uint16], tmp_path: Path
) -> None:
    flat = ids.reshape(COUNT, -1)
    table = pa.table({"a": flat.tolist(), "b": flat.tolist(), "name": [f"k{n}" for n in range(COUNT)], "class": LABELS})
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(SpecError, match=r"cannot tell which column holds the ids: .* a, b; name one with `column`"):
        imported(tmp_path / "t.parquet", "parquet", tmp_path / "tokens")
    with pytest.raises(SpecError, match="no column 'c'; it has a, b, name, class"):
        imported(tmp_path / "t.parquet", "parquet", tmp_path / "tokens", column="c")
    found = imported(
        tmp_path / "t.parquet",
        "parquet",
        tmp_path / "tokens",
        column="b",
        key_column="name",
        labels="class",
        grid=[6, 6],
        alphabet=1024,
        modality="image",
    )
    np.testing.assert_array_equal(found.codes(range(COUNT)), ids)
    assert (found.manifest.kind, found.manifest.code.levels[0].alphabet) == ("image", 1024)
    assert (found[3]["key"], found[3]["class"]) == ("k3", 0)


def test_a_folder_that_datasets_saved_to_disk(ids: NDArray[np.uint16], tmp_path: Path) -> None:
    datasets = library("datasets")
    features = datasets.Features(
        {"codes": datasets.Array2D((6, 6), "uint16"), "label": datasets.ClassLabel(names=NAMES)}
    )
    made = datasets.Dataset.from_dict({"codes": ids, "label": LABELS}, features=features)
    datasets.DatasetDict({"train": made}).save_to_disk(str(tmp_path / "disk"))
    found = imported(tmp_path / "disk", "hf", tmp_path / "tokens")
    np.testing.assert_array_equal(found.codes(range(COUNT)), ids)
    assert found.table(["label"])["label"].to_pylist() == LABELS
    assert next(c.names for c in found.manifest.columns if c.name == "label") == tuple(NAMES)
    assert found.manifest.splits == {"train": COUNT}


# -- WebDataset --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extension", ["tar", "tar.gz"])
def test_tars_that_webdataset_wrote(extension: str, ids: NDArray[np.uint16], tmp_path: Path) -> None:
    with wds.TarWriter(str(tmp_path / f"a.{extension}")) as writer:
        for number, (codes, label) in enumerate(zip(ids, LABELS, strict=True)):
            note = {"json": {"n": number}} if number else {}
            writer.write({"__key__": f"x/{number:03d}", "npy": codes, "cls": label, **note})
    found = imported(tmp_path, "webdataset", tmp_path / "tokens")
    np.testing.assert_array_equal(found.codes(range(COUNT)), ids)
    assert found[7]["key"] == "x/007"
    assert found.table(["label"])["label"].to_pylist() == LABELS
    assert found.table(["json"])["json"].to_pylist() == [None, *(json.dumps({"n": n}) for n in range(1, COUNT))]


def test_tars_with_text_labels_in_a_member_of_another_name(ids: NDArray[np.uint16], tmp_path: Path) -> None:
    with wds.TarWriter(str(tmp_path / "a.tar")) as writer:
        for number, (codes, label) in enumerate(zip(ids, LABELS, strict=True)):
            writer.write({"__key__": f"{number:03d}", "codes.npy": codes, "x.npy": codes[0], "txt": NAMES[label]})
    found = imported(tmp_path, "webdataset", tmp_path / "tokens", column="codes.npy", labels="txt")
    np.testing.assert_array_equal(found.codes(range(COUNT)), ids)
    assert found.table(["txt"])["txt"].to_pylist() == LABELS
    assert next(c.names for c in found.manifest.columns if c.name == "txt") == tuple(NAMES)


def test_a_label_that_is_no_number_among_numbers_is_a_reject(ids: NDArray[np.uint16], tmp_path: Path) -> None:
    with wds.TarWriter(str(tmp_path / "a.tar")) as writer:
        for number, label in enumerate(["3", "4", "cat", "5"]):
            writer.write({"__key__": f"{number:03d}", "npy": ids[number], "cls": label.encode()})
    _, samples = read_source(tmp_path / "a.tar", "webdataset")
    assert [sample.columns["label"] for sample in samples if isinstance(sample, Sample)] == [3, 4, 5]
    assert isinstance(samples[2], Reject)
    assert "the label 'cat' is no whole number, as others are" in samples[2].message


# -- NumPy -------------------------------------------------------------------------------------------------------------


def test_one_npy_file_and_arrays_beside_it(ids: NDArray[np.uint16], tmp_path: Path) -> None:
    np.save(tmp_path / "train.npy", ids.astype(np.int64))
    np.save(tmp_path / "train.label.npy", np.array(LABELS, np.int8))
    found = imported(tmp_path / "train.npy", "npy", tmp_path / "tokens")
    np.testing.assert_array_equal(found.codes(range(COUNT)), ids)
    assert found.table(["label"])["label"].to_pylist() == LABELS
    assert found[39]["key"] == "train.npy/00000039"


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_archive_with_two_levels(save: Any, ids: NDArray[np.uint16], tmp_path: Path) -> None:
    codes = np.stack([ids, ids[::-1]], axis=1)
    save(tmp_path / "all.npz", codes=codes, keys=np.array([f"k{n}" for n in range(COUNT)]), other=np.zeros(3))
    found = imported(tmp_path / "all.npz", "npz", tmp_path / "tokens", alphabet=[400, 500])
    np.testing.assert_array_equal(found.codes(range(COUNT)), codes)
    assert [level.alphabet for level in found.manifest.code.levels] == [400, 500]
    assert found[12]["key"] == "k12"
    assert "other" not in found.schema.names


# -- MosaicML streaming, LitData ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["ndarray", "ndarray:uint16", "ndarray:uint16:6,6"])
def test_shards_that_mosaic_streaming_wrote(encoding: str, ids: NDArray[np.uint16], tmp_path: Path) -> None:
    streaming = mosaic_streaming()
    columns = {"tokens": encoding, "label": "int", "name": "str", "weight": "float32", "more": "json"}
    with streaming.MDSWriter(columns=columns, out=str(tmp_path / "mds"), size_limit=2000) as writer:
        for number, (codes, label) in enumerate(zip(ids, LABELS, strict=True)):
            row = {"tokens": codes, "label": label, "name": f"n{number}", "weight": np.float32(0.5), "more": [number]}
            writer.write(row)
    found = imported(tmp_path / "mds", "mds", tmp_path / "tokens", key_column="name")
    np.testing.assert_array_equal(found.codes(range(COUNT)), ids)
    sample = found[31]
    assert (sample["key"], sample["label"], sample["weight"], sample["more"]) == ("n31", LABELS[31], 0.5, "[31]")


def test_pickled_columns_and_compressed_shards_of_mds_are_refused(ids: NDArray[np.uint16], tmp_path: Path) -> None:
    streaming = mosaic_streaming()
    for name, columns, options in (
        ("pickled", {"codes": "ndarray", "meta": "pkl"}, {}),
        ("packed", {"codes": "ndarray"}, {"compression": "zstd:3"}),
    ):
        with streaming.MDSWriter(columns=columns, out=str(tmp_path / name), **options) as writer:
            writer.write({"codes": ids[0], **({"meta": {"a": 1}} if "meta" in columns else {})})
    with pytest.raises(SpecError, match="a column encoded as pkl, which is not read"):
        imported(tmp_path / "pickled", "mds", tmp_path / "a")
    with pytest.raises(SpecError, match=r"is compressed \(zstd:3\); write the dataset again with compression=None"):
        imported(tmp_path / "packed", "mds", tmp_path / "b")


@pytest.mark.parametrize("flat", [False, True])
def test_chunks_that_litdata_wrote(flat: bool, ids: NDArray[np.uint16], tmp_path: Path) -> None:
    library("litdata")
    from litdata.streaming.writer import BinaryWriter

    (tmp_path / "lit").mkdir()
    writer = BinaryWriter(str(tmp_path / "lit"), chunk_size=15)
    for number, (codes, label) in enumerate(zip(ids, LABELS, strict=True)):
        codes = codes.ravel() if flat else codes
        writer[number] = {"codes": codes, "label": label, "name": f"n{number}", "weight": 0.25, "good": True}
    writer.done()
    writer.merge()
    grid = {"grid": [6, 6]} if flat else {}
    found = imported(tmp_path / "lit", "litdata", tmp_path / "tokens", **grid)
    np.testing.assert_array_equal(found.codes(range(COUNT)), ids)
    sample = found[31]
    assert (sample["label"], sample["name"], sample["weight"], sample["good"]) == (LABELS[31], "n31", 0.25, True)


# -- Megatron-LM -------------------------------------------------------------------------------------------------------


def write_megatron(prefix: Path, sequences: list[NDArray[Any]], code: int, dtype: str) -> None:
    """By the published layout; pairs of sequences make a document."""
    lengths = np.array([len(ids) for ids in sequences], "<i4")
    sizes = lengths.astype(np.int64) * np.dtype(dtype).itemsize
    pointers = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype("<i8")
    documents = np.arange(0, len(sequences) + 1, 2, dtype="<i8")
    header = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, len(sequences), len(documents))
    prefix.with_suffix(".idx").write_bytes(header + lengths.tobytes() + pointers.tobytes() + documents.tobytes())
    prefix.with_suffix(".bin").write_bytes(b"".join(ids.astype(dtype).tobytes() for ids in sequences))


@pytest.mark.parametrize(("code", "dtype"), [(8, "<u2"), (4, "<i4"), (5, "<i8")])
def test_sequences_of_megatron_of_different_lengths(code: int, dtype: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sequences = [rng.integers(0, 5000, int(length)) for length in rng.integers(0, 50, 30)]
    write_megatron(tmp_path / "text", sequences, code, dtype)
    found = imported(tmp_path / "text.idx", "megatron", tmp_path / "tokens")
    for ids, expected in zip(found.codes(range(30)), sequences, strict=True):
        np.testing.assert_array_equal(ids, expected)
    assert found[4]["key"] == "text.bin/00000004"


# -- SeiT --------------------------------------------------------------------------------------------------------------


def write_seit(folder: Path, ids: NDArray[Any], split: str = "train") -> None:
    """A set as SeiT has it, made without this package."""
    pieces = [
        b"".join(bytes([255, i - 255]) if i >= 255 else bytes([i]) for i in row)
        for row in ids.reshape(len(ids), -1).tolist()
    ]
    index = io.BytesIO()
    np.save(index, np.cumsum([0, *map(len, pieces)]))
    content = {f"{split}-token.data.bin.gz": b"".join(pieces), f"{split}-token.index.npy.gz": index.getvalue()}
    for name, data in content.items():
        with gzip.open(folder / name, "wb") as file:  # with name and time, as SeiT's files have them
            file.write(data)
    labels = "".join(f"{n}\n" for n in LABELS[: len(ids)]).encode()
    (folder / f"{split}-label.txt").write_bytes(labels)
    codebook = torch.randn(ALPHABET, 32, generator=torch.Generator().manual_seed(0))
    torch.save(codebook, folder / "codebook.ckpt")
    synonyms = {str(code): [(code + step) % ALPHABET for step in (3, 1, 2)] for code in range(ALPHABET)}
    (folder / "synonyms.json").write_text(json.dumps(synonyms))


def test_a_seit_set_is_imported_and_exported_back_byte_for_byte(ids: NDArray[np.uint16], tmp_path: Path) -> None:
    (tmp_path / "seit").mkdir()
    write_seit(tmp_path / "seit", ids)
    write_seit(tmp_path / "seit", ids[:9, ::-1], "val")
    found = imported(tmp_path / "seit", "seit", tmp_path / "tokens", modality="image")
    np.testing.assert_array_equal(found.codes(range(COUNT)), ids)
    assert found.manifest.code.levels[0].alphabet == ALPHABET
    assert found.table(["label"])["label"].to_pylist() == LABELS + LABELS[:9]
    export(found, tmp_path / "back", "seit")
    for path in (tmp_path / "seit").iterdir():
        if path.name != "codebook.ckpt":  # torch.save writes random ids into its files
            assert (tmp_path / "back" / path.name).read_bytes() == path.read_bytes(), path.name
    codebooks = [torch.load(tmp_path / name / "codebook.ckpt", weights_only=True) for name in ("seit", "back")]
    assert torch.equal(*codebooks)


@pytest.mark.parametrize("level", [1, 6, 9])
@pytest.mark.parametrize("dtype", ["int32", "uint64"])
def test_other_packings_of_a_seit_set_come_back_too(
    level: int, dtype: str, ids: NDArray[np.uint16], tmp_path: Path
) -> None:
    (tmp_path / "seit").mkdir()
    write_seit(tmp_path / "seit", ids)
    names = ["train-token.data.bin.gz", "train-token.index.npy.gz"]
    for name in names:
        data = gzip.decompress((tmp_path / "seit" / name).read_bytes())
        if "index" in name:
            file = io.BytesIO()
            np.save(file, np.load(io.BytesIO(data)).astype(dtype))
            data = file.getvalue()
        (tmp_path / "seit" / name).write_bytes(gzip.compress(data, level, mtime=7))
    export(imported(tmp_path / "seit", "seit", tmp_path / "tokens"), tmp_path / "back", "seit")
    for name in names:
        assert (tmp_path / "back" / name).read_bytes() == (tmp_path / "seit" / name).read_bytes()


def test_a_seit_set_without_codebook_and_labels(ids: NDArray[np.uint16], tmp_path: Path) -> None:
    (tmp_path / "seit").mkdir()
    write_seit(tmp_path / "seit", ids)
    for name in ("codebook.ckpt", "synonyms.json", "train-label.txt"):
        (tmp_path / "seit" / name).unlink()
    found = imported(tmp_path / "seit", "seit", tmp_path / "tokens")
    np.testing.assert_array_equal(found.codes(range(COUNT)), ids)
    assert found.manifest.code.levels[0].alphabet == ALPHABET
    assert "label" not in found.schema.names


def test_tars_of_files_without_ids_are_no_samples(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        info = tarfile.TarInfo("x.jpg")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    with pytest.raises(
        SpecError, match=r"no usable samples found; the first problem is: no .npy among the members jpg"
    ):
        imported(tmp_path / "a.tar", "webdataset", tmp_path / "tokens")
