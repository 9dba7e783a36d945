"""The shards of a very large dataset: Parquet columns that become entries when they are asked for.

A hundred thousand shards are a few million numbers. As columns they take tens of megabytes and are checked and hashed
in bulk; as objects they would take a gigabyte, and as many seconds as their reader has patience.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tokenshard.spec.manifest import ListedShards, ShardEntry

BATCH = 1_024
"""Entries that are made, or hashed, at a time."""
KEPT = 256
"""Entries that are remembered."""
_CHUNK = pa.struct([("offset", pa.int64()), ("length", pa.int64()), ("xxh64", pa.string())])
SHARD_LIST = pa.schema(
    [
        ("path", pa.string()),
        ("rows", pa.int64()),
        ("ids", pa.int64()),
        ("bytes", pa.int64()),
        ("raw_bytes", pa.int64()),
        ("sha256", pa.string()),
        ("min_key", pa.string()),
        ("max_key", pa.string()),
        ("grid", pa.list_(pa.int32())),
        ("footer", _CHUNK),
        ("row_groups", pa.list_(pa.struct([("rows", pa.int64()), ("sizes", _CHUNK), ("codes", pa.list_(_CHUNK))]))),
    ]
)
"""The shard list as Parquet: field by field the JSON of a ShardEntry."""
DELETED = pa.field("deleted", pa.list_(pa.list_(pa.int64())))
"""Its last column, where any shard has deleted rows; null for those that have none, whose JSON lacks the field."""


class ShardList(ListedShards):
    """Shard entries backed by a table of :data:`SHARD_LIST`, and :data:`DELETED`. Immutable, picklable."""

    def __init__(self, table: pa.Table) -> None:
        """``table`` may have more columns and fields, as later versions write; they are left out.

        Raises ArrowInvalid, KeyError or ValueError where one is missing or of another type.
        """
        some = DELETED.name in table.column_names and table[DELETED.name].null_count < table.num_rows
        schema = SHARD_LIST.append(DELETED) if some else SHARD_LIST
        pieces = {field: [_projected(chunk, field.type) for chunk in table[field.name].chunks] for field in schema}
        columns = [pa.chunked_array(chunks, field.type) for field, chunks in pieces.items()]
        self.table = pa.table(columns, schema=schema)
        self._entry: Callable[[int], ShardEntry] = lru_cache(KEPT)(self._make)

    @classmethod
    def of(cls, shards: Iterable[ShardEntry]) -> ShardList:
        """The same entries as columns, in memory that their columns take."""
        if isinstance(shards, ShardList):
            return shards
        schema = SHARD_LIST.append(DELETED)
        parts, entries = [schema.empty_table()], iter(shards)
        while rows := [entry.model_dump(mode="json") for entry in islice(entries, BATCH)]:
            parts.append(pa.Table.from_pylist(rows, schema=schema))
        return cls(pa.concat_tables(parts))

    def __reduce__(self) -> tuple[type[ShardList], tuple[pa.Table]]:
        return type(self), (self.table,)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @overload
    def __getitem__(self, place: int) -> ShardEntry: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[ShardEntry]: ...
    def __getitem__(self, place: int | slice) -> ShardEntry | Sequence[ShardEntry]:
        if isinstance(place, slice):
            return tuple(self[number] for number in range(len(self))[place])
        return self._entry(range(len(self))[place])

    def _make(self, number: int) -> ShardEntry:
        return _entry(self.table.slice(number, 1).to_pylist()[0])

    def __iter__(self) -> Iterator[ShardEntry]:
        for start in range(0, len(self), BATCH):
            yield from map(_entry, self.table.slice(start, BATCH).to_pylist())

    @property
    def num_deleted(self) -> int:
        return sum(self[number].num_deleted for number in with_deleted(self))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, ShardList):
            return bool(self.table.equals(other.table))
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    __hash__ = None  # type: ignore[assignment]  # as for every sequence that compares by its elements

    def canonical_json(self) -> Iterator[bytes]:
        return canonical_rows(self.table)


def _entry(row: dict[str, Any]) -> ShardEntry:
    if row.get(DELETED.name, ()) is None:
        del row[DELETED.name]
    return ShardEntry.model_validate(row)


def canonical_rows(table: pa.Table) -> Iterator[bytes]:
    """:func:`~tokenshard.spec.base.canonical_json` of the rows of a table, joined by commas in pieces that follow each
    other. Raises TypeError or ValueError for values that JSON has not."""
    for start in range(0, table.num_rows, BATCH):
        part = table.slice(start, BATCH)
        struct = pa.StructArray.from_arrays([whole(column) for column in part.columns], names=part.column_names)
        yield (b"," if start else b"") + ",".join(_texts(struct).to_pylist()).encode()


def _texts(values: pa.Array) -> pa.Array:
    """The canonical JSON of each value, as strings."""
    kind = values.type
    if pa.types.is_struct(kind):
        children = dict(zip((field.name for field in kind), values.flatten(), strict=True))
        pieces: list[Any] = ["{"]
        for number, name in enumerate(sorted(children)):
            start = f"{',' if number else ''}{json.dumps(name, ensure_ascii=False)}:"
            if name == DELETED.name and pa.types.is_list(children[name].type):  # not the first, and absent where null
                member = pc.binary_join_element_wise(start, _texts(children[name]), "")
                pieces += [pc.if_else(pc.is_valid(children[name]), member, "")]
            else:
                pieces += [start, _texts(children[name])]
        texts = pc.binary_join_element_wise(*pieces, "}", "") if children else pa.array(["{}"] * len(values))
    elif pa.types.is_list(kind):
        lists = pa.ListArray.from_arrays(_offsets(values), _texts(values.flatten()))
        texts = pc.binary_join_element_wise("[", pc.binary_join(lists, ","), "]", "")
    elif pa.types.is_integer(kind):
        texts = pc.cast(values, pa.string())
    elif pa.types.is_string(kind) and not pc.any(pc.match_substring_regex(values, r'[\x00-\x1f"\\]')).as_py():
        texts = pc.binary_join_element_wise('"', values, '"', "")
    else:
        return pa.array([json.dumps(v, ensure_ascii=False, allow_nan=False) for v in values.to_pylist()], pa.string())
    return pc.if_else(pc.is_valid(values), texts, "null")


def _projected(values: pa.Array, kind: pa.DataType) -> pa.Array:
    """The values with the fields of ``kind`` alone. Raises ArrowInvalid or ValueError where they are not like it."""
    if values.type == kind:
        return values
    invalid = pc.is_null(values)
    if pa.types.is_struct(kind) and pa.types.is_struct(values.type):
        children = dict(zip((field.name for field in values.type), values.flatten(), strict=True))
        columns = [_projected(children[field.name], field.type) for field in kind]
        return pa.StructArray.from_arrays(columns, fields=list(kind), mask=invalid)
    if pa.types.is_list(kind) and pa.types.is_list(values.type):
        below = _projected(values.flatten(), kind.value_type)
        return pa.ListArray.from_arrays(_offsets(values), below, type=kind, mask=invalid)
    return values.cast(kind)


def _offsets(lists: pa.ListArray) -> pa.Array:
    """Where each list begins and ends in what flatten() makes of them."""
    offsets = np.zeros(len(lists) + 1, np.int32)
    np.cumsum(pc.fill_null(pc.list_value_length(lists), 0).to_numpy(), out=offsets[1:])
    return pa.array(offsets)


def whole(column: pa.ChunkedArray) -> pa.Array:
    """The values of a column in one piece; no copy where they are."""
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays([*column.chunks, pa.array([], column.type)])


# -- in bulk, of both kinds of sequences ------------------------------------------------------------------------------


def numbers(shards: Sequence[ShardEntry], name: str) -> list[int]:
    """One number of every shard."""
    if isinstance(shards, ShardList):
        return list(shards.table[name].to_pylist())
    return [getattr(shard, name) for shard in shards]


def with_deleted(shards: Sequence[ShardEntry]) -> list[int]:
    """Numbers of the shards that have deleted rows."""
    if isinstance(shards, ShardList):
        if DELETED.name not in shards.table.column_names:
            return []
        return list(pc.indices_nonzero(pc.is_valid(shards.table[DELETED.name])).to_pylist())
    return [number for number, shard in enumerate(shards) if shard.deleted]


def distinct_grids(shards: Sequence[ShardEntry]) -> set[tuple[int | None, ...]]:
    """The different grids of shards."""
    if isinstance(shards, ShardList):
        return set(map(tuple, shards.table["grid"].to_pylist()))
    return {shard.grid for shard in shards}


def joined(first: Sequence[ShardEntry], second: Sequence[ShardEntry]) -> ShardList:
    """The shards of both, one after the other."""
    tables = [ShardList.of(shards).table for shards in (first, second)]
    return ShardList(pa.concat_tables(tables, promote_options="default"))


def distinct_paths(shards: Sequence[ShardEntry]) -> int:
    """Different paths of shards."""
    if isinstance(shards, ShardList):
        return int(pc.count_distinct(shards.table["path"]).as_py())
    return len({shard.path for shard in shards})


def group_counts(shards: Sequence[ShardEntry]) -> NDArray[np.int64]:
    """Row groups of each shard: [shards]."""
    if isinstance(shards, ShardList):
        pieces = shards.table["row_groups"].chunks
        return _joined([_numpy(pc.list_value_length(piece).cast(pa.int64())) for piece in pieces])
    return np.array([len(shard.row_groups) for shard in shards], np.int64)


def group_rows(shards: Sequence[ShardEntry]) -> NDArray[np.int64]:
    """Rows of all row groups, in order: [row groups]."""
    if isinstance(shards, ShardList):
        return _joined([_numpy(piece.flatten().field("rows")) for piece in shards.table["row_groups"].chunks])
    return np.array([group.rows for shard in shards for group in shard.row_groups], np.int64)


def chunk_lengths(shards: Sequence[ShardEntry], levels: int) -> NDArray[np.int64]:
    """Bytes of the sizes, then of the codes of each level, of all row groups: [row groups, 1 + levels]."""
    if isinstance(shards, ShardList):
        return chunks(shards, levels)[1]
    groups = (group for shard in shards for group in shard.row_groups)
    rows = [[group.sizes.length, *(chunk.length for chunk in group.codes)] for group in groups]
    return np.array(rows, np.int64).reshape(-1, 1 + levels)


def chunks(shards: ShardList, levels: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Offsets and lengths of the sizes and codes of all row groups: twice [row groups, 1 + levels]."""
    both: tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]] = ([], [])
    for piece in shards.table["row_groups"].chunks:
        groups = piece.flatten()
        sizes, codes = groups.field("sizes"), groups.field("codes").flatten()
        for name, found in zip(("offset", "length"), both, strict=True):
            columns = [_numpy(sizes.field(name))[:, None], _numpy(codes.field(name)).reshape(-1, levels)]
            found.append(np.concatenate(columns, axis=1))
    empty = np.zeros((0, 1 + levels), np.int64)
    return np.concatenate([empty, *both[0]]), np.concatenate([empty, *both[1]])


def holding(shards: Sequence[ShardEntry], key: str) -> list[int]:
    """Numbers of the shards whose range of keys has this one."""
    if isinstance(shards, ShardList):
        table = shards.table
        inside = pc.and_(pc.less_equal(table["min_key"], key), pc.greater_equal(table["max_key"], key))
        return list(pc.indices_nonzero(inside).to_pylist())
    return [number for number, shard in enumerate(shards) if shard.min_key <= key <= shard.max_key]


def _joined(pieces: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(0, np.int64), *pieces])


def _numpy(values: pa.Array) -> NDArray[np.int64]:
    found: NDArray[np.int64] = values.to_numpy()
    return found
