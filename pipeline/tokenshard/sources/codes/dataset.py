"""A token dataset as a source: its ids, keys and columns, read row group by row group. What `transcode` reads.

Nothing is taken on trust and nothing is left out in silence: a shard that is missing or damaged stops the job with the
name of the file, and the same command goes on once the file is restored. The rejects of the dataset are inputs it never
had ids of; they are not carried over, only counted in the new manifest's `source`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import groupby, pairwise
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tokenshard.codecs.base import Ids, id_dtype, sample_sizes
from tokenshard.errors import FormatError, SpecError
from tokenshard.shards.dataset import Dataset, read_sidecar
from tokenshard.shards.deleted import live_rows
from tokenshard.shards.keys import KeySet
from tokenshard.shards.manifest import read_manifest
from tokenshard.shards.reader import ShardReader
from tokenshard.shards.schema import KEY, CodeColumns
from tokenshard.sources.base import PLAN_COLUMNS, CodeLayout, Sample, Sidecar, SourceColumn, Thunk
from tokenshard.sources.outcome import planned_reject
from tokenshard.sources.plan import BATCH, Input, column_values, planned_inputs
from tokenshard.spec.codes import DatasetSourceSpec
from tokenshard.spec.manifest import ColumnEntry
from tokenshard.spec.tokenizer import PAGES
from tokenshard.store import Store

CACHED_SHARDS = 64
"""Shards whose row group starts are kept at hand."""


def open_dataset_source(
    spec: DatasetSourceSpec, storage: Mapping[str, Any], state: Mapping[str, Any] | None = None
) -> DatasetSource:
    """The dataset at ``spec.path``, at the version that was planned. Raises SpecError or FormatError."""
    return DatasetSource(spec, Store(spec.path, storage), state)


class DatasetSource:
    """One version of a token dataset."""

    def __init__(self, spec: DatasetSourceSpec, store: Store, state: Mapping[str, Any] | None = None) -> None:
        self._spec, self._store = spec, store
        manifest = read_manifest(store, spec.version if state is None else state["version"])
        if state is not None and manifest.fingerprint != state["fingerprint"]:
            raise SpecError(f"{spec.path}: is not the dataset that was planned; start again with --overwrite")
        if not manifest.shards:
            raise SpecError(f"{spec.path}: version {manifest.version} of the dataset holds no samples")
        self._manifest, self._dataset = manifest, Dataset(store, manifest)
        self._numbers = {shard.path: number for number, shard in enumerate(manifest.shards)}
        available = len(manifest.code.columns)
        if spec.levels is not None and spec.levels > available:
            raise SpecError(f"{spec.path}: has {available} levels; levels must be 1 to {available}, not {spec.levels}")
        self._levels = manifest.code.levels[: spec.levels]
        self._kept = self._kept_columns()
        self._starts = lru_cache(CACHED_SHARDS)(self._first_rows)
        if state is not None:
            self._counts = [np.array(counts, np.int64) for counts in state.get("counts", [])]
        else:
            self._counts = [np.zeros(level.alphabet, np.int64) for level in self._levels if spec.counts]
        columns = self._dataset.reader(0).columns if state is None else CodeColumns.model_validate(state["columns"])
        self._extents, self._downsample = columns.extents, columns.downsample

    def _kept_columns(self) -> tuple[ColumnEntry, ...]:
        """The label and metadata columns that are carried over."""
        roles = {"label", "metadata", "stream"}
        users = {column.name: column for column in self._manifest.columns if column.role in roles}
        for name in (*(self._spec.columns or ()), *self._spec.drop):
            if name not in users:
                known = ", ".join(users) or "none"
                raise SpecError(f"{self._spec.path}: no label or metadata column {name!r}; it has {known}")
        wanted = users if self._spec.columns is None else self._spec.columns
        kept = tuple(column for name, column in users.items() if name in wanted and name not in self._spec.drop)
        if len(self._levels) < len(self._manifest.code.levels) and self._dataset.tokenizer_files()[0].kind == PAGES:
            raise SpecError(f"{self._spec.path}: the vector of a page needs all its levels; leave `levels` out")
        streams = [column.name for column in kept if column.role == "stream"]
        if streams and (self._spec.derives or len(self._levels) < len(self._manifest.code.levels)):
            raise SpecError(
                f"{self._spec.path}: {', '.join(streams)} belong to its ids as they are; without these columns (drop) "
                "the ids can be changed"
            )
        return kept

    # -- planning -----------------------------------------------------------------------------------------------------

    def plan(self) -> Iterator[pa.RecordBatch]:
        """One input a sample. `bytes` is its share of the code bytes of its row group.

        Where the spec needs to know how often each id occurs, all ids are decoded and counted.
        """
        seen = KeySet()
        name, prefix = self._key_column()
        for number, shard in enumerate(self._manifest.shards):
            start, kept = 0, live_rows(shard)
            for group, listed in enumerate(shard.row_groups):
                own = kept[group]
                live = np.arange(listed.rows) if own is None else own
                values = self._dataset.reader(number).read_columns(group, [name]).take(pa.array(live))
                keys = self._keys(values, name, prefix, shard.path)
                self._check_unique(seen, keys, name, shard.path)
                if self._spec.counts:
                    self._count(number, group, live)
                rows: NDArray[np.int64] = start + live
                sizes = _shares(sum(chunk.length for chunk in listed.codes[: len(self._levels)]), listed.rows)[live]
                columns = [keys, [shard.path] * len(keys), pa.nulls(len(keys)), sizes, rows, pa.nulls(len(keys))]
                arrays = [pa.array(c).cast(f.type) for c, f in zip(columns, PLAN_COLUMNS, strict=True)]
                batch = pa.RecordBatch.from_arrays(arrays, schema=PLAN_COLUMNS)
                for first in range(0, batch.num_rows, BATCH):
                    yield batch.slice(first, BATCH)
                start += listed.rows

    def _count(self, number: int, group: int, rows: NDArray[np.int64]) -> None:
        ids = self._dataset.reader(number).read_group(group, len(self._levels)).decode(rows)
        for level, (counts, plane) in enumerate(zip(self._counts, ids, strict=True)):
            counts += np.bincount(self._tokenizer_ids(level, plane), minlength=len(counts))

    def _key_column(self) -> tuple[str, str]:
        """Column the keys come from, and what is put before them."""
        how, _, text = self._spec.keys.partition(":")
        if how != "column":
            return KEY, text
        if text not in {column.name for column in self._manifest.columns if column.role != "code"}:
            raise SpecError(f"{self._spec.path}: no column {text!r} to take keys from")
        return text, ""

    def _keys(self, table: pa.Table, name: str, prefix: str, shard: str) -> list[str]:
        where = f"{self._store.url(shard)}: column {name!r}"
        column = table[name] if name in table.column_names else pa.chunked_array([pa.nulls(table.num_rows)])
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            if not pa.types.is_integer(column.type):
                raise SpecError(f"{where} is {column.type}; keys must be text or whole numbers")
            column = column.cast(pa.string())
        keys = column.to_pylist()
        if not all(keys):
            raise SpecError(f"{where} is empty in some rows; every sample needs a key")
        return [prefix + key for key in keys] if prefix else keys

    def _check_unique(self, seen: KeySet, keys: Sequence[str], name: str, shard: str) -> None:
        repeated = seen.add(keys)
        if repeated.any():
            raise SpecError(
                f"{self._store.url(shard)}: {keys[int(repeated.argmax())]!r} occurs twice in column {name!r}; "
                "every sample needs a key of its own"
            )

    def columns(self) -> tuple[SourceColumn, ...]:
        schema = self._dataset.schema
        found = []
        for column in self._kept:
            if column.name not in schema.names:
                raise FormatError(f"{self._spec.path}: no shard has the column {column.name!r} of the manifest")
            found.append(SourceColumn(column.name, schema.field(column.name).type, column.role, column.names))
        return tuple(found)

    def state(self) -> dict[str, Any]:
        columns = self._dataset.reader(0).columns
        return {
            "version": self._manifest.version,
            "fingerprint": self._manifest.fingerprint,
            "columns": columns.model_dump(mode="json"),
            "counts": [counts.tolist() for counts in self._counts],
        }

    # -- what it holds ------------------------------------------------------------------------------------------------

    @property
    def counts(self) -> Sequence[NDArray[np.int64]]:
        """By level how often each id of the tokenizer occurs, where the spec asks for it and planning is complete."""
        return self._counts

    def layout(self) -> CodeLayout:
        manifest = self._manifest
        used = [tuple(np.flatnonzero(counts).tolist()) for counts in self._counts] if self._spec.used_codes else []
        return CodeLayout(
            alphabets=tuple(level.alphabet for level in self._levels),
            grid=manifest.code.grid,
            extents=self._extents,
            downsample=self._downsample,
            kind=manifest.kind,
            streams=tuple(column.name for column in self._kept if column.role == "stream"),
            preprocess=manifest.preprocess,
            used=tuple(ids or (0,) for ids in used),
            codec=self._order_free,
            origin={
                "raw_bytes": manifest.totals.raw_bytes,
                "dataset": {
                    "version": manifest.version,
                    "fingerprint": manifest.fingerprint,
                    "levels": len(manifest.code.levels),
                    "rejects": manifest.totals.rejects,
                    "source": manifest.source,
                },
            },
        )

    @property
    def _order_free(self) -> Literal["multiset"] | None:
        """`multiset` where the order of the ids has no meaning: another codec would store one all the same."""
        stored = {spec.codec for spec in self._manifest.code.columns[: len(self._levels)]}
        return "multiset" if stored == {"multiset"} and not self._spec.derives else None

    def tokenizer(self) -> Store:
        self._dataset.tokenizer_files()  # raises where they are not those of the manifest
        folder = f"tokenizer/{self._manifest.tokenizer.fingerprint}"
        return Store(self._store.url(folder), self._store.options)

    # -- reading ------------------------------------------------------------------------------------------------------

    def sidecars(self) -> Sequence[Sidecar]:
        """Those of the dataset."""
        found = []
        for path in self._manifest.sidecars:
            folder, _, name = path.partition("/")
            found.append(Sidecar(folder, name.partition(".")[2], read_sidecar(self._store, self._manifest, path)))
        return found

    def read(self, inputs: pa.Table) -> Iterator[Thunk]:
        rows = list(planned_inputs(inputs, ()))
        for (path, group), members in groupby(rows, key=self._place):
            mine = list(members)
            if path is None:  # no longer among the inputs
                yield from (partial(planned_reject, row.key, row.uri, row.error or "") for row in mine)
                continue
            number = self._numbers[path]
            start = int(self._starts(number)[group])
            part = _Part(self, number, group, np.array([row.index for row in mine], np.int64) - start)
            yield from (partial(self._sample, part, place, row) for place, row in enumerate(mine))

    def _place(self, row: Input) -> tuple[str | None, int]:
        """Shard and row group of a planned row."""
        if row.error is not None or row.index is None:
            return None, 0
        return row.uri, int(np.searchsorted(self._starts(self._numbers[row.uri]), row.index, "right")) - 1

    def _first_rows(self, number: int) -> NDArray[np.int64]:
        """The first row of each row group of a shard."""
        rows = [group.rows for group in self._manifest.shards[number].row_groups]
        return np.cumsum([0, *rows[:-1]])

    def _sample(self, part: _Part, place: int, row: Input) -> Sample:
        codes, sizes, columns = part.content()
        shard = self._manifest.shards[part.shard]
        return Sample(
            key=row.key,
            uri=row.uri,
            data=codes[place],
            raw_bytes=_share(shard.raw_bytes, shard.rows, row.index or 0),
            columns={name: values[place] for name, values in columns.items()},
            size=tuple(sizes[place].tolist()) if self._extents else None,
        )

    def content(self, number: int, group: int, rows: NDArray[np.int64]) -> _Content:
        """Codes, input sizes and columns of some rows of a row group. Raises FormatError where it is damaged."""
        reader = self._dataset.reader(number)
        self._check_layout(reader)
        coded = reader.read_group(group, len(self._levels))
        names = [column.name for column in self._kept]
        table = reader.read_columns(group, [*self._extents, *names]).take(pa.array(rows))
        grids = coded.grids[rows]
        levels = [self._tokenizer_ids(level, ids) for level, ids in enumerate(coded.decode(rows))]
        ends = np.cumsum(sample_sizes(grids)).tolist()
        spans = zip(pairwise([0, *ends]), grids.tolist(), strict=True)
        codes = [np.stack([ids[start:end].reshape(grid) for ids in levels]) for (start, end), grid in spans]
        sizes = np.stack([table[name].to_numpy() for name in self._extents], axis=1) if self._extents else grids
        missing = [None] * len(rows)
        return codes, sizes, {n: column_values(table[n]) if n in table.column_names else missing for n in names}

    def _check_layout(self, reader: ShardReader) -> None:
        columns = reader.columns
        if (columns.extents, columns.downsample) != (self._extents, self._downsample):
            raise FormatError(f"{reader.url}: its token grids are laid out otherwise than those of the first shard")

    def _tokenizer_ids(self, level: int, ids: Ids) -> Ids:
        """Ids as the tokenizer knows them."""
        entry = self._levels[level]
        return ids if entry.remap is None else cast(Ids, np.array(entry.remap, id_dtype(entry.alphabet))[ids])


_Content = tuple[list[NDArray[Any]], NDArray[np.int32], dict[str, list[Any]]]
"""Codes [levels, *grid] a row; sizes [rows, rank]; column values by name."""


@dataclass
class _Part:
    """Some rows of a row group: fetched and decoded together, when the first of them is asked for."""

    source: DatasetSource
    shard: int
    group: int
    rows: NDArray[np.int64]
    _content: _Content | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def content(self) -> _Content:
        with self._lock:
            if self._content is None:
                self._content = self.source.content(self.shard, self.group, self.rows)
            return self._content


def _share(total: int, count: int, number: int) -> int:
    """Part ``number`` of ``count`` equal parts of ``total``, in whole units that add up to it."""
    return total * (number + 1) // count - total * number // count


def _shares(total: int, count: int) -> NDArray[np.int64]:
    edges = total * np.arange(count + 1, dtype=np.int64) // count
    return np.diff(edges)
