"""The checks a reader makes before it allocates or seeks, against the hard limits of the shard format.

A dataset may come from anywhere. Sizes in its files are believed only within these limits and only where the
manifest, the footer and the columns agree; everything else is a :class:`~tokenshard.errors.FormatError`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import pyarrow as pa

from tokenshard.codecs.base import Grids
from tokenshard.errors import FormatError
from tokenshard.shards.limits import (
    MAX_CHUNK_BYTES,
    MAX_FILE_BYTES,
    MAX_FOOTER_BYTES,
    MAX_GROUP_IDS,
    MAX_GROUP_ROWS,
    MAX_LEVELS,
    MAX_RANK,
    MAX_ROW_GROUPS,
)
from tokenshard.shards.screening import suspects
from tokenshard.shards.shard_list import ShardList, distinct_paths, numbers
from tokenshard.spec.codec import MAX_MODEL_BYTES, CodecSpec
from tokenshard.spec.manifest import SIDECARS, ChunkEntry, LevelEntry, Manifest, ShardEntry

REMEDY = "restore the file from a copy, or convert the dataset again"


@contextmanager
def damage_reported(where: str) -> Iterator[None]:
    """Turns whatever damaged bytes make Arrow, numpy or a codec raise into one FormatError that names ``where``."""
    try:
        yield
    except FileNotFoundError as error:
        raise FormatError(f"{where}: the file is missing; {REMEDY}") from error
    except FormatError as error:
        if str(error).startswith(where):
            raise
        raise FormatError(f"{where}: {error}") from error
    except (pa.ArrowException, OSError, ValueError, LookupError, OverflowError, MemoryError) as error:
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise FormatError(f"{where}: damaged ({reason}); {REMEDY}") from error


def require(condition: bool, what: str) -> None:
    """Raises FormatError(what) unless the condition holds."""
    if not condition:
        raise FormatError(what)


def check_manifest(manifest: Manifest) -> None:
    """Raises FormatError unless counts add up, limits hold and no path leaves the dataset folder."""
    levels = len(manifest.code.levels)
    require(1 <= levels <= MAX_LEVELS, f"{levels} code levels (1 to {MAX_LEVELS} are possible)")
    require(len(manifest.code.columns) == levels, "code levels and code columns differ in number")
    require(1 <= len(manifest.code.grid) <= MAX_RANK, f"a grid of {len(manifest.code.grid)} axes (1 to 3 are possible)")
    require(all(dim is None or 0 <= dim <= MAX_GROUP_IDS for dim in manifest.code.grid), "a grid of impossible size")
    for level, column in zip(manifest.code.levels, manifest.code.columns, strict=True):
        _check_level(level, column)
    shards, grid = manifest.shards, manifest.code.grid
    for shard in (shards[at] for at in suspects(shards, levels, grid)) if isinstance(shards, ShardList) else shards:
        require(_below(shard.path, "data"), f"shard path {shard.path!r} is not below data/")
        _check_shard(shard, levels, grid)
    for entry in manifest.rejects:
        require(_below(entry.path, "rejects"), f"rejects path {entry.path!r} is not below rejects/")
        require(entry.bytes <= MAX_CHUNK_BYTES, f"{entry.path}: a rejects file of {entry.bytes} bytes")
    rejects = {entry.path for entry in manifest.rejects}
    require(distinct_paths(shards) == len(shards) and len(rejects) == len(manifest.rejects), "a file is listed twice")
    for name, total in (
        ("samples", sum(numbers(shards, "rows"))),
        ("ids", sum(numbers(shards, "ids"))),
        ("raw_bytes", sum(numbers(shards, "raw_bytes"))),
        ("token_bytes", sum(numbers(shards, "bytes"))),
        ("rejects", sum(entry.rows for entry in manifest.rejects)),
    ):
        stated = getattr(manifest.totals, name)
        require(stated == total, f"totals.{name} is {stated}, but the listed files add up to {total}")
    for sha256, size in (*manifest.models.items(), *manifest.tables.items()):
        require(_is_hex(sha256, 64), f"model name {sha256!r} is not a SHA-256")
        require(0 < size <= MAX_MODEL_BYTES, f"model {sha256} of {size} bytes (at most {MAX_MODEL_BYTES})")
    for path, size in manifest.sidecars.items():
        folder, _, name = path.partition("/")
        stem, _, suffix = name.partition(".")
        named = folder in SIDECARS and _is_hex(stem, 64) and suffix.isalnum()
        require(named, f"sidecar path {path!r} is not <folder>/<SHA-256>.<suffix> in one of: {', '.join(SIDECARS)}")
        require(0 < size <= MAX_CHUNK_BYTES, f"sidecar {path} of {size} bytes")
    require(_is_hex(manifest.tokenizer.fingerprint, 16), "tokenizer fingerprint is not 16 hex digits")


def _check_level(level: LevelEntry, column: CodecSpec) -> None:
    where, remap = f"column {column.column!r}", level.remap
    if remap is None:
        require(level.alphabet == column.alphabet, f"{where}: its alphabet differs from that of its level")
        return
    require(level.alphabet <= MAX_GROUP_IDS, f"{where}: alphabet of {level.alphabet} tokenizer ids")
    require(len(remap) == column.alphabet, f"{where}: {len(remap)} remapped ids for an alphabet of {column.alphabet}")
    require(min(remap) >= 0 and max(remap) < level.alphabet, f"{where}: an id is remapped outside its level's alphabet")


def _check_shard(shard: ShardEntry, levels: int, grid: tuple[int | None, ...]) -> None:
    where = shard.path
    require(shard.bytes <= MAX_FILE_BYTES, f"{where}: a shard of {shard.bytes} bytes")
    require(len(shard.row_groups) <= MAX_ROW_GROUPS, f"{where}: more than {MAX_ROW_GROUPS} row groups")
    require(sum(group.rows for group in shard.row_groups) == shard.rows, f"{where}: rows do not add up")
    edges = [edge for run in shard.deleted for edge in run]
    ascend = all(before < after for before, after in pairwise(edges))
    require(ascend and (not edges or 0 <= edges[0] <= edges[-1] <= shard.rows), f"{where}: deleted rows out of order")
    require(len(shard.grid) == len(grid), f"{where}: grid has {len(shard.grid)} axes instead of {len(grid)}")
    agrees = all(dim is None or dim == own for dim, own in zip(grid, shard.grid, strict=True))
    require(agrees, f"{where}: grid differs from the dataset's {list(grid)}")
    fixed = [dim for dim in shard.grid if dim is not None]
    if len(fixed) == len(grid):
        ids = math.prod(fixed)
        require(shard.ids == levels * shard.rows * ids, f"{where}: {shard.ids} ids are not those of its rows and grid")
        largest = max((group.rows for group in shard.row_groups), default=0)
        require(largest * ids <= MAX_GROUP_IDS, f"{where}: {largest * ids} ids a level in a row group")
    require(shard.footer.length <= MAX_FOOTER_BYTES, f"{where}: footer of {shard.footer.length} bytes")
    require(_end(shard.footer) == shard.bytes, f"{where}: the footer is not at the end of the file")
    for group in shard.row_groups:
        require(group.rows <= MAX_GROUP_ROWS, f"{where}: row group of {group.rows} rows (at most {MAX_GROUP_ROWS})")
        require(len(group.codes) == levels, f"{where}: {len(group.codes)} code chunks for {levels} levels")
        position = 0
        for chunk in (group.sizes, *group.codes, shard.footer):
            require(chunk.offset >= position, f"{where}: byte ranges overlap or are out of order")
            require(chunk.length <= MAX_CHUNK_BYTES, f"{where}: chunk of {chunk.length} bytes")
            position = _end(chunk)
        span = _end(group.codes[-1]) - group.sizes.offset
        require(span <= MAX_CHUNK_BYTES, f"{where}: row group of {span} bytes")


def check_sizes(num_tokens: np.ndarray[tuple[int], np.dtype[np.int32]], grids: Grids, ids: int) -> None:
    """Raises FormatError unless the grids of a row group agree with ``num_tokens`` and hold at most ``ids`` ids."""
    require(bool((grids >= 0).all()), "negative grid size")
    products = np.ones(len(grids))  # float64 is exact far beyond the limit and cannot wrap around as integers would
    for axis in range(grids.shape[1]):
        products *= grids[:, axis]
    require(bool((products == num_tokens).all()), "num_tokens differs from the token grid")
    total = float(products.sum())
    require(total <= min(ids, MAX_GROUP_IDS), f"{total:.0f} ids a level, more than the manifest or the format allows")


def _end(chunk: ChunkEntry) -> int:
    return chunk.offset + chunk.length


def _below(path: str, folder: str) -> bool:
    first, *rest = path.split("/")
    return (
        first == folder
        and bool(rest)
        and not any(part in {"", ".", ".."} or "\\" in part or "\0" in part for part in rest)
    )


def _is_hex(text: str, digits: int) -> bool:
    return len(text) == digits and not set(text) - set("0123456789abcdef")
