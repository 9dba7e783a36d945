"""Zarr folders, version 2 and 3, as xarray writes them: metadata, attributes, and windows of chunks.

After the Zarr specifications 2 and 3. Chunks are read one by one, the last ones are kept; a chunk that is not there is
made of fill values. Bytes that zlib, gzip, zstd or Blosc (with LZ4, zlib or zstd) packed can be read.
"""

from __future__ import annotations

import gzip
import itertools
import json
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from tokenshard.errors import InputError
from tokenshard.sources.grids.arrays import ArrayFile, Variable
from tokenshard.sources.grids.blosc import unpack_blosc
from tokenshard.store import Store

_LARGEST_JSON = 64 << 20
_LARGEST_CHUNK = 1 << 30
_CACHED = 64
"""Chunks kept of each array."""

Unpack = Callable[[bytes, int], bytes]
"""(packed, bytes it must unpack to) -> unpacked."""


def open_zarr(store: Store, name: str) -> ArrayFile:
    """The arrays of a group. Raises InputError where it is none, is damaged, or is packed in an unknown way."""
    documents = {entry.name[len(name) + 1 :] for entry in store.list(name) if entry.name.endswith((".zarray", ".json"))}
    variables: dict[str, Variable] = {}
    for document in sorted(documents):
        folder, _, base = document.rpartition("/")
        if "/" in folder or not folder:
            continue  # arrays of the group itself
        found = _json(store, f"{name}/{document}")
        if base == ".zarray":
            attributes = _optional(store, f"{name}/{folder}/.zattrs")
            variables[folder] = _variable(_version2(found), attributes, folder, store, f"{name}/{folder}")
        elif base == "zarr.json" and found.get("node_type") == "array":
            variables[folder] = _variable(_version3(found), found.get("attributes"), folder, store, f"{name}/{folder}")
    if not variables:
        raise InputError("not a Zarr group with arrays; give the folder that to_zarr wrote")
    group = _optional(store, f"{name}/.zattrs") or _optional(store, f"{name}/zarr.json").get("attributes") or {}
    return ArrayFile("zarr", {k: v for k, v in variables.items() if v.dtype.kind in "iufb"}, _plain(group))


@dataclass(frozen=True)
class _Layout:
    """How an array lies in its folder."""

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype[Any]
    fill: Any
    prefix: str
    separator: str
    unpack: tuple[Unpack, ...]
    """in the order of unpacking"""
    order: str = "C"
    dims: Sequence[str] | None = None
    declares_fill: bool = False
    """whether cells of the fill value have no value; else it only stands for chunks that are not there"""

    def chunk_name(self, place: tuple[int, ...]) -> str:
        parts = [str(number) for number in place] or ["0"]
        return self.prefix + self.separator.join(parts)


def _version2(found: Mapping[str, Any]) -> _Layout:
    with _described():
        if found.get("filters"):
            raise InputError(f"Zarr filters {found['filters']} cannot be read; write the array without")
        compressor = found.get("compressor")
        unpack = () if compressor is None else (_unpacker(str(compressor["id"])),)
        return _Layout(
            **_sizes(found["shape"], found["chunks"]),
            dtype=np.dtype(found["dtype"]),
            fill=found.get("fill_value"),
            prefix="",
            separator=str(found.get("dimension_separator", ".")),
            unpack=unpack,
            order=str(found.get("order", "C")),
            declares_fill=True,
        )


def _version3(found: Mapping[str, Any]) -> _Layout:
    with _described():
        codecs = list(found["codecs"])
        names = [codec["name"] for codec in codecs]
        if names[:1] != ["bytes"]:
            raise InputError(f"Zarr codecs {names} cannot be read; write the array unsharded and untransposed")
        endian = codecs[0].get("configuration", {}).get("endian", "little")
        kind = np.dtype(str(found["data_type"])).newbyteorder("<" if endian == "little" else ">")
        keys = found.get("chunk_key_encoding", {"name": "default"})
        default = keys["name"] == "default"
        separator = keys.get("configuration", {}).get("separator", "/" if default else ".")
        return _Layout(
            **_sizes(found["shape"], found["chunk_grid"]["configuration"]["chunk_shape"]),
            dtype=kind,
            fill=found.get("fill_value"),
            prefix=f"c{separator}" if default else "",
            separator=str(separator),
            unpack=tuple(_unpacker(str(name)) for name in reversed(names[1:])),
            dims=found.get("dimension_names"),
        )


class _described:
    """Turns what damaged metadata makes Python raise into an InputError."""

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, KeyError | TypeError | ValueError | AttributeError | IndexError):
            raise InputError(f"damaged Zarr metadata ({error}); copy the folder again") from error


def _sizes(shape: Any, chunks: Any) -> dict[str, Any]:
    sizes, parts = tuple(int(size) for size in shape), tuple(int(size) for size in chunks)
    if len(sizes) != len(parts) or any(size < 0 for size in sizes) or any(size < 1 for size in parts):
        raise InputError("damaged Zarr metadata (impossible shape); copy the folder again")
    return {"shape": sizes, "chunks": parts}


def _unpacker(name: str) -> Unpack:
    if name not in _UNPACKERS:
        raise InputError(f"Zarr codec {name!r} cannot be read; known are: {', '.join(_UNPACKERS)}")
    return _UNPACKERS[name]


def _unpack_zstd(data: bytes, size: int) -> bytes:
    return zstandard.ZstdDecompressor().decompress(data, max_output_size=size)


def _unpack_zlib(data: bytes, size: int) -> bytes:
    return zlib.decompressobj().decompress(data, size)


def _unpack_gzip(data: bytes, size: int) -> bytes:
    return zlib.decompressobj(wbits=31).decompress(data, size)


def _unpack_crc32c(data: bytes, size: int) -> bytes:
    return data[:-4]


_UNPACKERS: Mapping[str, Unpack] = {
    "zstd": _unpack_zstd,
    "zlib": _unpack_zlib,
    "gzip": _unpack_gzip,
    "blosc": unpack_blosc,
    "crc32c": _unpack_crc32c,
}


def _variable(layout: _Layout, attributes: Any, title: str, store: Store, folder: str) -> Variable:
    if math.prod(layout.chunks) * layout.dtype.itemsize > _LARGEST_CHUNK:
        raise InputError(f"Zarr array {title!r} has chunks of more than {_LARGEST_CHUNK} bytes; write smaller ones")
    own = _plain(attributes if isinstance(attributes, Mapping) else {})
    native = layout.dtype.newbyteorder("=")
    named = own.pop("_ARRAY_DIMENSIONS", None) or layout.dims
    dims = tuple(str(dim) for dim in named or (f"dim_{axis}" for axis in range(len(layout.shape))))
    declared = own.pop("_FillValue", layout.fill if layout.declares_fill else None)
    if layout.dtype.kind in "iuf" and _is_number(declared):  # else NaN in one of its spellings, which none need declare
        own["_FillValue"] = native.type(declared)
    chunk = lru_cache(_CACHED)(partial(_chunk, layout, store, folder))
    return Variable(title, dims, layout.shape, native, own, partial(_read, layout, chunk))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _chunk(layout: _Layout, store: Store, folder: str, place: tuple[int, ...]) -> NDArray[Any] | None:
    """The values of a chunk; None where all of them are fill values."""
    try:
        data = store.read(f"{folder}/{layout.chunk_name(place)}")
    except FileNotFoundError:
        return None
    size = math.prod(layout.chunks) * layout.dtype.itemsize
    try:
        for unpack in layout.unpack:
            data = unpack(data, size)
    except (zstandard.ZstdError, zlib.error, gzip.BadGzipFile, ValueError, OSError) as error:
        raise InputError(f"damaged Zarr chunk {layout.chunk_name(place)} ({error}); copy it again") from error
    if len(data) != size:
        raise InputError(f"Zarr chunk {layout.chunk_name(place)} has {len(data)} bytes, not {size}; copy it again")
    values = np.frombuffer(data, layout.dtype).reshape(layout.chunks, order="F" if layout.order == "F" else "C")
    return values


def _read(
    layout: _Layout, chunk: Callable[[tuple[int, ...]], NDArray[Any] | None], window: tuple[slice, ...]
) -> NDArray[Any]:
    spans = [axis.indices(size)[:2] for axis, size in zip(window, layout.shape, strict=True)]
    fill = layout.fill if _is_number(layout.fill) else (np.nan if layout.dtype.kind == "f" else 0)
    out = np.full([max(0, stop - start) for start, stop in spans], fill, layout.dtype.newbyteorder("="))
    if not out.size:
        return out
    ranges = (range(a // side, -(-b // side)) for (a, b), side in zip(spans, layout.chunks, strict=True))
    for place in itertools.product(*ranges):
        values = chunk(place)
        if values is None:
            continue
        inside, outside = [], []
        for number, (a, b), side in zip(place, spans, layout.chunks, strict=True):
            low, high = max(a, number * side), min(b, (number + 1) * side)
            inside.append(slice(low - number * side, high - number * side))
            outside.append(slice(low - a, high - a))
        out[tuple(outside)] = values[tuple(inside)]
    return out


def _json(store: Store, name: str) -> dict[str, Any]:
    if store.size(name) > _LARGEST_JSON:
        raise InputError(f"{name.rpartition('/')[2]} has more than {_LARGEST_JSON} bytes")
    try:
        found = json.loads(store.read(name))
    except (ValueError, RecursionError) as error:
        raise InputError(f"damaged Zarr metadata ({error}); copy the folder again") from error
    if not isinstance(found, dict):
        raise InputError("damaged Zarr metadata; copy the folder again")
    return found


def _optional(store: Store, name: str) -> dict[str, Any]:
    return _json(store, name) if store.exists(name) else {}


def _plain(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes as NetCDF has them: text, numbers and lists of numbers."""
    found: dict[str, Any] = {}
    for name, value in attributes.items():
        if isinstance(value, list) and value and all(_is_number(item) for item in value):
            found[name] = np.array(value)
        elif isinstance(value, str) or _is_number(value) or name == "_ARRAY_DIMENSIONS":
            found[name] = value if isinstance(value, str | list) else np.array(value)[()]
    return found
