"""Small real datasets for the tests of shards: written by the real writer, with real codecs, on a real disk."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save

from tokenshard.codecs.base import Codec
from tokenshard.codecs.choose import load_codec
from tokenshard.codecs.context import ContextCodec
from tokenshard.codecs.copy import CopyCodec
from tokenshard.codecs.multiset import MultisetCodec
from tokenshard.shards.manifest import commit_manifest
from tokenshard.shards.rejects import describe_rejects, rejects_bytes
from tokenshard.shards.schema import CodeColumns, code_names, column_entries, shard_schema
from tokenshard.shards.writer import ShardWriter, TokenBatch
from tokenshard.spec.base import digest
from tokenshard.spec.codec import CodecSpec
from tokenshard.spec.manifest import (
    CodeEntry,
    JobEntry,
    LevelEntry,
    Manifest,
    RejectsEntry,
    ShardEntry,
    TokenizerEntry,
    Totals,
)
from tokenshard.spec.tokenizer import TokenizerSpec
from tokenshard.store import Store

WEIGHTS = save({"codebook": np.arange(32, dtype=np.float32).reshape(8, 4)})
TOKENIZER = TokenizerSpec(
    kind="patch",
    levels=(256,),
    downsample=(4, 4),
    numerics="fp32",
    weights_sha256=hashlib.sha256(WEIGHTS).hexdigest(),
)
ENTRY = TokenizerEntry(fingerprint=TOKENIZER.fingerprint, numerics=TOKENIZER.numerics)
FITTED: dict[str, Any] = {"context": ContextCodec, "copy": CopyCodec, "multiset": MultisetCodec}


@dataclass(frozen=True)
class Rows:
    """Tokenized rows of one shard, with everything needed to write them and to know what must be read back."""

    columns: CodeColumns
    batch: TokenBatch
    user: pa.Schema
    models: dict[str, bytes] = field(default_factory=dict)

    def codec(self, spec: CodecSpec) -> Codec:
        return load_codec(spec, self.models.get(spec.model or ""))

    def __len__(self) -> int:
        return len(self.batch.keys)

    @property
    def grids(self) -> NDArray[np.int32]:
        return self.columns.grids(self.batch.sizes)

    def samples(self) -> list[NDArray[Any]]:
        """Codes of each row: [*grid], or [levels, *grid] for several levels."""
        ends = np.cumsum(np.prod(self.grids.astype(np.int64), axis=1))[:-1]
        levels = [np.split(ids, ends) for ids in self.batch.ids]
        stacked = [
            np.stack(parts).reshape(len(levels), *grid) for *parts, grid in zip(*levels, self.grids, strict=True)
        ]
        return [sample[0] if len(levels) == 1 else sample for sample in stacked]

    def cut(self, places: Sequence[int]) -> list[TokenBatch]:
        """The rows as consecutive batches, cut before each of these rows."""
        tokens = np.concatenate([[0], np.cumsum(np.prod(self.grids.astype(np.int64), axis=1))])
        edges = [0, *sorted(places), len(self)]
        return [
            TokenBatch(
                keys=self.batch.keys[a:b],
                sizes=self.batch.sizes[a:b],
                ids=tuple(ids[tokens[a] : tokens[b]] for ids in self.batch.ids),
                raw_bytes=self.batch.raw_bytes if a == 0 and number == 0 else 0,
                columns=self.batch.columns.slice(a, b - a) if self.batch.columns is not None else None,
            )
            for number, (a, b) in enumerate(itertools.pairwise(edges))
        ]


def token_rows(
    count: int,
    *,
    codecs: Sequence[str] = ("pack",),
    alphabet: int = 256,
    varied: bool = False,
    rank: int = 2,
    side: int = 8,
    group: int = 1,
    seed: int = 0,
    first: int = 0,
    stream: int = 0,
) -> Rows:
    """Random rows: images of 4x4 patches for rank 2, else grids without extents (varied only for rank 1).

    ``stream``: bytes of a column `residual` of packed bytes, in each row; 0: without one.
    """
    rng = np.random.default_rng([seed, first])
    extents, downsample = (("height", "width"), (4, 4)) if rank == 2 else ((), ())
    if rank == 2:
        sizes = rng.integers(1, 4 * side, (count, 2)) if varied else np.full((count, 2), 4 * side)
    elif rank == 1:
        sizes = rng.integers(0, 2 * side, (count, 1)) if varied else np.full((count, 1), side)
    else:
        sizes = np.tile([2, side, side], (count, 1))
    sizes = sizes.astype(np.int32)
    grids = (sizes + 3) // 4 if rank == 2 else sizes
    total = int(np.prod(grids.astype(np.int64), axis=1).sum())
    dtype = np.uint16 if alphabet <= 1 << 16 else np.int32
    ids = tuple(rng.integers(0, alphabet, total).astype(dtype) for _ in codecs)
    if "multiset" in codecs:  # its samples are sorted
        ends = np.cumsum(np.prod(grids.astype(np.int64), axis=1))[:-1]
        ids = tuple(np.concatenate([np.sort(part) for part in np.split(level, ends)]) for level in ids)
    specs, models = [], {}
    for name, codec, level in zip(code_names(len(codecs)), codecs, ids, strict=True):
        model = FITTED[codec].fit(level, grids, alphabet).model_bytes() if codec in FITTED else None
        sha256 = hashlib.sha256(model).hexdigest() if model else None
        models |= {sha256: model} if model else {}
        shared = group if codec == "context" else 1
        specs.append(CodecSpec(column=name, codec=codec, alphabet=alphabet, model=sha256, group=shared))
    columns = CodeColumns(
        codes=tuple(specs),
        grid=(2, side, side) if rank == 3 else (None,) * rank,
        extents=extents,
        downsample=downsample,
        streams=("residual",) if stream else (),
    )
    user = pa.table(
        {
            "label": pa.array(rng.integers(0, 10, count), pa.int64()),
            "caption": pa.array([None if n % 3 == 0 else f"picture {n % 7}" for n in range(count)], pa.string()),
            "split": pa.array([("train", "test")[n % 5 == 0] for n in range(count)]).dictionary_encode(),
            "tags": pa.array([[f"t{n % 4}", "x"][: n % 3] for n in range(count)], pa.list_(pa.string())),
        }
    )
    if stream:
        user = user.append_column("residual", pa.array([rng.bytes(stream) for _ in range(count)], pa.binary()))
    keys = [f"img/{first + n:06d}.jpg" for n in range(count)]
    batch = TokenBatch(keys=keys, sizes=sizes, ids=ids, raw_bytes=1000 * count, columns=user)
    return Rows(columns, batch, user.schema, models)


def write_shard(
    path: Path, rows: Rows, name: str = "data/job-000000.parquet", cuts: Sequence[int] = (), **options: Any
):
    """Writes the rows with :class:`ShardWriter`; the entry."""
    codecs = [rows.codec(spec) for spec in rows.columns.codes]
    with ShardWriter(path, name, rows.columns, codecs, ENTRY, rows.user, **options) as writer:
        for batch in rows.cut(cuts):
            writer.append(batch)
        return writer.close()


def write_dataset(folder: Path, shards: Sequence[Rows], rejects: int = 0, **options: Any) -> Store:
    """A complete dataset with one shard for each ``Rows``, its tokenizer, and a committed manifest."""
    store = Store(folder)
    temporary = folder.parent / f"{folder.name}.parquet"
    entries = []
    for number, rows in enumerate(shards):
        name = f"data/job-{number:06d}.parquet"
        entry = write_shard(temporary, rows, name, **options)
        store.put(name, temporary)
        entries.append(entry)
        for sha256, model in rows.models.items():
            store.put(f"models/{sha256}.tsm", model)
    temporary.unlink(missing_ok=True)
    store.put(f"tokenizer/{TOKENIZER.fingerprint}/tokenizer.json", TOKENIZER.model_dump_json().encode())
    store.put(f"tokenizer/{TOKENIZER.fingerprint}/model.safetensors", WEIGHTS)
    refused = []
    if rejects:
        row = {"key": "bad", "uri": "bad.jpg", "stage": "decode", "error": "OSError", "message": "cut off", "unit": 0}
        data = rejects_bytes([{**row, "key": f"bad{n}"} for n in range(rejects)])
        store.put("rejects/job-000000.parquet", data)
        refused.append(describe_rejects(data, "rejects/job-000000.parquet"))
    commit_manifest(store, manifest_of(store, shards, entries, refused))
    return store


def manifest_of(
    store: Store, shards: Sequence[Rows], entries: Sequence[ShardEntry], rejects: Sequence[RejectsEntry] = ()
) -> Manifest:
    """The first manifest of these shards."""
    columns = shards[0].columns
    layouts = tuple(shards[0].codec(spec).layout for spec in columns.codes)
    schema = shard_schema(columns, layouts, shards[0].user)
    grids = np.concatenate([rows.grids for rows in shards])
    shared = tuple(
        int(grids[0, axis]) if (grids[:, axis] == grids[0, axis]).all() else None for axis in range(columns.rank)
    )
    samples, refused = sum(entry.rows for entry in entries), sum(entry.rows for entry in rejects)
    return Manifest(
        version=1,
        kind="image",
        totals=Totals(
            samples=samples,
            ids=sum(entry.ids for entry in entries),
            raw_bytes=sum(entry.raw_bytes for entry in entries),
            token_bytes=sum(entry.bytes for entry in entries),
            rejects=refused,
        ),
        code=CodeEntry(
            levels=tuple(LevelEntry(alphabet=spec.alphabet, used=spec.alphabet) for spec in columns.codes),
            grid=shared,
            columns=columns.codes,
        ),
        tokenizer=ENTRY,
        models={sha256: len(model) for rows in shards for sha256, model in rows.models.items()},
        columns=tuple(column_entries(schema, columns, {"label": None})),
        preprocess={"resize": 32},
        source={"root": "/somewhere"},
        jobs=(JobEntry(id="job", spec_sha256="0" * 64, plan_sha256="1" * 64, units=1, inputs=samples + refused),),
        shards=tuple(entries),
        rejects=tuple(rejects),
    )


def edit_manifest(store: Store, change: Callable[[dict[str, Any]], None]) -> None:
    """Rewrites version 1 with a change and a fingerprint that fits it, as another implementation might write it."""
    document = json.loads(store.read("manifest/00000001.json"))
    change(document)
    document["fingerprint"] = digest(
        {k: v for k, v in document.items() if k not in {"source", "shards_file", "fingerprint"}}
    )
    store.put("manifest/00000001.json", json.dumps(document).encode())


@pytest.fixture
def make_rows() -> Callable[..., Rows]:
    return token_rows


@pytest.fixture
def make_shard(tmp_path: Path) -> Callable[..., ShardEntry]:
    """Writes rows to ``<tmp_path>/data/job-000000.parquet`` (or the path given) and returns the entry."""

    def write(rows: Rows, path: Path | None = None, **options: Any) -> ShardEntry:
        target = path or tmp_path / "data" / "job-000000.parquet"
        target.parent.mkdir(exist_ok=True)
        return write_shard(target, rows, **options)

    return write


@pytest.fixture
def make_dataset(tmp_path: Path) -> Callable[..., Store]:
    """Writes a dataset below ``tmp_path`` and returns its store."""

    def write(*shards: Rows, name: str = "tokens", **options: Any) -> Store:
        return write_dataset(tmp_path / name, shards, **options)

    return write


@pytest.fixture
def change_manifest() -> Callable[[Store, Callable[[dict[str, Any]], None]], None]:
    return edit_manifest
