"""A folder as the Hugging Face Hub has it: `data/<split>-00000.parquet` and a README that names the splits.

`datasets.load_dataset(folder)` reads it, with class names; the ids are nested lists, one level a grid axis. Written
without that library.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from tokenshard.shards.export.base import Batch, Contents, Output, reserved
from tokenshard.shards.export.parquet import ParquetWriter, as_lists
from tokenshard.shards.schema import KEY

CODES = "codes"


class HfWriter(ParquetWriter):
    """Features: `key`; `codes`, of the shape of the token grid ([levels, *grid] for several levels); the columns."""

    @classmethod
    def check(cls, contents: Contents) -> None:
        reserved(contents, [KEY, CODES])

    @property
    def _axes(self) -> int:
        return len(self.contents.grid) + (self.contents.levels > 1)

    def schema(self) -> pa.Schema:
        kind: pa.DataType = pa.from_numpy_dtype(self.contents.dtype)
        for _ in range(self._axes):
            kind = pa.list_(kind)
        fields = [pa.field(KEY, pa.string()), pa.field(CODES, kind), *self.contents.schema]
        names = {column.name: column.names for column in self.contents.columns if column.names}
        features = {field.name: _feature(field.type, names.get(field.name)) for field in fields}
        if None in features.values():  # `datasets` then goes by the Arrow types alone
            return pa.schema(fields)
        return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features}})})

    def table(self, batch: Batch) -> pa.Table:
        codes = [sample if self.contents.levels > 1 else sample[0] for sample in batch.codes]
        flat = as_lists(Batch(batch.keys, [sample.reshape(1, -1) for sample in codes], batch.columns), 0)
        values: pa.Array = flat.flatten()
        shapes = np.array([sample.shape for sample in codes], np.int64)
        for axis in reversed(range(self._axes)):  # innermost lists first
            lengths = np.repeat(shapes[:, axis], np.prod(shapes[:, :axis], axis=1))
            offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
            values = pa.ListArray.from_arrays(pa.array(offsets), values)
        return pa.table([pa.array(batch.keys, pa.string()), values, *batch.columns.columns], schema=self._schema)

    def name(self, number: int) -> str:
        return f"data/{self.split}-{number:05d}.parquet"

    @classmethod
    def complete(cls, contents: Contents, output: Output, samples: Mapping[str, int]) -> None:
        lines = ["---", "configs:", "- config_name: default", "  data_files:"]
        for split in samples:
            lines += [f"  - split: {split}", f"    path: data/{split}-*.parquet"]
        shape = " x ".join("varies" if dim is None else str(dim) for dim in contents.grid)
        text = f"Token ids, exported by tokenshard. Token grid: {shape}; alphabets: {list(contents.alphabets)}."
        output.put("README.md", "\n".join([*lines, "---", "", text, ""]).encode())


def _feature(kind: pa.DataType, names: tuple[str, ...] | None = None) -> Any:
    """A feature as `datasets` writes it in the metadata of a schema; None for types it is not sure to know."""
    types = pa.types
    if names and types.is_integer(kind):
        return {"names": list(names), "_type": "ClassLabel"}
    if types.is_list(kind):
        inner = _feature(kind.value_type)
        return None if inner is None else {"feature": inner, "_type": "Sequence"}
    plain = (
        types.is_boolean,
        types.is_integer,
        types.is_string,
        types.is_large_string,
        types.is_binary,
        types.is_timestamp,
    )
    if any(test(kind) for test in plain):
        return {"dtype": str(kind), "_type": "Value"}
    if types.is_floating(kind):
        return {"dtype": {16: "float16", 32: "float32", 64: "float64"}[kind.bit_width], "_type": "Value"}
    return None
