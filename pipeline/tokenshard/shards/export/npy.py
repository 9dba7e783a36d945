"""NumPy arrays: `<split>.npy` [n, *grid] ([n, levels, *grid] for several levels), which `np.load` can memory-map.

Beside it `<split>.keys.npy`, and `<split>.<column>.npy` for every column of numbers or text without nulls. As `npz` the
arrays of a split are the members `codes`, `keys` and `<column>` of one uncompressed `<split>.npz`.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tokenshard.shards.export.base import Batch, Contents, Output, SplitWriter, refuse, reserved

HEADER_BYTES = 128
MAX_TEXT = 4096
"""Characters of one value: NumPy keeps all values of a text array as long as the longest."""
_DATE = (1980, 1, 1, 0, 0, 0)
_BLOCK = 1 << 20
_VALUES = 1 << 14


def array_header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """The header of a version 1.0 .npy file, always 128 bytes. Source: NEP 1 (numpy.lib.format)."""
    text = f"{{'descr': {dtype.str!r}, 'fortran_order': False, 'shape': {shape!r}, }}"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", HEADER_BYTES - 10) + text.ljust(HEADER_BYTES - 11).encode() + b"\n"


class _Numbers:
    """An array that grows along its first axis, in a local file."""

    def __init__(self, output: Output, dtype: Any, shape: tuple[int, ...]) -> None:
        self.file, self._dtype, self._shape, self._rows = output.create(), np.dtype(dtype), shape, 0
        self.file.write(bytes(HEADER_BYTES))

    def add(self, values: NDArray[Any]) -> None:
        self.file.write(np.ascontiguousarray(values, self._dtype).tobytes())
        self._rows += len(values)

    def done(self) -> BinaryIO:
        self.file.seek(0)
        self.file.write(array_header(self._dtype, (self._rows, *self._shape)))
        self.file.flush()
        return self.file


class _Text:
    """A text array: values are kept one after the other until the longest is known."""

    def __init__(self, output: Output, where: str) -> None:
        self._output, self._where = output, where
        self._spool, self._rows, self._longest = output.create(), 0, 1

    def add(self, values: list[str]) -> None:
        for value in values:
            data = value.encode("utf-8", "surrogatepass")
            self._spool.write(struct.pack("<I", len(data)) + data)
            self._longest = max(self._longest, len(value))
        self._rows += len(values)

    def done(self) -> BinaryIO:
        array = _Numbers(self._output, f"<U{self._longest}", ())
        self._spool.seek(0)
        values = self._values()
        while part := [value for _, value in zip(range(_VALUES), values, strict=False)]:
            array.add(np.array(part, f"<U{self._longest}"))
        self._spool.close()
        return array.done()

    def _values(self) -> Iterator[str]:
        for _ in range(self._rows):
            (size,) = struct.unpack("<I", self._spool.read(4))
            yield self._spool.read(size).decode("utf-8", "surrogatepass")


class NpyWriter(SplitWriter):
    """One file an array."""

    def __init__(self, contents: Contents, output: Output, split: str) -> None:
        super().__init__(contents, output, split)
        grid = contents.fixed_grid or ()
        shape = grid if contents.levels == 1 else (contents.levels, *grid)
        self._codes = _Numbers(output, contents.dtype, shape)
        left_out = self.left_out(contents)
        self._columns: dict[str, _Numbers | _Text] = {"keys": _Text(output, "key")}
        for field in contents.schema:
            if field.name not in left_out:
                text = pa.types.is_string(field.type)
                self._columns[field.name] = (
                    _Text(output, field.name) if text else _Numbers(output, field.type.to_pandas_dtype(), ())
                )

    @classmethod
    def check(cls, contents: Contents) -> None:
        if contents.fixed_grid is None:
            raise refuse(
                contents, "samples have token grids of different sizes, which no array holds; export to parquet"
            )
        reserved(contents, ["keys", "codes"])

    @classmethod
    def left_out(cls, contents: Contents) -> tuple[str, ...]:
        types = pa.types
        plain = (types.is_boolean, types.is_integer, types.is_floating, types.is_string)
        return tuple(
            field.name
            for field in contents.schema
            if field.name in contents.with_nulls or not any(test(field.type) for test in plain)
        )

    def add(self, batch: Batch) -> None:
        codes = np.asarray(batch.codes)
        self._codes.add(codes if self.contents.levels > 1 else codes[:, 0])
        for name, array in self._columns.items():
            if isinstance(array, _Numbers):
                array.add(batch.columns[name].to_numpy())
                continue
            values = batch.keys if name == "keys" else batch.columns[name].to_pylist()
            if longest := max((value for value in values if len(value) > MAX_TEXT), key=len, default=""):
                raise refuse(
                    self.contents,
                    f"{longest[:40]!r}… in {name} has {len(longest)} characters, and NumPy would keep every value as "
                    f"long as that (at most {MAX_TEXT} are written); choose other --columns or export to parquet",
                )
            array.add(values)

    def close(self) -> None:
        self.output.put(f"{self.split}.npy", self._codes.done())
        for name, array in self._columns.items():
            self.output.put(f"{self.split}.{name}.npy", array.done())


class NpzWriter(NpyWriter):
    """All arrays of a split in one file."""

    def close(self) -> None:
        arrays = {"codes": self._codes, **self._columns}
        target = self.output.create()
        with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
            for name, array in arrays.items():
                with array.done() as file, archive.open(_member(name), "w", force_zip64=True) as member:
                    file.seek(0)
                    while block := file.read(_BLOCK):
                        member.write(block)
        self.output.put(f"{self.split}.npz", target)


def _member(name: str) -> zipfile.ZipInfo:
    """A member without a time: equal arrays give equal bytes."""
    return zipfile.ZipInfo(f"{name}.npy", _DATE)
