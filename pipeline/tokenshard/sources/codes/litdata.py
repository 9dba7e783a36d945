"""LitData's binary chunks: `index.json` and `chunk-*.bin`. Needs no library of theirs.

Samples must be flat dicts. Fields that are data alone are read: arrays, numbers, text, bytes; pickled fields are
refused, compressed and encrypted chunks too. Source: Lightning-AI/litdata, `litdata/streaming`.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tokenshard.errors import InputError
from tokenshard.sources.codes.chunked import Chunk, ChunkedSource, Column
from tokenshard.spec.codes import ImportSourceSpec

_DTYPES = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64")
"""By the number LitData writes for them."""


class LitDataSource(ChunkedSource):
    """Samples of LitData's chunks."""

    format = "litdata"

    def chunks_of(self, folder: str, document: Mapping[str, Any]) -> Iterator[Chunk]:
        config = document["config"]
        for what in ("compression", "encryption"):
            if config.get(what):
                raise self.error(f"{folder}index.json: chunks with {what} are not read; write them again without it")
        columns = tuple(_column(*column) for column in zip(_names(config), config["data_format"], strict=True))
        for chunk in document["chunks"]:
            if chunk["chunk_size"]:
                yield Chunk(folder + str(chunk["filename"]), int(chunk["chunk_size"]), columns, fixed_in_head=True)

    def _meta(self, values: dict[str, Any]) -> dict[str, Any]:
        """Columns that an export wrote as JSON text, because LitData would have pickled them."""
        as_json = self.described.json_columns if self.described else ()
        return {name: json.loads(value) if name in as_json else value for name, value in values.items()}


def _names(config: Mapping[str, Any]) -> list[str]:
    """Names of the fields of a sample, from the description of its tree."""
    spec = json.loads(config["data_spec"])[1]
    if not str(spec["type"]).endswith("dict") or any(child["type"] is not None for child in spec["children_spec"]):
        raise ValueError("samples are no flat dicts")
    return [str(name) for name in json.loads(spec["context"])]


def _column(name: str, what: str) -> Column:
    decode, kind = _decoder(what)
    return Column(name, decode, kind)


def _decoder(what: str) -> tuple[Callable[[bytes], Any], pa.DataType | None]:
    if what == "numpy":
        return _array, None
    if what.startswith("no_header_numpy:"):
        return partial(_flat, dtype=_DTYPES[int(what.partition(":")[2])]), None
    known: dict[str, tuple[Callable[[bytes], Any], pa.DataType]] = {
        "str": (bytes.decode, pa.string()),
        "bytes": (bytes, pa.binary()),
        "int": (partial(_number, layout="<q"), pa.int64()),
        "float": (partial(_number, layout="<d"), pa.float64()),
        "bool": (partial(_number, layout="<?"), pa.bool_()),
    }
    return known.get(what, (partial(_refused, what=what), pa.string()))


def _refused(data: bytes, what: str) -> Any:
    raise InputError(f"a field stored as {what}, which is not read; it would be run as code, or decoded as media")


def _number(data: bytes, layout: str) -> Any:
    try:
        return struct.unpack(layout, data)[0]
    except struct.error as error:
        raise InputError(f"a number of {len(data)} bytes") from error


def _flat(data: bytes, dtype: str) -> NDArray[Any]:
    return np.frombuffer(data, np.dtype(dtype).newbyteorder("<"))


def _array(data: bytes) -> NDArray[Any]:
    """Layout: u32 dtype, u32 axes, u32 sides, values."""
    try:
        number, axes = struct.unpack_from("<II", data)
        shape = struct.unpack_from(f"<{axes if axes <= 32 else 0}I", data, 8)
        dtype = np.dtype(_DTYPES[number]).newbyteorder("<")
    except (struct.error, IndexError) as error:
        raise InputError("no array as LitData writes it") from error
    start = 8 + 4 * axes
    if axes > 32 or len(data) - start != dtype.itemsize * math.prod(shape):
        raise InputError(f"{len(data) - start} bytes for an array of {dtype.name} and shape {list(shape)}")
    return np.frombuffer(data, dtype, offset=start).reshape(shape)


def open_litdata_source(
    spec: ImportSourceSpec, storage: Mapping[str, Any], state: Mapping[str, Any] | None = None
) -> LitDataSource:
    """Ids in LitData's chunks."""
    return LitDataSource(spec, storage, state)
