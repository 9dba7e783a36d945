"""A dataset as users see it: samples by number or key, codes as arrays, the other columns as tables.

Opened from its manifest alone; shards are touched when their rows are asked for. The loader and the command line
start here.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, lru_cache
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tokenshard.codecs.base import Codec, Ids, id_dtype
from tokenshard.codecs.choose import load_codec
from tokenshard.errors import FormatError, SpecError
from tokenshard.readable import counted
from tokenshard.shards.bounds import damage_reported, require
from tokenshard.shards.cache import Cache, CachedStore
from tokenshard.shards.deleted import deleted_rows, live_rows
from tokenshard.shards.manifest import read_manifest
from tokenshard.shards.once import OnceCache
from tokenshard.shards.reader import RowGroup, ShardReader, arrange, joins_footer
from tokenshard.shards.schema import KEY, length_name
from tokenshard.shards.shard_list import chunk_lengths, group_counts, group_rows, holding, with_deleted
from tokenshard.spec.codec import CodecSpec
from tokenshard.spec.manifest import Manifest
from tokenshard.spec.tokenizer import TokenizerSpec
from tokenshard.store import Store

OPEN_SHARDS = 256
CACHED_GROUPS = 32
"""Footers, and encoded row groups of about 2 MiB, kept in memory."""
TABLE_THREADS = 8
Codes = NDArray[Any] | list[NDArray[Any]]


def open_dataset(
    url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None, version: int | None = None
) -> Dataset:
    """The dataset in a folder or bucket prefix, at its newest version or the given one.

    Raises SpecError when there is none, FormatError when its manifest is damaged or too new.
    """
    store = Store(url, storage_options)
    return Dataset(store, read_manifest(store, version))


class Dataset:
    """One version of a dataset. Thread-safe, picklable; memory holds the manifest and a small cache.

    Whatever reads shards raises FormatError, naming shard, row group and rows, where bytes are damaged or missing, and
    StoreError where the store does not answer.
    """

    def __init__(self, store: Store, manifest: Manifest) -> None:
        self.store, self.manifest = store, manifest
        shards = manifest.shards
        counts = group_counts(shards)
        self._first_group = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
        rows = group_rows(shards)
        self._live: dict[int, NDArray[np.int64]] = {}
        """by row group, where rows are deleted: the others"""
        for number in with_deleted(shards):
            for group, live in enumerate(live_rows(shards[number]), int(self._first_group[number])):
                if live is not None:
                    self._live[group], rows[group] = live, len(live)
        self._starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(rows, dtype=np.int64)])
        self._first_samples = array("q", self._starts.tobytes())  # found by bisection
        grid = manifest.code.grid
        self.fixed_grid = tuple(dim for dim in grid if dim is not None) if None not in grid else None
        """token grid that all samples share, or None"""
        self._reader = OnceCache(self._open_shard, OPEN_SHARDS)
        self._codec: Callable[[CodecSpec], Codec] = OnceCache(self._load_codec, 256)
        self._group: Callable[[int], RowGroup] = lru_cache(CACHED_GROUPS)(self.read_group)
        self._shard_keys: Callable[[int], pa.ChunkedArray] = lru_cache(CACHED_GROUPS)(self._read_shard_keys)
        self._group_columns: Callable[[int], list[tuple[str, pa.Array]]] = lru_cache(CACHED_GROUPS)(self._read_columns)

    def __reduce__(self) -> tuple[type[Dataset], tuple[Store, Manifest]]:
        return type(self), (self.store, self.manifest)

    def cached(self, cache: Cache) -> Self:
        """The same dataset with what is read from it kept in a local folder; itself where it is local.

        Raises SpecError for a cache that does not hold a single row group.
        """
        if self.store.is_local:
            return self
        lengths = chunk_lengths(self.manifest.shards, len(self.manifest.code.columns))
        largest = int(lengths.sum(axis=1).max(initial=0))
        if cache.limit < 2 * largest:
            raise SpecError(
                f"{os.fspath(cache.folder)}: a cache of {cache.limit} bytes is too small for {self.store.root}, "
                f"whose largest row group has {largest}; give it at least {2 * largest}"
            )
        return type(self)(CachedStore(self.store, cache, self.fingerprint), self.manifest)

    def __repr__(self) -> str:
        return f"<tokenshard.Dataset {self.store.root} version {self.manifest.version}: {counted(len(self), 'sample')}>"

    def __len__(self) -> int:
        return self._first_samples[-1]

    @property
    def fingerprint(self) -> str:
        """Hash of everything in the dataset, 64 hex digits; equal fingerprints mean equal shard bytes."""
        return self.manifest.fingerprint

    @property
    def num_row_groups(self) -> int:
        """Row groups of all shards, those without any row that is left included."""
        return len(self._starts) - 1

    @property
    def group_starts(self) -> NDArray[np.int64]:
        """Number of the first sample of each row group, and of samples; int64 [num_row_groups + 1]."""
        return self._starts

    def numbers(self, shard: int) -> NDArray[np.int64]:
        """Number of the sample that each row of a shard is, -1 for rows that are deleted; int64 [rows]."""
        first = int(self._starts[self._first_group[shard]])
        gone = deleted_rows(self.manifest.shards[shard])
        return np.where(gone, -1, first + np.cumsum(~gone) - 1)

    def group_codes(self, group: int) -> Codes:
        """Codes of a row group, by its number in the whole dataset; what `codes` gives of its samples."""
        return self._arranged(self.read_group(group), None)

    def flat_codes(self, group: RowGroup, rows: NDArray[np.int64] | None = None) -> list[Ids]:
        """Codes of a fetched row group, or of some rows of it: one flat array a level, samples back to back.

        The tokenizer's ids, uint16 or int32; ``rows`` in the order given.
        """
        return self._tokenizer_ids(group.decode(rows))

    def group_table(self, group: int, columns: Sequence[str]) -> pa.Table:
        """The named columns of a row group; those its shard lacks are empty. Raises KeyError for unknown names."""
        empty = pa.schema([self.schema.field(name) for name in columns]).empty_table()
        return pa.concat_tables([empty, self._columns(group, columns)], promote_options="default")

    @cached_property
    def schema(self) -> pa.Schema:
        """The columns of `table`: everything except the encoded codes. Columns of appended shards come last."""
        fields: dict[str, pa.Field] = {}
        for shard in range(len(self.manifest.shards)):
            fields |= {field.name: field for field in self._reader(shard).schema if field.name not in fields}
            if all(name in fields for name in self._names):
                break
        return pa.schema([fields[name] for name in self._names if name in fields])

    @property
    def _names(self) -> list[str]:
        hidden = {name for spec in self.manifest.code.columns for name in (spec.column, length_name(spec))}
        return [column.name for column in self.manifest.columns if column.name not in hidden]

    # -- samples ------------------------------------------------------------------------------------------------------

    def __getitem__(self, item: int | slice | Sequence[int]) -> dict[str, Any]:
        """One sample: its columns as Python values and `codes` [*grid] ([levels, *grid] for several levels).

        A slice or a list of numbers gives the same dict with a list (of codes: what `codes` gives) a column. Negative
        numbers count from the end. Raises IndexError for a number that is none.
        """
        if isinstance(item, int | np.integer):
            number = int(item)
            if not 0 <= number < len(self):
                number = int(self._numbers([number])[0])
            group = bisect_right(self._first_samples, number) - 1
            row = number - self._first_samples[group]
            sample = {name: column[row].as_py() for name, column in self._group_columns(group)}
            sample["codes"] = self._sample_codes(self._group(group), row)
            return sample
        ids = range(len(self))[item] if isinstance(item, slice) else item
        return {**self.rows(ids).to_pydict(), "codes": self.codes(ids)}

    def rows(self, ids: Sequence[int] | NDArray[np.integer[Any]]) -> pa.Table:
        """All columns but the codes of the samples with these numbers, in that order. Raises IndexError."""
        numbers = self._numbers(ids)
        parts, order = [self.schema.empty_table()], []
        for group, places, rows in self._by_group(numbers):
            parts.append(pa.table(dict(self._group_columns(group)), schema=self.schema).take(pa.array(rows)))
            order.append(places)
        if not order:
            return parts[0]
        back = np.argsort(np.concatenate(order), kind="stable")
        return pa.concat_tables(parts).take(pa.array(back))

    def codes(self, ids: Sequence[int] | NDArray[np.integer[Any]]) -> Codes:
        """Codes of the samples with these numbers, in that order: [n, *grid], or [n, levels, *grid] for several levels.

        uint16 (int32 for alphabets above 65,536). A list with one array a sample where the grid varies. Raises
        IndexError for a number that is none.
        """
        wanted = self._numbers(ids)
        out: list[Any] = [None] * len(wanted)
        if self.fixed_grid is not None:
            array = np.empty((len(wanted), *self._shape()), self._dtype())
        for group, places, rows in self._by_group(wanted):
            part = self._arranged(self._group(group), rows)
            if self.fixed_grid is not None:
                array[places] = part
                continue
            for place, sample in zip(places.tolist(), part, strict=True):
                out[place] = sample
        return out if self.fixed_grid is None else array

    def iter_codes(self) -> Iterator[Codes]:
        """Codes of the whole dataset in order, one row group at a time: what `codes` gives of its samples."""
        for group in range(self.num_row_groups):
            yield self.group_codes(group)

    def iter_tables(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The named columns (None: all) but the codes of the whole dataset in order, one row group at a time.

        Raises SpecError for unknown names.
        """
        names = self.schema.names if columns is None else list(columns)
        for name in names:
            if name not in self.schema.names:
                raise SpecError(f"{self.store.root}: no column {name!r}; there are {', '.join(self.schema.names)}")
        for group in range(self.num_row_groups):
            yield self.group_table(group, names)

    def index(self, key: str) -> int:
        """Number of the sample with this key. Opens shards that may hold it. Raises KeyError where there is none."""
        for shard in holding(self.manifest.shards, key):
            place = pc.index(self._shard_keys(shard), key).as_py()
            if place >= 0:
                return int(self._starts[self._first_group[shard]]) + int(place)
        raise KeyError(key)

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The named columns of all samples (None: all but the codes), in order. Raises SpecError for unknown names."""
        known = [column.name for column in self.manifest.columns]
        for name in columns or ():
            if name not in known:
                raise SpecError(f"{self.store.root}: no column {name!r}; there are {', '.join(known)}")
        names = list(self._names if columns is None else columns)
        with ThreadPoolExecutor(TABLE_THREADS) as threads:
            tables = list(threads.map(lambda group: self._columns(group, names), range(self.num_row_groups)))
        if not tables:
            return pa.table({name: pa.nulls(0) for name in names})
        joined = pa.concat_tables(tables, promote_options="default")
        return joined.select([name for name in names if name in joined.column_names])

    # -- what decodes them --------------------------------------------------------------------------------------------

    def tokenizer_files(self) -> tuple[TokenizerSpec, bytes]:
        """The dataset's own tokenizer: its description and the bytes of its safetensors file.

        Raises FormatError where a hash differs.
        """
        folder = f"tokenizer/{self.manifest.tokenizer.fingerprint}"
        with damage_reported(self.store.url(folder)):
            spec = TokenizerSpec.model_validate_json(self.store.read(f"{folder}/tokenizer.json"))
            weights = self.store.read(f"{folder}/model.safetensors")
            require(hashlib.sha256(weights).hexdigest() == spec.weights_sha256, "weights differ from tokenizer.json")
            require(spec.fingerprint == self.manifest.tokenizer.fingerprint, "tokenizer.json is another tokenizer's")
        return spec, weights

    def reader(self, shard: int) -> ShardReader:
        """The open reader of the shard with this number (cached)."""
        return self._reader(shard)

    def _open_shard(self, shard: int, with_last: bool = False) -> ShardReader:
        reader = ShardReader(self.store, self.manifest.shards[shard], self._codec, with_last)
        levels = [(spec.column, spec.alphabet) for spec in reader.columns.codes]
        if levels != [(spec.column, spec.alphabet) for spec in self.manifest.code.columns]:
            raise FormatError(f"{reader.url}: code columns differ from the manifest")
        return reader

    def _load_codec(self, spec: CodecSpec) -> Codec:
        return load_codec(spec, read_model(self.store, self.manifest, spec.model) if spec.model else None)

    # -- row groups ---------------------------------------------------------------------------------------------------

    def place(self, group: int) -> tuple[ShardReader, int]:
        """The reader of the shard that a row group is in, and its number there. It knows nothing of deleted rows."""
        shard, local = self.locate(group)
        return self._reader(shard), local

    def locate(self, group: int) -> tuple[int, int]:
        """The number of the shard that a row group is in, and its number there. Opens nothing."""
        shard = int(np.searchsorted(self._first_group, group, "right")) - 1
        return shard, group - int(self._first_group[shard])

    def read_group(
        self, group: int, levels: int | None = None, columns: Sequence[str] = (), verify: bool = True
    ) -> RowGroup:
        """The encoded codes of a row group, by its number in the whole dataset (one range read, not cached).

        Rows that are deleted are not among them.

        The other arguments are those of `ShardReader.read_group`.
        """
        shard, local = self.locate(group)
        whole = levels is None or levels >= len(self.manifest.code.columns)
        with_last = joins_footer(self.store, self.manifest.shards[shard], local, whole)
        found = self._reader(shard, with_last).read_group(local, levels, columns, verify)
        if self.fixed_grid is not None:
            with damage_reported(found.where):
                require(bool((found.grids == self.fixed_grid).all()), "token grid differs from the manifest")
        live = self._live.get(group)
        return found if live is None else found.of_rows(live)

    def _columns(self, group: int, names: Sequence[str]) -> pa.Table:
        shard, local = self.locate(group)
        table, live = self._reader(shard).read_columns(local, names), self._live.get(group)
        return table if live is None else table.take(pa.array(live))

    def _read_columns(self, group: int) -> list[tuple[str, pa.Array]]:
        """All columns but the codes of a row group, each in one piece; those its shard lacks are empty."""
        table = self.group_table(group, self.schema.names)
        return [(name, table[name].combine_chunks()) for name in table.column_names]

    def _read_shard_keys(self, shard: int) -> pa.ChunkedArray:
        groups = range(int(self._first_group[shard]), int(self._first_group[shard + 1]))
        return pa.concat_tables([self._columns(group, [KEY]) for group in groups])[KEY]

    def _numbers(self, ids: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        numbers = np.asarray(ids, np.int64)
        if numbers.ndim != 1 or ((numbers < -len(self)) | (numbers >= len(self))).any():
            known = f"sample numbers go from 0 to {len(self) - 1}" if len(self) else "the dataset is empty"
            raise IndexError(f"{self.store.root}: {known}")
        return np.where(numbers < 0, numbers + len(self), numbers)

    def _by_group(self, numbers: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
        """(row group, places in ``numbers``, rows inside the row group), ascending."""
        groups = np.searchsorted(self._starts, numbers, "right") - 1
        order = np.lexsort((numbers, groups))
        if not len(order):
            return
        found, first = np.unique(groups[order], return_index=True)
        for group, places in zip(found.tolist(), np.split(order, first[1:]), strict=True):
            yield group, places, numbers[places] - self._starts[group]

    def _arranged(self, group: RowGroup, rows: NDArray[np.int64] | None) -> Codes:
        levels = self.flat_codes(group, rows)
        return arrange(levels, group.grids if rows is None else group.grids[rows], self.fixed_grid)

    def _sample_codes(self, group: RowGroup, row: int) -> NDArray[Any]:
        """[*grid], or [levels, *grid] for several levels."""
        levels = self._tokenizer_ids(group.decode_row(row))
        grid = group.grids[row].tolist() if self.fixed_grid is None else self.fixed_grid
        if len(levels) == 1:
            return levels[0].reshape(grid)
        return np.stack([ids.reshape(grid) for ids in levels], dtype=np.result_type(*levels))

    def _tokenizer_ids(self, levels: Sequence[Ids]) -> list[Ids]:
        pairs = zip(self._remaps, levels, strict=True)
        return [ids if remap is None else remap[ids] for remap, ids in pairs]

    @cached_property
    def _remaps(self) -> list[Ids | None]:
        """For each level the tokenizer's ids by stored id, where they differ."""
        remaps = (level.remap for level in self.manifest.code.levels)
        return [None if remap is None else np.array(remap, self._dtype()) for remap in remaps]

    def _dtype(self) -> type[np.uint16] | type[np.int32]:
        return id_dtype(max(level.alphabet for level in self.manifest.code.levels))

    def _shape(self) -> tuple[int, ...]:
        levels = len(self.manifest.code.levels)
        assert self.fixed_grid is not None
        return self.fixed_grid if levels == 1 else (levels, *self.fixed_grid)


def read_model(store: Store, manifest: Manifest, sha256: str) -> bytes:
    """A codec model of the dataset. Raises FormatError when the manifest does not list it or its hash differs."""
    name = manifest.model_path(sha256)
    with damage_reported(store.url(name)):
        size = manifest.models.get(sha256, manifest.tables.get(sha256))
        if size is None:
            raise FormatError("codec model is not listed in the manifest")
        data = store.read(name, 0, size + 1)
        require(hashlib.sha256(data).hexdigest() == sha256, "damaged (SHA-256 differs)")
    return data


def read_sidecar(store: Store, manifest: Manifest, path: str) -> bytes:
    """A sidecar of the dataset. Raises FormatError when it is missing or its hash differs from its name."""
    with damage_reported(store.url(path)):
        data = store.read(path, 0, manifest.sidecars[path] + 1)
        stem = path.rpartition("/")[2].partition(".")[0]
        require(hashlib.sha256(data).hexdigest() == stem, "damaged (SHA-256 differs)")
    return data
