"""Vectors in `.npy` and `.safetensors` files: an array [n, d] is a page, an array [pages, n, d] is as many.

Headers are read while planning, and of the numbers just the bytes of a page when it is encoded.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tokenshard.errors import InputError
from tokenshard.sources.keys import escape_name, unescape_name
from tokenshard.sources.plan import Input
from tokenshard.sources.vectors.base import DOCUMENT, PAGE, Load, VectorFiles
from tokenshard.store import Store

ARRAY_NAMES = (".npy", ".safetensors")
_NPY = b"\x93NUMPY"
_NPY_HEADER = 1 << 16
_MAX_HEADER = 100_000_000
"""Bytes of the header of a safetensors file, as its own readers allow."""
_FLOATS = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "BF16": "bf16"}
_LARGEST_PAGE = 1 << 31


@dataclass(frozen=True)
class _Array:
    """An array of a file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int


class VectorArrays(VectorFiles):
    """Keys are file names without their extension, the names of tensors behind them, and `#` and the page from 1."""

    form: ClassVar[str] = "arrays"
    planned = (pa.field("rows", pa.int64()), pa.field("dimensions", pa.int64()), pa.field("dtype", pa.string()))

    def fields(self) -> Sequence[pa.Field]:
        return DOCUMENT, PAGE

    def pages(self) -> Iterator[Input]:
        for entry in self.files.list():
            if not entry.name.lower().endswith(ARRAY_NAMES):
                continue
            uri = escape_name(entry.name)
            try:
                arrays = _arrays(self.store, entry.name, self.store.size(entry.name))
            except (InputError, ValueError, SyntaxError, TypeError, KeyError, RecursionError) as error:
                yield Input(uri, uri, error=f"DamagedArray: {error}")
                continue
            for array in arrays:
                yield from self._of_array(uri, array)

    def _of_array(self, uri: str, array: _Array) -> Iterator[Input]:
        document = uri.rpartition(".")[0]
        if array.name:
            document = array.name if self.files.what == "file" else f"{document}/{array.name}"
        if array.dtype not in _FLOATS.values() or len(array.shape) not in (2, 3):
            shape = " x ".join(map(str, array.shape)) or "no axes"
            wrong = f"InputError: an array {array.dtype} of {shape}; vectors are floats [n, d] or [pages, n, d]"
            yield Input(document, uri, error=wrong)
            return
        rows, dimensions = array.shape[-2:]
        size = rows * dimensions * _itemsize(array.dtype)
        if size > _LARGEST_PAGE:
            yield Input(document, uri, error=f"InputError: a page of {size} bytes")
            return
        meta = {"document": document, "rows": rows, "dimensions": dimensions, "dtype": array.dtype}
        if len(array.shape) == 2:
            yield Input(document, uri, array.start, size, 0, meta={**meta, "page": None})
            return
        for page in range(array.shape[0]):
            start = array.start + page * size
            yield Input(f"{document}#{page + 1}", uri, start, size, page, meta={**meta, "page": page + 1})

    def loads(self, uri: str, rows: Sequence[Input]) -> Iterator[Load]:
        name = unescape_name(uri)
        for row in rows:
            yield partial(self._load, name, row)

    def _load(self, name: str, row: Input) -> NDArray[np.float32]:
        data = self.store.read(name, row.offset or 0, row.bytes)
        dtype, shape = str(row.meta["dtype"]), (int(row.meta["rows"]), int(row.meta["dimensions"]))
        if len(data) != row.bytes:
            raise InputError(f"the file ends {(row.bytes or 0) - len(data)} bytes early")
        if dtype == "bf16":
            return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)
        return np.frombuffer(data, dtype).reshape(shape).astype(np.float32)


def _itemsize(dtype: str) -> int:
    return 2 if dtype == "bf16" else np.dtype(dtype).itemsize


def _arrays(store: Store, name: str, size: int) -> list[_Array]:
    """The arrays of a file, by its header. Raises InputError, and what parsers raise."""
    arrays = _npy(store, name) if name.lower().endswith(".npy") else _tensors(store, name, size)
    for array in arrays:
        if any(side < 0 for side in array.shape):
            raise InputError("an array with a negative side")
        if array.dtype in _FLOATS.values() and array.start + math.prod(array.shape) * _itemsize(array.dtype) > size:
            raise InputError(f"its {size} bytes do not hold an array of {list(array.shape)}")
    return arrays


def _npy(store: Store, name: str) -> list[_Array]:
    head = store.read(name, 0, _NPY_HEADER)
    if not head.startswith(_NPY):
        raise InputError("not an array of NumPy")
    file = io.BytesIO(head)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if fortran and len(shape) > 1:
        raise InputError("its axes are stored backwards (Fortran order); save it with np.ascontiguousarray")
    return [_Array("", dtype.str, shape, file.tell())]


def _tensors(store: Store, name: str, size: int) -> list[_Array]:
    length = int.from_bytes(store.read(name, 0, 8), "little")
    if not 0 < length <= min(_MAX_HEADER, size - 8):
        raise InputError("not a safetensors file")
    header: dict[str, Any] = json.loads(store.read(name, 8, length))
    found = []
    for tensor, entry in header.items():
        if tensor == "__metadata__":
            continue
        kind, shape, (start, end) = str(entry["dtype"]), tuple(map(int, entry["shape"])), entry["data_offsets"]
        if kind in _FLOATS and end - start != math.prod(shape) * _itemsize(_FLOATS[kind]):
            raise InputError(f"tensor {tensor}: its bytes do not fit its shape")
        found.append(_Array(tensor, _FLOATS.get(kind, kind), shape, 8 + length + int(start)))
    return sorted(found, key=lambda array: array.start)
