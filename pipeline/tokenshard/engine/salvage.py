"""What can be taken out of a damaged row group: rows that are whole, rows that were filled, and rows that are lost.

Nothing is believed that no check vouches for. A row is whole where its level's checksum holds, or where its own stream
passes the end check of the `context` codec (wrong once in 65,536 damaged streams). Where whole sectors of the file
read as zeros, as holes in copies of failing disks do, the ids that do not depend on them are known and the others are
filled. Damage whose place is unknown takes the whole row; in a `pack` column, whose streams have no check, all
rows of the row group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from tokenshard.codecs.base import Ids, sample_sizes
from tokenshard.codecs.context import ContextCodec
from tokenshard.codecs.pack import PackCodec
from tokenshard.errors import FormatError
from tokenshard.readable import counted
from tokenshard.shards.reader import RowGroup, ShardReader
from tokenshard.shards.schema import KEY
from tokenshard.spec.manifest import ChunkEntry
from tokenshard.tokenizers.fill import fill_lost

SECTOR = 512
LEAST_KNOWN = 0.5
"""Share of the first level's ids of a sample that must be known; below, the sample is lost."""
_REFILLS = 8


@dataclass
class Salvage:
    """Of one row group. Arrays have an entry a row of the row group."""

    kept: NDArray[np.bool_]
    grids: NDArray[np.int32]
    ids: list[Ids] = field(default_factory=list)
    """by level, of all rows back to back; meaningless in rows that are not kept"""
    table: pa.Table | None = None
    """key, extents and the user's columns"""
    filled: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """ids that were filled, by row"""
    notes: list[str] = field(default_factory=list)


def zero_sectors(data: bytes) -> NDArray[np.bool_]:
    """Which whole sectors of a file are zeros."""
    whole = np.frombuffer(data, np.uint8, len(data) // SECTOR * SECTOR).reshape(-1, SECTOR)
    zero: NDArray[np.bool_] = np.equal(whole.max(axis=1, initial=0), 0)
    return zero


def salvage_group(
    reader: ShardReader, group: int, data: bytes, erased: NDArray[np.bool_], codebooks: Sequence[NDArray[Any]]
) -> Salvage:
    """What is left of a row group of the shard file ``data``, which ``reader`` reads too.

    ``erased``: its :func:`zero_sectors`; ``codebooks``: by level the vectors of the stored ids, empty where there are
    none: then nothing can be filled.
    """
    listed = reader.entry.row_groups[group]
    out = Salvage(np.ones(listed.rows, bool), np.zeros((0, reader.columns.rank), np.int32))
    out.filled = np.zeros(listed.rows, np.int64)
    out.table = _columns(reader, group, out.notes)
    damaged = [not _holds(data, chunk) for chunk in listed.codes]
    if out.table is None:
        return _lost(out, "keys, or packed bytes that belong to the ids, are damaged")
    if not _holds(data, listed.sizes):
        return _lost(out, "sizes are damaged")
    try:
        coded = reader.read_group(group, verify=False)
    except FormatError:  # of the page of a compressed list: the other columns have no page that is looked at
        return _lost(out, "a list of ids is damaged, and lists are compressed as a whole")
    out.grids = coded.grids
    touched = np.zeros(listed.rows, bool)
    """rows whose ids of the level before are not those that were stored"""
    for level, chunk in enumerate(listed.codes):
        chunk_erased = _erased_bytes(erased, chunk)
        known = _known(coded, level, damaged[level], chunk_erased, touched, out)
        touched = _fill(coded, level, known, codebooks, out)
        if damaged[level]:
            where = "" if chunk_erased.any() or coded.codecs[level].name != "pack" else ", no telling where"
            rows = counted(int(touched.sum()), "row is", "rows are")
            out.notes.append(f"{coded.specs[level].column} is damaged{where}: {rows} not whole")
    return out


def _lost(out: Salvage, reason: str) -> Salvage:
    out.notes.append(f"{reason}: all {len(out.kept):,} rows are lost")
    out.kept[:] = False
    return out


def _columns(reader: ShardReader, group: int, notes: list[str]) -> pa.Table | None:
    """Key, extents and user columns; None where keys or packed bytes are damaged. Other damaged columns are empty."""
    codes = {spec.column for spec in reader.columns.codes}
    names = [name for name in reader.schema.names if name not in codes]
    rows = reader.entry.row_groups[group].rows
    columns = {}
    for name in names:
        try:
            columns[name] = reader.read_columns(group, [name])[name]
        except FormatError:
            if name == KEY or name in reader.columns.streams:
                return None
            notes.append(f"column {name!r} is damaged: its {rows:,} values are empty now")
            columns[name] = pa.chunked_array([pa.nulls(rows, reader.schema.field(name).type)])
    return pa.table(columns)


def _holds(data: bytes, chunk: ChunkEntry) -> bool:
    return xxhash.xxh64(data[chunk.offset : chunk.offset + chunk.length]).hexdigest() == chunk.xxh64


def _erased_bytes(erased: NDArray[np.bool_], chunk: ChunkEntry) -> NDArray[np.bool_]:
    """Which bytes of a chunk lie in erased sectors."""
    sectors = np.arange(chunk.offset, chunk.offset + chunk.length) // SECTOR
    return np.append(erased, False)[np.minimum(sectors, len(erased))]


def _known(
    coded: RowGroup, level: int, damaged: bool, erased: NDArray[np.bool_], touched: NDArray[np.bool_], out: Salvage
) -> NDArray[np.bool_]:
    """Which ids of a level are as they were stored. Adds them, and zeros for the others, to ``out.ids``."""
    sizes = sample_sizes(coded.grids)
    codec, data, lengths = coded.codecs[level], coded.streams[level], coded.lengths[level]
    known = np.ones(int(sizes.sum()), bool)
    if not damaged and not (codec.needs_earlier and touched.any()):
        before = out.ids[level - 1] if codec.needs_earlier else None
        if lengths is None:
            out.ids.append(data)
        else:
            out.ids.append(codec.decode(data, lengths, coded.grids, earlier=before))
        return known
    ids: Ids = np.zeros(len(known), np.uint16 if codec.alphabet <= 1 << 16 else np.int32)
    out.ids.append(ids)
    if lengths is None:  # an intact list
        ids[:] = data
        return known
    if isinstance(codec, PackCodec) and damaged and not erased.any():
        known[:] = False  # any byte may be wrong, and nothing tells which
        return known
    ends, stops = np.cumsum(lengths), np.cumsum(sizes)
    for first in range(0, coded.rows, codec.group):
        last = min(first + codec.group, coded.rows)
        stream = slice(int(ends[first] - lengths[first]), int(ends[last - 1]))
        mine = slice(int(stops[first] - sizes[first]), int(stops[last - 1]))
        if codec.needs_earlier and touched[first:last].any():
            known[mine] = False
            continue
        before = out.ids[level - 1][mine] if codec.needs_earlier else None
        arguments = (lengths[first:last], coded.grids[first:last])
        try:
            known[mine] = _known_of_stream(codec, data[stream], arguments, erased[stream], before, ids[mine])
        except FormatError:
            known[mine] = False
    return known


def _known_of_stream(
    codec: Any,
    data: NDArray[np.uint8],
    arguments: tuple[Any, Any],
    erased: NDArray[np.bool_],
    before: Ids | None,
    out: Ids,
) -> NDArray[np.bool_]:
    """Decode the stream of a row, or of a group of rows, into ``out``; which of its ids are as they were stored.

    Raises FormatError where the stream is damaged outside of its erased bytes.
    """
    if isinstance(codec, PackCodec):
        first = np.arange(len(out)) * codec.bits
        hit = np.concatenate([[0], np.cumsum(erased)])
        out[:] = codec.decode(data, *arguments)
        whole: NDArray[np.bool_] = np.equal(hit[(first + codec.bits + 7) // 8], hit[first // 8])
        return whole
    if not erased.any():
        out[:] = codec.decode(data, *arguments, earlier=before)
        return np.ones(len(out), bool)
    if not isinstance(codec, ContextCodec):
        return np.zeros(len(out), bool)
    draw = np.random.default_rng(0)
    tries = []
    for _ in range(_REFILLS):
        refilled = np.where(erased, draw.integers(0, 256, len(data)), data).astype(np.uint8)
        tries.append(codec.try_decode(refilled, *arguments, earlier=before)[0])
    out[:] = tries[0]
    same = np.stack([np.equal(one, tries[0]) for one in tries]).all(axis=0)
    known: NDArray[np.bool_] = np.logical_and.accumulate(same)
    return known


def _fill(
    coded: RowGroup, level: int, known: NDArray[np.bool_], codebooks: Sequence[NDArray[Any]], out: Salvage
) -> NDArray[np.bool_]:
    """Fill what is not known of a level; which rows that concerns. Rows that cannot be filled are lost."""
    sizes = sample_sizes(coded.grids)
    stops = np.cumsum(sizes)
    whole = sizes == 0
    if len(known):
        whole |= np.logical_and.reduceat(known, np.minimum(stops - sizes, len(known) - 1))
    for row in np.flatnonzero(~whole & out.kept).tolist():
        mine = slice(int(stops[row] - sizes[row]), int(stops[row]))
        if not len(codebooks) or (level == 0 and known[mine].mean() < LEAST_KNOWN):
            out.kept[row] = False
            continue
        grid = coded.grids[row].tolist()
        ids = out.ids[level][mine].reshape(grid)
        out.ids[level][mine] = fill_lost(ids, known[mine].reshape(grid), codebooks[level]).ravel()
        out.filled[row] += int((~known[mine]).sum())
    changed: NDArray[np.bool_] = ~whole
    return changed
