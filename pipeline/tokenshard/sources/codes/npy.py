"""NumPy arrays of ids: `<name>.npy` [n, *grid] with arrays beside it, or `.npz` archives.

`<name>.keys.npy` holds the keys, `<name>.<column>.npy` (of as many rows) a column. In an archive the array `codes`
(or the one that `column` names) holds the ids, `keys` the keys, and every other array of as many rows is a column.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tokenshard.sources.codes.arrays import ArrayFile, members, open_array
from tokenshard.sources.codes.base import LABELS, CodeFiles, Load, Record
from tokenshard.sources.keys import escape_name, unescape_name
from tokenshard.sources.plan import Input
from tokenshard.spec.codes import ImportSourceSpec

ROWS = 4096
"""Most rows read together."""
BLOCK_BYTES = 4 << 20
KEYS = "keys"


@dataclass(frozen=True)
class _Arrays:
    """The arrays of one split."""

    codes: ArrayFile
    columns: Mapping[str, ArrayFile]


class NpySource(CodeFiles):
    """Ids as .npy files, with one file for each column."""

    format = "npy"
    extension = ".npy"

    def fields(self) -> list[pa.Field]:
        fields: dict[str, pa.Field] = {}
        for arrays in self._arrays.values():
            for name, array in arrays.columns.items():
                if name != self._keys and name not in fields:
                    kind = pa.string() if array.dtype.kind == "U" else pa.from_numpy_dtype(array.dtype)
                    fields[name] = pa.field(name, kind)
        return list(fields.values())

    def records(self) -> Iterator[Record]:
        for name, arrays in self._arrays.items():
            uri, codes, start = escape_name(name), arrays.codes, 0
            step = _step(codes)
            columns = {column: array.values(step) for column, array in arrays.columns.items()}
            looked = codes.values(step) if self.looks else None
            while start < len(codes):
                count = min(step, len(codes) - start)
                values = {column: next(stream).tolist() for column, stream in columns.items()}
                ids = [None] * count if looked is None else next(looked)
                keys = values.pop(self._keys, None) or [f"{uri}/{row:08d}" for row in range(start, start + count)]
                for place in range(count):
                    meta = {column: value[place] for column, value in values.items()}
                    row = Input(str(keys[place]), uri, None, codes.row_bytes, start + place, meta=meta)
                    yield Record(row, ids[place])
                start += count

    def loads(self, uri: str, rows: Sequence[Input]) -> Iterator[Load]:
        codes = self._codes(unescape_name(uri))
        step, part = _step(codes), None
        for row in rows:
            index = row.index or 0
            if part is None or not part.start <= index < part.start + part.count:
                part = _Part(codes, index, min(step, len(codes) - index))
            yield partial(part.row, index)

    # -- which files --------------------------------------------------------------------------------------------------

    @property
    def _keys(self) -> str:
        return self.spec.key_column or KEYS

    @cached_property
    def _arrays(self) -> dict[str, _Arrays]:
        names = [entry.name for entry in self.files.list() if entry.name.endswith(self.extension)]
        found = self._found(names)
        for name, arrays in found.items():
            if not np.issubdtype(arrays.codes.dtype, np.integer):
                raise self.damaged(name, f"ids are {arrays.codes.dtype}, not integers")
            for column, array in arrays.columns.items():
                if array.shape != (len(arrays.codes),):
                    raise self.damaged(
                        array.name,
                        f"{column!r} has the shape {list(array.shape)}, there are {len(arrays.codes)} samples",
                    )
        return found

    def _found(self, names: Sequence[str]) -> dict[str, _Arrays]:
        """By the name of the file with the ids. `a.npy` takes `a.b.npy` for its column `b`."""
        stems = {name.removesuffix(".npy") for name in names}
        if self.files.what == "file":
            stem = names[0].removesuffix(".npy") if names else ""
            beside = [f"{stem}.{column}" for column in self._usual_columns()]
            stems, main = {name for name in beside if self.store.exists(f"{name}.npy")}, [stem]
        else:
            main = sorted(stem for stem in stems if _main(stem) == stem or _main(stem) not in stems)
        if not main or not names:
            raise self.error("no .npy files found; check the path")
        return {
            f"{stem}.npy": _Arrays(
                self._codes(f"{stem}.npy"),
                {
                    other.removeprefix(f"{stem}."): open_array(self.store, f"{other}.npy")
                    for other in sorted(stems)
                    if other.startswith(f"{stem}.")
                },
            )
            for stem in main
        }

    def _usual_columns(self) -> set[str]:
        """Columns looked for beside a single file: a folder is listed, its parent is not."""
        exported = {column.name for column in self.described.columns} if self.described else set()
        return {self._keys, self.spec.labels, *LABELS, *exported}

    def _codes(self, name: str) -> ArrayFile:
        return open_array(self.store, name)


class NpzSource(NpySource):
    """Ids as .npz archives."""

    format = "npz"
    extension = ".npz"

    def _found(self, names: Sequence[str]) -> dict[str, _Arrays]:
        if not names:
            raise self.error("no .npz files found; check the path")
        found = {}
        for name in names:
            codes = self._codes(name)
            others = {m: open_array(self.store, name, m) for m in members(self.store, name) if m != codes.member}
            found[name] = _Arrays(codes, {m: array for m, array in others.items() if array.shape == (len(codes),)})
        return found

    def _codes(self, name: str) -> ArrayFile:
        there = members(self.store, name)
        wanted = self.spec.column or ("codes" if "codes" in there else there[0] if len(there) == 1 else "codes")
        if wanted not in there:
            raise self.error(
                f"{name} has no array {wanted!r}; it has {', '.join(there) or 'none'}; name it with `column`"
            )
        return open_array(self.store, name, wanted)


@dataclass
class _Part:
    """Rows of an array, read together when the first of them is asked for."""

    array: ArrayFile
    start: int
    count: int
    _rows: NDArray[Any] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def row(self, index: int) -> NDArray[Any]:
        with self._lock:
            if self._rows is None:
                self._rows = self.array.rows(self.start, self.count)
        row: NDArray[Any] = self._rows[index - self.start]
        return row


def _main(stem: str) -> str:
    """The name before the first dot of the last part of a path."""
    folder, slash, base = stem.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _step(array: ArrayFile) -> int:
    return max(1, min(ROWS, BLOCK_BYTES // max(1, array.row_bytes)))


def open_npy_source(
    spec: ImportSourceSpec, storage: Mapping[str, Any], state: Mapping[str, Any] | None = None
) -> NpySource:
    """Ids in .npy files."""
    return NpySource(spec, storage, state)


def open_npz_source(
    spec: ImportSourceSpec, storage: Mapping[str, Any], state: Mapping[str, Any] | None = None
) -> NpzSource:
    """Ids in .npz archives."""
    return NpzSource(spec, storage, state)
