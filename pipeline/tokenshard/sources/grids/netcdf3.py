"""The classic NetCDF format (CDF-1, CDF-2 and CDF-5): header and windows of its arrays, nothing else is read.

After the "NetCDF Classic Format Specification" of Unidata and the CDF-5 extension of PnetCDF.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from tokenshard.errors import InputError
from tokenshard.sources.grids.arrays import ArrayFile, Variable

_TYPES = dict(enumerate(["i1", "S1", ">i2", ">i4", ">f4", ">f8", "u1", ">u2", ">u4", ">i8", ">u8"], 1))
_DIMENSION, _VARIABLE, _ATTRIBUTE = 10, 11, 12
_MAX_ITEMS = 1 << 16
_MAX_TEXT = 1 << 24


@dataclass
class _Header:
    """Reads the header front to back; every size is checked against the file before it is believed."""

    file: BinaryIO
    size: int
    wide: bool = False

    def take(self, count: int) -> bytes:
        if count > _MAX_TEXT or count > self.size - self.file.tell():
            raise InputError("truncated: the file ends inside its header; copy it again")
        data = self.file.read(count)
        if len(data) != count:
            raise InputError("truncated: the file ends inside its header; copy it again")
        return data

    def integer(self, size: int = 4) -> int:
        return int.from_bytes(self.take(size), "big")

    def count(self) -> int:
        return self.integer(8 if self.wide else 4)

    def name(self) -> str:
        length = self.count()
        text = self.take(length)
        self.take(-length % 4)
        return text.decode("utf-8", "replace")

    def items(self, tag: int) -> range:
        found, count = self.integer(), self.count()
        if count > _MAX_ITEMS or (count and found != tag):
            raise InputError("damaged NetCDF header; copy the file again")
        return range(count)

    def attributes(self) -> dict[str, Any]:
        return {self.name(): self.values() for _ in self.items(_ATTRIBUTE)}

    def values(self) -> Any:
        kind, count = self.kind(), self.count()
        data = self.take(count * kind.itemsize)
        self.take(-len(data) % 4)
        if kind.kind == "S":
            return data.rstrip(b"\0").decode("utf-8", "replace")
        found = np.frombuffer(data, kind).astype(kind.newbyteorder("="))
        return found[0] if count == 1 else found

    def kind(self) -> np.dtype[Any]:
        number = self.integer()
        if number not in _TYPES:
            raise InputError("damaged NetCDF header (unknown type); copy the file again")
        return np.dtype(_TYPES[number])


def open_netcdf3(file: BinaryIO, size: int) -> ArrayFile:
    """The arrays of a file of ``size`` bytes. Raises InputError where it is damaged or ends too early."""
    header = _Header(file, size)
    magic = header.take(4)
    if magic[:3] != b"CDF" or magic[3] not in (1, 2, 5):
        raise InputError("not a NetCDF file")
    header.wide = magic[3] == 5
    records = header.count()
    dims = [(header.name(), header.count()) for _ in header.items(_DIMENSION)]
    attributes = header.attributes()
    variables: dict[str, Variable] = {}
    strides: dict[str, int] = {}
    for _ in header.items(_VARIABLE):
        name = header.name()
        axes = [header.count() for _ in range(min(header.count(), 1024))]
        if any(axis >= len(dims) for axis in axes):
            raise InputError("damaged NetCDF header; copy the file again")
        own = header.attributes()
        kind, stated, begin = header.kind(), header.count(), header.integer(4 if magic[3] == 1 else 8)
        growing = bool(axes) and dims[axes[0]][1] == 0
        shape = tuple(dims[axis][1] or records for axis in axes)
        item = math.prod(shape[1:] if growing else shape) * kind.itemsize
        if growing:
            strides[name] = item + -item % 4 if stated >= 0 else item
        elif begin + item > size:
            raise InputError(
                f"truncated: variable {name!r} needs {begin + item} bytes, the file has {size}; copy it again"
            )
        read = partial(_read, file, begin, kind, shape, strides if growing else None, name)
        variables[name] = Variable(name, tuple(dims[axis][0] for axis in axes), shape, _native(kind), own, read)
    if len(strides) == 1:  # the records of a single variable are not padded
        (name,) = strides
        strides[name] = math.prod(variables[name].shape[1:]) * variables[name].dtype.itemsize
    return ArrayFile("netcdf3", variables, attributes, file.close)


def _native(kind: np.dtype[Any]) -> np.dtype[Any]:
    return kind.newbyteorder("=")


def _read(
    file: BinaryIO,
    begin: int,
    kind: np.dtype[Any],
    shape: tuple[int, ...],
    strides: dict[str, int] | None,
    name: str,
    window: tuple[slice, ...],
) -> NDArray[Any]:
    """A window, row by row: only the cells between its first and last column are read."""
    spans = [axis.indices(size)[:2] for axis, size in zip(window, shape, strict=True)]
    out = values = np.empty([max(0, stop - start) for start, stop in spans], kind)
    inner = [math.prod(shape[axis + 1 :]) * kind.itemsize for axis in range(len(shape))]
    if strides is not None:
        inner[0] = sum(strides.values())
    if not inner or inner[-1] != kind.itemsize:  # a single number, or one a record: no cells side by side
        spans, inner, out = [*spans, (0, 1)], [*inner, kind.itemsize], out[..., None]
    lines = out.reshape(-1, out.shape[-1])
    length = lines.shape[1] * kind.itemsize
    for number, place in enumerate(np.ndindex(*out.shape[:-1])):
        starts = [start + step for (start, _), step in zip(spans, place, strict=False)]
        file.seek(begin + sum(at * step for at, step in zip([*starts, spans[-1][0]], inner, strict=True)))
        data = file.read(length)
        if len(data) != length:
            raise InputError(f"truncated: the file ends inside variable {name!r}; copy it again")
        lines[number] = np.frombuffer(data, kind)
    return values.astype(_native(kind))
