"""LitData's binary chunks, written by its own writer: one folder a split.

A sample is a dict of `key`, `codes` (an array) and the columns; columns with nulls, lists and structs are JSON text,
because LitData would pickle them.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from tokenshard.errors import SpecError
from tokenshard.shards.export.base import Batch, Contents, Output, SplitWriter, byte_size, reserved, squeezed
from tokenshard.shards.export.json_values import check_json_columns, json_rows, json_text

CHUNK_BYTES = 64 << 20


class LitDataWriter(SplitWriter):
    """`<split>/chunk-0-0.bin`, … and `<split>/index.json`."""

    options: ClassVar = {"shard_bytes": byte_size}

    def __init__(self, contents: Contents, output: Output, split: str) -> None:
        super().__init__(contents, output, split)
        self._folder = Path(tempfile.mkdtemp(dir=output.scratch))
        limit = output.options.get("shard_bytes", CHUNK_BYTES)
        self._writer, self._rows = _binary_writer()(str(self._folder), chunk_bytes=limit), 0
        self._kinds = {field.name: _python_type(field, contents) for field in contents.schema}

    @classmethod
    def check(cls, contents: Contents) -> None:
        _binary_writer()
        check_json_columns(contents)
        reserved(contents, ["key", "codes"])

    @classmethod
    def json_columns(cls, contents: Contents) -> tuple[str, ...]:
        return tuple(field.name for field in contents.schema if _python_type(field, contents) is json_text)

    def add(self, batch: Batch) -> None:
        for key, codes, row in zip(batch.keys, batch.codes, json_rows(batch), strict=True):
            values = {name: self._kinds[name](value) for name, value in row.items()}
            ids = np.ascontiguousarray(squeezed(self.contents, codes))
            self._writer[self._rows] = {"key": key, "codes": ids, **values}
            self._rows += 1

    def close(self) -> None:
        self._writer.done()
        self._writer.merge()
        index = self._folder / "index.json"
        document = json.loads(index.read_text(encoding="utf-8"))
        document["updated_at"] = "0"  # the time of writing: equal datasets give equal bytes
        index.write_text(json.dumps(document, sort_keys=True), encoding="utf-8")
        self.output.put_folder(self._folder, self.split)


def _binary_writer() -> Any:
    try:
        from litdata.streaming.writer import BinaryWriter
    except (ImportError, RuntimeError) as error:
        raise SpecError(
            f"format litdata is written by LitData's own library, which cannot be imported ({error}); "
            "install it with: pip install litdata"
        ) from error
    return BinaryWriter


def _python_type(field: pa.Field, contents: Contents) -> Any:
    """What makes a value of a column one that LitData stores without pickling it."""
    types, kind = pa.types, field.type
    if field.name in contents.with_nulls:
        return json_text
    for test, python in (
        (types.is_boolean, bool),
        (types.is_integer, int),
        (types.is_floating, float),
        (types.is_string, str),
        (types.is_large_string, str),
    ):
        if test(kind):
            return python
    return json_text
