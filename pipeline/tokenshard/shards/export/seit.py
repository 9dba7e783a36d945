"""SeiT's token files (https://arxiv.org/abs/2303.11114), as its training code reads them.

`<split>-token.data.bin.gz`: all ids in one gzip stream, a byte an id below 255; byte 255 adds 255 to the byte behind
it, so ids go up to 509. `<split>-token.index.npy.gz`: int64 [n + 1], where each sample begins in that stream.
`<split>-label.txt`: a whole number a line. `codebook.ckpt`: float32 [codes, dim]. `synonyms.json`: for each code those
nearest to it, nearest first. Keys and further columns lie beside, in `<split>.columns.parquet`.

A dataset that was imported from such files remembers the gzip headers and the dtype of the index, so that they are
written again byte for byte.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from tokenshard.shards.export.base import Batch, Contents, Output, SplitWriter, refuse, reserved
from tokenshard.shards.export.columns_file import ColumnsFile
from tokenshard.shards.export.gzip_stream import PLAIN, GzipStream, header_of
from tokenshard.shards.export.npy import array_header
from tokenshard.shards.export.torch_file import torch_matrix
from tokenshard.shards.schema import KEY

ESCAPE = 255
MAX_IDS = 2 * ESCAPE
"""Ids are below this: there is one escape only."""
SYNONYMS = 10
"""Nearest codes written for each, where the dataset brings no list of its own."""
INDEX_DTYPES = ("<i8", "<i4", "<u8", "<u4")
_ROWS = 256


def seit_bytes(ids: NDArray[Any]) -> NDArray[np.uint8]:
    """Ids in [0, 510) as SeiT's bytes."""
    large = ids >= ESCAPE
    places = np.arange(len(ids)) + np.cumsum(large)
    out = np.full(len(ids) + int(large.sum()), ESCAPE, np.uint8)
    out[places] = ids - ESCAPE * large
    return out


@dataclass(frozen=True)
class Packing:
    """How the files of a split were packed."""

    data: bytes = PLAIN
    index: bytes = PLAIN
    """gzip headers"""
    dtype: str = "<i8"
    """of the index"""

    def dump(self) -> dict[str, JsonValue]:
        return {"data": self.data.hex(), "index": self.index.hex(), "dtype": self.dtype}

    @classmethod
    def of(cls, contents: Contents, split: str) -> Packing:
        """That of the files a dataset was imported from; the usual one where it came from elsewhere."""
        try:
            found: Any = contents.manifest.source["seit"]
            data, index = (header_of(bytes.fromhex(found[split][name])) for name in ("data", "index"))
            return cls(data, index, found[split]["dtype"] if found[split]["dtype"] in INDEX_DTYPES else cls.dtype)
        except (KeyError, TypeError, ValueError, IndexError):
            return cls()


class SeitWriter(SplitWriter):
    """Compresses the ids as they come."""

    def __init__(self, contents: Contents, output: Output, split: str) -> None:
        super().__init__(contents, output, split)
        label = contents.label
        assert label is not None
        self._label = label.name
        self._blob, self._index, self._labels = output.create(), output.create(), output.create()
        self._packing = Packing.of(contents, split)
        self._stream = GzipStream(self._blob, self._packing.data)
        self._index.write(np.zeros(1, "<i8").tobytes())
        self._bytes = self._rows = 0
        self._columns = ColumnsFile(contents, output, split)

    @classmethod
    def check(cls, contents: Contents) -> None:
        grid = contents.fixed_grid
        if contents.levels != 1 or grid is None or len(grid) != 2 or grid[0] != grid[1]:
            raise refuse(contents, "SeiT files hold one square token grid that all samples share; export to parquet")
        if contents.label is None:
            raise refuse(
                contents, "SeiT files need a whole number as the label of every sample; there is no label column"
            )
        reserved(contents, [KEY])

    def add(self, batch: Batch) -> None:
        for key, sample in zip(batch.keys, batch.codes, strict=True):
            ids = sample.ravel()
            if ids.size and int(ids.max()) >= MAX_IDS:
                raise refuse(
                    self.contents,
                    f"sample {key!r} has the id {int(ids.max())}; SeiT files hold ids up to {MAX_IDS - 1}: use a "
                    f"tokenizer of at most {MAX_IDS} codes, or export to another format",
                )
            data = seit_bytes(ids)
            self._stream.write(data.tobytes())
            self._bytes += len(data)
            self._index.write(np.array([self._bytes], "<i8").tobytes())
        self._rows += len(batch)
        self._write_labels(batch)
        self._columns.add(batch)

    def _write_labels(self, batch: Batch) -> None:
        labels = batch.columns[self._label].to_pylist()
        for key, label in zip(batch.keys, labels, strict=True):
            if not isinstance(label, int):
                raise refuse(self.contents, f"sample {key!r} has the label {label!r}; SeiT files need a whole number")
        self._labels.write("".join(f"{label}\n" for label in labels).encode())

    def close(self) -> None:
        self._stream.close()
        index, dtype = self.output.create(), np.dtype(self._packing.dtype)
        if self._bytes > np.iinfo(dtype).max:
            dtype = np.dtype("<i8")
        packed = GzipStream(index, self._packing.index)
        packed.write(array_header(dtype, (self._rows + 1,)))
        self._index.seek(0)
        while block := self._index.read(1 << 20):
            packed.write(np.frombuffer(block, "<i8").astype(dtype).tobytes())
        packed.close()
        self._index.close()
        self.output.put(f"{self.split}-token.data.bin.gz", self._blob)
        self.output.put(f"{self.split}-token.index.npy.gz", index)
        self.output.put(f"{self.split}-label.txt", self._labels)
        self._columns.close()

    @classmethod
    def complete(cls, contents: Contents, output: Output, samples: Mapping[str, int]) -> None:
        codebook = _codebook(contents)
        if codebook is None:
            return
        output.put("codebook.ckpt", torch_matrix(codebook, "codebook"))
        known = contents.tensors.get("synonyms")
        nearest = _nearest(codebook) if known is None else known
        listed = {str(code): [int(other) for other in row if other >= 0] for code, row in enumerate(nearest)}
        output.put("synonyms.json", json.dumps(listed).encode())


def _codebook(contents: Contents) -> NDArray[np.float32] | None:
    """float32 [codes, dim]: the tokenizer's codebook, or its codewords as pixel values in [0, 1]."""
    tensors = contents.tensors
    if (codebook := tensors.get("codebook")) is not None and codebook.ndim == 2:
        return codebook.astype(np.float32)
    if (words := tensors.get("codewords")) is not None and words.dtype == np.uint8:
        return (words.reshape(len(words), -1) / np.float32(255)).astype(np.float32)
    return None


def _nearest(codebook: NDArray[np.float32]) -> NDArray[np.int64]:
    """For each code the others by falling cosine similarity, at most :data:`SYNONYMS`."""
    unit = codebook / np.maximum(np.linalg.norm(codebook, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    found = []
    for start in range(0, len(unit), _ROWS):
        similar = unit[start : start + _ROWS] @ unit.T
        similar[np.arange(len(similar)), np.arange(start, start + len(similar))] = -np.inf
        found.append(np.argsort(-similar, axis=1, kind="stable")[:, : min(SYNONYMS, len(unit) - 1)])
    return np.concatenate(found)
