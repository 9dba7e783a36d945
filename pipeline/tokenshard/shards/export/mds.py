"""MosaicML streaming's MDS, written by its own `MDSWriter`: one folder a split.

Ids are an `ndarray` of fixed dtype (and shape, where all samples share a grid); numbers and text keep their types;
columns with nulls, lists and structs are `json`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from tokenshard.errors import SpecError
from tokenshard.shards.export.base import (
    Batch,
    Contents,
    Output,
    SplitWriter,
    byte_size,
    refuse,
    reserved,
    squeezed,
)
from tokenshard.shards.export.json_values import check_json_columns, json_rows

SHARD_BYTES = 64 << 20
"""Theirs by default; the writer holds one in memory."""
MAX_SHARD_BYTES = 1 << 31
"""Offsets in a shard have 32 bits."""


class MdsWriter(SplitWriter):
    """`<split>/shard.00000.mds`, … and `<split>/index.json`."""

    options: ClassVar = {"shard_bytes": byte_size}

    def __init__(self, contents: Contents, output: Output, split: str) -> None:
        super().__init__(contents, output, split)
        self._folder = Path(tempfile.mkdtemp(dir=output.scratch)) / "mds"
        limit = min(output.options.get("shard_bytes", SHARD_BYTES), MAX_SHARD_BYTES)
        self._types = {field.name: _encoding(field, contents) for field in contents.schema}
        columns = {"key": "str", "codes": _ids_encoding(contents), **self._types}
        self._writer = _mds_writer()(columns=columns, out=str(self._folder), size_limit=limit)

    @classmethod
    def check(cls, contents: Contents) -> None:
        _mds_writer()
        check_json_columns(contents)
        reserved(contents, ["key", "codes"])

    def add(self, batch: Batch) -> None:
        for key, codes, row in zip(batch.keys, batch.codes, json_rows(batch), strict=True):
            if not codes.size:
                raise refuse(self.contents, f"sample {key!r} has no ids, and MDS holds no empty arrays")
            values = {name: _value(self._types[name], value) for name, value in row.items()}
            ids = np.ascontiguousarray(squeezed(self.contents, codes))
            self._writer.write({"key": key, "codes": ids, **values})

    def close(self) -> None:
        self._writer.finish()
        self.output.put_folder(self._folder, self.split)


def _mds_writer() -> Any:
    try:
        from streaming import MDSWriter
    except (ImportError, RuntimeError) as error:
        raise SpecError(
            f"format mds is written by MosaicML's own library, which cannot be imported ({error}); "
            "install it with: pip install mosaicml-streaming"
        ) from error
    return MDSWriter


def _ids_encoding(contents: Contents) -> str:
    encoding = f"ndarray:{np.dtype(contents.dtype).name}"
    if contents.fixed_grid is None:
        return encoding
    shape = contents.fixed_grid if contents.levels == 1 else (contents.levels, *contents.fixed_grid)
    return f"{encoding}:{','.join(map(str, shape))}"


def _encoding(field: pa.Field, contents: Contents) -> str:
    types, kind = pa.types, field.type
    if field.name in contents.with_nulls:
        return "json"
    if types.is_integer(kind) or types.is_floating(kind):
        return str(np.dtype(kind.to_pandas_dtype()).name)
    return "str" if types.is_string(kind) or types.is_large_string(kind) else "json"


def _value(encoding: str, value: Any) -> Any:
    return value if encoding in {"json", "str"} else np.dtype(encoding).type(value)
