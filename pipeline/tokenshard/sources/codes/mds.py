"""MosaicML streaming's MDS: `index.json` and `.mds` shards. Needs no library of theirs.

Encodings that are data alone are read: arrays, numbers, text, bytes, JSON. Pickled columns are refused, compressed
shards too. Source: mosaicml/streaming, `streaming/base/format/mds`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tokenshard.errors import InputError
from tokenshard.sources.codes.chunked import Chunk, ChunkedSource, Column
from tokenshard.spec.codes import ImportSourceSpec

_NUMBERS = {
    name: np.dtype(name).newbyteorder("<")
    for name in (
        *(f"{sign}int{bits}" for sign in ("u", "") for bits in (8, 16, 32, 64)),
        *("float16", "float32", "float64"),
    )
}
_DTYPE_OF = {8: "uint8", 9: "int8", 16: "uint16", 17: "int16", 18: "float16", 32: "uint32", 33: "int32", 34: "float32"}
_DTYPE_OF |= {64: "uint64", 65: "int64", 66: "float64"}


class MdsSource(ChunkedSource):
    """Samples of MDS shards."""

    format = "mds"

    def chunks_of(self, folder: str, document: Mapping[str, Any]) -> Iterator[Chunk]:
        for shard in document["shards"]:
            if shard["format"] != "mds":
                raise ValueError(f"a shard of format {shard['format']}")
            name = folder + str(shard["raw_data"]["basename"])
            if shard.get("compression"):
                raise self.error(
                    f"{name} is compressed ({shard['compression']}); write the dataset again with compression=None"
                )
            if shard["samples"]:
                described = zip(shard["column_names"], shard["column_encodings"], shard["column_sizes"], strict=True)
                yield Chunk(name, int(shard["samples"]), tuple(_column(*column) for column in described))

    def _meta(self, values: dict[str, Any]) -> dict[str, Any]:
        """Columns of others that hold JSON go along as text; an export says their types."""
        if self.described is not None:
            return values
        kinds = {field.name: field.type for field in self.fields()}
        return {
            name: json.dumps(value) if kinds.get(name) == pa.string() and not isinstance(value, str) else value
            for name, value in values.items()
        }


def _column(name: str, encoding: str, size: int | None) -> Column:
    decode, kind = _decoder(encoding)
    return Column(name, decode, kind, size)


def _decoder(encoding: str) -> tuple[Callable[[bytes], Any], pa.DataType | None]:
    what, _, config = encoding.partition(":")
    if what == "ndarray":
        dtype, _, shape = config.partition(":")
        if dtype and dtype not in _NUMBERS:
            raise ValueError(f"an array of {dtype}")
        fixed = tuple(int(side) for side in shape.split(",")) if shape else None
        return partial(_array, dtype=dtype or None, shape=fixed), None
    if what in _NUMBERS:
        return partial(_number, dtype=_NUMBERS[what]), pa.from_numpy_dtype(np.dtype(what))
    known: dict[str, tuple[Callable[[bytes], Any], pa.DataType]] = {
        "str": (bytes.decode, pa.string()),
        "bytes": (bytes, pa.binary()),
        "int": (partial(_number, dtype=_NUMBERS["int64"]), pa.int64()),
        "json": (json.loads, pa.string()),
    }
    return known.get(what, (partial(_refused, encoding=encoding), pa.string()))


def _refused(data: bytes, encoding: str) -> Any:
    raise InputError(f"a column encoded as {encoding}, which is not read; it would be run as code, or decoded as media")


def _number(data: bytes, dtype: np.dtype[Any]) -> Any:
    if len(data) != dtype.itemsize:
        raise InputError(f"{len(data)} bytes are no {dtype.name}")
    return np.frombuffer(data, dtype)[0].item()


def _array(data: bytes, dtype: str | None, shape: tuple[int, ...] | None) -> NDArray[Any]:
    """Layout: [dtype: u8] [ndim << 2 | log2 of the bytes of a side: u8, sides] values; fixed parts are left out."""
    place = 0
    try:
        if dtype is None:
            dtype, place = _DTYPE_OF[data[0]], 1
        if shape is None:
            axes, width = data[place] >> 2, 1 << (data[place] & 3)
            sides = data[place + 1 : place + 1 + axes * width]
            place += 1 + axes * width
            shape = tuple(int.from_bytes(sides[i : i + width], "little") for i in range(0, axes * width, width))
    except (IndexError, KeyError) as error:
        raise InputError("no array as MDS writes it") from error
    kind = _NUMBERS[dtype]
    if len(data) - place != kind.itemsize * math.prod(shape):
        raise InputError(f"{len(data) - place} bytes for an array of {dtype} and shape {list(shape)}")
    return np.frombuffer(data, kind, offset=place).reshape(shape)


def open_mds_source(
    spec: ImportSourceSpec, storage: Mapping[str, Any], state: Mapping[str, Any] | None = None
) -> MdsSource:
    """Ids in MDS shards."""
    return MdsSource(spec, storage, state)
