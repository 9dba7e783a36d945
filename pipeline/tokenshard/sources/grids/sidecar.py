"""The file `grids/<sha256>.parquet` of a dataset: one row a grid, with all that is needed to write it back."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import ValidationError

from tokenshard.errors import FormatError
from tokenshard.parquet import read_parquet
from tokenshard.shards.bounds import damage_reported
from tokenshard.spec.base import canonical_json
from tokenshard.spec.grids import AxisEntry, GridEntry

SCHEMA = pa.schema(
    [
        pa.field("grid", pa.string(), nullable=False),  # its id, as in the column `grid` of the shards
        pa.field("entry", pa.string(), nullable=False),  # JSON of a GridEntry
        pa.field("x", pa.binary()),  # coordinates along columns and rows in the type their entry says,
        pa.field("y", pa.binary()),  # little-endian; null where the source has none
    ]
)


@dataclass(frozen=True)
class StoredGrid:
    """A grid as a dataset describes it."""

    entry: GridEntry
    x: NDArray[Any] | None = None
    y: NDArray[Any] | None = None


def write_grids(grids: Iterable[StoredGrid]) -> bytes:
    """The file. Equal grids give equal bytes."""
    rows = [
        {
            "grid": grid.entry.id,
            "entry": canonical_json(grid.entry.model_dump(mode="json")).decode(),
            "x": _bytes(grid.x),
            "y": _bytes(grid.y),
        }
        for grid in grids
    ]
    file = io.BytesIO()
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    pq.write_table(table, file, version="2.6", compression="zstd", write_page_checksum=True)
    return file.getvalue()


def read_grids(data: bytes, where: str) -> dict[str, StoredGrid]:
    """Grids by id. Raises FormatError that names ``where``."""
    with damage_reported(where):
        table = read_parquet(data)
        found = {}
        for row in table.select(SCHEMA.names).to_pylist():
            try:
                entry = GridEntry.model_validate_json(row["entry"])
            except ValidationError as error:
                first = error.errors()[0]
                raise FormatError(f"grid {row['grid']}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
            x, y = _axis(row["x"], entry.x, entry.width), _axis(row["y"], entry.y, entry.height)
            found[row["grid"]] = StoredGrid(entry, x, y)
    return found


def _bytes(axis: NDArray[Any] | None) -> bytes | None:
    return None if axis is None else axis.astype(axis.dtype.newbyteorder("<")).tobytes()


def _axis(data: bytes | None, entry: AxisEntry | None, size: int) -> NDArray[Any] | None:
    if data is None or entry is None:
        return None
    values = np.frombuffer(data, np.dtype(entry.dtype).newbyteorder("<"))
    if len(values) != size:
        raise FormatError(f"{len(values)} coordinates {entry.name!r} for {size} cells")
    return values.astype(np.dtype(entry.dtype))
