"""Grids as a source: each is opened once to be planned as tiles, then read tile by tile on any worker."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Any

import pyarrow as pa

from tokenshard.errors import SpecError, StoreError
from tokenshard.sources.base import Reject, Sample, Sidecar, SourceColumn, Thunk
from tokenshard.sources.grids.open import file_sha256, is_zarr, open_grid
from tokenshard.sources.grids.opened import OpenGrid, valid_cells
from tokenshard.sources.grids.sidecar import StoredGrid, write_grids
from tokenshard.sources.grids.tiles import GridTile, read_tile, tile_at, tiles
from tokenshard.sources.images.files import Files, find_files
from tokenshard.sources.images.folder import is_image_name, is_litter
from tokenshard.sources.keys import UniqueKeys, escape_name, unescape_name
from tokenshard.sources.outcome import cleaned, planned_reject, rejected
from tokenshard.sources.plan import Input, plan_batches, planned_inputs, require_usable
from tokenshard.spec.grids import GridEntry, GridSourceSpec
from tokenshard.store import Store

OPEN_FILES = 4
"""Kept open by a worker."""
PLACES = ("level", "tile_row", "tile_col", "y0", "x0")
COLUMNS = pa.schema([pa.field("grid", pa.string()), *(pa.field(name, pa.int32()) for name in PLACES)])
"""Columns of a tile's place: its grid, the level, tile row and column, and the level's row and column it begins at."""


@dataclass(frozen=True)
class _Item:
    """One grid among the inputs: the file it is named after, and all that it consists of."""

    name: str
    files: tuple[str, ...]


def open_grid_source(
    spec: GridSourceSpec, storage_options: Mapping[str, Any] | None = None, state: Mapping[str, Any] | None = None
) -> GridSource:
    """The source of a spec. Raises SpecError when there is nothing at the path."""
    path = spec.path.rstrip("/")
    if is_zarr(path):
        folder, _, name = path.rpartition("/")
        return GridSource(spec, Files(Store(folder or ".", storage_options), "zarr", (name,)))
    return GridSource(spec, find_files(spec.path, storage_options, None if state is None else str(state["what"])))


class GridSource:
    """Grids in files and Zarr folders; one input is one tile, its key `<path>[:variable]#<level>/<row>/<column>`."""

    def __init__(self, spec: GridSourceSpec, files: Files) -> None:
        self.spec, self.files, self.store = spec, files, files.store
        self._planned: list[StoredGrid] = []
        self._open: OrderedDict[str, OpenGrid] = OrderedDict()
        self._lock = Lock()

    def plan(self) -> Iterator[pa.RecordBatch]:
        batches = plan_batches(self._inputs(), list(COLUMNS), UniqueKeys())
        yield from require_usable(batches, self.spec.path)

    def columns(self) -> tuple[SourceColumn, ...]:
        return tuple(SourceColumn(field.name, field.type, "metadata") for field in COLUMNS)

    def state(self) -> dict[str, Any]:
        return {"what": self.files.what}

    def sidecars(self) -> Sequence[Sidecar]:
        """The descriptions of the planned grids."""
        return [Sidecar("grids", "parquet", write_grids(self._planned))]

    # -- planning -----------------------------------------------------------------------------------------------------

    def _inputs(self) -> Iterator[Input]:
        for item in self._items():
            name = escape_name(item.name)
            try:
                stored = self._described(item)
            except SpecError:
                raise
            except Exception as error:
                if isinstance(error, StoreError) and error.transient:
                    raise
                reason = cleaned(str(error)) or type(error).__name__
                yield Input(name, name, error=f"unreadable: {reason}")
                continue
            self._planned.append(stored)
            yield from self._tiles(name, stored.entry)

    def _tiles(self, name: str, entry: GridEntry) -> Iterator[Input]:
        title = name if self.spec.variable is None else f"{name}:{self.spec.variable}"
        cell = pa.type_for_alias(entry.elevation.dtype).bit_width // 8
        for level in self.spec.levels:
            for tile in tiles(entry.height, entry.width, self.spec.tile, level):
                yield Input(
                    key=f"{title}#{level}/{tile.row}/{tile.column}",
                    uri=name,
                    bytes=tile.height * tile.width * cell,
                    meta={
                        "grid": entry.id,
                        "level": level,
                        "tile_row": tile.row,
                        "tile_col": tile.column,
                        "y0": tile.y0,
                        "x0": tile.x0,
                    },
                )

    def _items(self) -> Iterator[_Item]:
        """Files by their extension; what lies below a folder `….zarr` is one grid."""
        if self.files.what == "zarr":
            (name,) = self.files.names
            yield _Item(name, tuple(sorted(entry.name for entry in self.store.list(name))))
            return
        group: list[str] = []
        folder = ""
        for entry in self.files.list():
            name = entry.name
            if group and not name.startswith(f"{folder}/"):
                yield _Item(folder, tuple(group))
                group = []
            parts = name.split("/")
            depth = next((place for place, part in enumerate(parts[:-1]) if is_zarr(part)), None)
            if depth is not None:
                folder = "/".join(parts[: depth + 1])
                group.append(name)
            elif self.files.what == "file" or (is_image_name(name, self.spec.extensions) and not is_litter(name)):
                yield _Item(name, (name,))
        if group:
            yield _Item(folder, tuple(group))

    def _described(self, item: _Item) -> StoredGrid:
        grid = open_grid(self.store, item.name, self.spec)
        try:
            if not self._has_values(grid):
                raise ValueError(
                    f"no cell of {grid.entry.elevation.name!r} has a value; choose another variable with --variable, "
                    "or leave the file out"
                )
        finally:
            grid.close()
        size, sha256 = file_sha256(self.store, item.files)
        entry = grid.entry.model_copy(update={"source_bytes": size, "source_sha256": sha256})
        return StoredGrid(entry, grid.x, grid.y)

    def _has_values(self, grid: OpenGrid) -> bool:
        """Whether any cell has a value; most grids have one in their first tiles."""
        entry = grid.entry
        for tile in tiles(entry.height, entry.width, self.spec.tile, 1):
            rows, columns = slice(tile.y0, tile.y0 + tile.height), slice(tile.x0, tile.x0 + tile.width)
            if valid_cells(grid.read(0, rows, columns), entry.elevation).any():
                return True
        return False

    # -- reading ------------------------------------------------------------------------------------------------------

    def read(self, inputs: pa.Table) -> Iterator[Thunk]:
        for row in planned_inputs(inputs, COLUMNS.names):
            if row.error is not None:
                yield partial(planned_reject, row.key, row.uri, row.error)
            else:
                yield partial(self._read, row)

    def _read(self, row: Input) -> Sample | Reject:
        stage = "fetch"
        try:
            grid = self._opened(unescape_name(row.uri))
            stage = "decode"
            tile = tile_at(grid.entry, self.spec.tile, row.meta["level"], row.meta["tile_row"], row.meta["tile_col"])
            found = read_tile(grid, tile)
        except Exception as error:
            if isinstance(error, SpecError) or (isinstance(error, StoreError) and error.transient):
                raise
            return rejected(row.key, row.uri, stage, error)
        return GridTile(
            row.key,
            row.uri,
            found.data,
            row.bytes or 0,
            row.meta,
            grid=grid.entry,
            tile=tile,
            valid=found.valid,
            layers=found.layers,
            shoalest=found.shoalest,
        )

    def _opened(self, name: str) -> OpenGrid:
        with self._lock:
            if name in self._open:
                self._open.move_to_end(name)
                return self._open[name]
            grid = open_grid(self.store, name, self.spec)
            self._open[name] = grid
            if len(self._open) > OPEN_FILES:
                # Not closed here: a thread may still read from it. The last reference to it does that.
                self._open.popitem(last=False)
            return grid
