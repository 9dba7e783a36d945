"""Makes the golden datasets: small, complete, one a feature of the format, with their ids beside them as plain arrays.

    python tests/golden/make.py [NAME …]

Writes ``sets/<name>/`` (a dataset), ``expected/<name>.npz`` (keys, grids and ids, one flat int32 array a level) and its
line of ``expected.json`` for names that are not there yet. What is there stays: every later version of the package
must read these files and write the same ids to the same bytes. A feature that comes later gets a set of its own.
Everything is drawn with integers from a seed, so a set depends on the release of the package and of pyarrow alone.
"""

from __future__ import annotations

import datetime
import decimal
import hashlib
import json
import sys
import tempfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from definitions import SETS, Golden, Level, draw_levels, fit_models
from safetensors.numpy import save

from tokenshard.codecs.choose import load_codec
from tokenshard.shards.manifest import commit_manifest
from tokenshard.shards.rejects import describe_rejects, rejects_bytes
from tokenshard.shards.schema import CodeColumns, code_names, column_entries, shard_schema
from tokenshard.shards.writer import ShardWriter, TokenBatch
from tokenshard.spec.codec import CodecSpec
from tokenshard.spec.manifest import (
    CodeEntry,
    ColumnEntry,
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

HERE = Path(__file__).parent
ROW_GROUP_BYTES = 2 << 10
"""Small, so that shards of a few kilobytes have several row groups."""


def user_columns(rng: np.random.Generator, count: int, golden: Golden, later: bool) -> pa.Table:
    label = pa.array(rng.integers(0, 10, count), pa.int64())
    if not golden.many_types:
        score = {"score": pa.array(rng.integers(0, 99, count) / 8, pa.float64())} if later else {}
        return pa.table({"label": label, **score})
    numbers = rng.integers(-1000, 1000, count).tolist()
    day = datetime.date(2020, 2, 29)
    noon = datetime.datetime(2020, 2, 29, 12, tzinfo=datetime.UTC)

    def some(make: Callable[[int], Any]) -> list[Any]:
        return [None if n % 3 == 0 else make(n) for n in numbers]

    box = pa.struct({"x": pa.int32(), "y": pa.list_(pa.int16())})
    columns = {
        "label": label,
        "caption": pa.array(some(lambda n: f"Bild № {n} 🖼"), pa.string()),
        "split": pa.array([("train", "test")[n % 5 == 0] for n in numbers], pa.string()).dictionary_encode(),
        "seen": pa.array(some(lambda n: n > 0), pa.bool_()),
        "small": pa.array(some(lambda n: n % 100), pa.int8()),
        "large": pa.array(some(lambda n: 2**63 + n + 2000), pa.uint64()),
        "single": pa.array(some(lambda n: n / 8), pa.float32()),
        "double": pa.array(some(lambda n: n / 3), pa.float64()),
        "price": pa.array(some(lambda n: decimal.Decimal(n) / 100), pa.decimal128(10, 2)),
        "day": pa.array(some(lambda n: day + datetime.timedelta(n)), pa.date32()),
        "time": pa.array(some(lambda n: noon + datetime.timedelta(microseconds=n)), pa.timestamp("us", "UTC")),
        "blob": pa.array(some(lambda n: bytes([n % 256, 0])), pa.binary()),
        "fixed": pa.array(some(lambda n: n.to_bytes(4, "big", signed=True)), pa.binary(4)),
        "tags": pa.array([[f"t{n % 4}", "x"][: n % 3] for n in numbers], pa.list_(pa.string())),
        "box": pa.array(some(lambda n: {"x": n, "y": [n, n + 1]}), box),
    }
    return pa.table(columns)


def tokenizer_of(golden: Golden) -> tuple[TokenizerSpec, bytes]:
    weights = save({"codebook": np.arange(32, dtype=np.float32).reshape(8, 4)})
    spec = TokenizerSpec(
        kind="patch",
        modality=golden.kind,
        levels=tuple(tokenizer_alphabet(golden, level) for level in golden.levels),
        downsample=(4,) * len(golden.extents),
        config={"rate": 0.1, "name": "golden ✓"},
        numerics="fp32",
        weights_sha256=hashlib.sha256(weights).hexdigest(),
    )
    return spec, weights


def tokenizer_alphabet(golden: Golden, level: Level) -> int:
    return 3 * level.alphabet + 5 if golden.remap else level.alphabet


def remap_of(golden: Golden, level: Level) -> tuple[int, ...] | None:
    """The tokenizer's ids of the stored ids."""
    return tuple(3 * i + 2 for i in range(level.alphabet)) if golden.remap else None


def code_columns(golden: Golden, models: Sequence[bytes | None]) -> CodeColumns:
    [grid] = golden.grids(np.random.default_rng(0), 1).tolist()
    specs = [
        CodecSpec(
            column=name,
            codec=level.codec,
            alphabet=level.alphabet,
            model=None if model is None else hashlib.sha256(model).hexdigest(),
            group=level.group,
            needs_earlier=level.earlier,
        )
        for name, level, model in zip(code_names(len(models)), golden.levels, models, strict=True)
    ]
    return CodeColumns(
        codes=tuple(specs),
        grid=tuple(grid) if len(grid) > 1 and not golden.extents else (None,) * len(grid),
        extents=golden.extents,
        downsample=(4,) * len(golden.extents),
        neighbours=("left", "up") if golden.name == "context-grid" else (),
    )


def put_shard(
    store: Store,
    golden: Golden,
    columns: CodeColumns,
    models: Sequence[bytes | None],
    seed: int,
    number: int,
    later: bool,
) -> tuple[ShardEntry, dict[str, np.ndarray]]:
    """Writes a shard; (its entry, expected arrays)."""
    rng, rows = np.random.default_rng([seed, 2, number]), golden.shards[number]
    grids = golden.grids(rng, rows)
    levels = draw_levels(rng, grids, golden.levels)
    # sizes in pixels need not be multiples of the patches
    sizes = np.maximum(4 * grids - rng.integers(0, 4, grids.shape, np.int32), 0) if golden.extents else grids
    keys = [f"part{number}/{row * 13 % rows:04d}-ö.png" for row in range(rows)]
    name, table = f"data/golden-{number:06d}.parquet", user_columns(rng, rows, golden, later)
    spec, _ = tokenizer_of(golden)
    tokenizer = TokenizerEntry(fingerprint=spec.fingerprint, numerics=spec.numerics)
    codecs = [load_codec(codec, model) for codec, model in zip(columns.codes, models, strict=True)]
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "shard.parquet"
        with ShardWriter(path, name, columns, codecs, tokenizer, table.schema, ROW_GROUP_BYTES) as writer:
            writer.append(TokenBatch(keys, sizes, tuple(levels), 1000 * rows + number, table))
            entry = writer.close()
        assert entry is not None
        store.put(name, path)
    arrays = {"keys": np.array(keys), "grids": grids, "labels": table["label"].to_numpy()}
    for number, ids in enumerate(levels):
        remap = remap_of(golden, golden.levels[number])
        arrays[f"codes_{number}"] = np.array(remap, np.int32)[ids] if remap else ids.astype(np.int32)
    return entry, arrays


def put_rejects(store: Store, count: int) -> tuple[RejectsEntry, ...]:
    if not count:
        return ()
    row = {"uri": "file:///cut-off.jpg", "stage": "decode", "error": "OSError", "message": "cut off – zu kurz"}
    data = rejects_bytes([{**row, "key": f"bad{n}", "unit": n} for n in range(count)])
    store.put("rejects/golden-000000.parquet", data)
    return (describe_rejects(data, "rejects/golden-000000.parquet"),)


def make(golden: Golden, folder: Path) -> tuple[list[str], dict[str, np.ndarray]]:
    """Writes a dataset; (fingerprints of its versions, expected arrays)."""
    store, tables, seed = Store(folder), [], zlib.crc32(golden.name.encode())
    spec, weights = tokenizer_of(golden)
    store.put(f"tokenizer/{spec.fingerprint}/tokenizer.json", spec.model_dump_json().encode())
    store.put(f"tokenizer/{spec.fingerprint}/model.safetensors", weights)
    rejects = put_rejects(store, golden.rejects)
    entries: list[ShardEntry] = []
    listed: dict[str, int] = {}
    fingerprints = []
    for version, last in enumerate(golden.versions or (len(golden.shards),), 1):
        later = version > 1 and golden.grows
        models = fit_models(golden, seed + 1000 * later)
        columns = code_columns(golden, models)
        for model in filter(None, models):
            sha256 = hashlib.sha256(model).hexdigest()
            store.put(f"models/{sha256}.tsm", model)
            listed[sha256] = len(model)
        for number in range(len(entries), last):
            entry, arrays = put_shard(store, golden, columns, models, seed, number, later)
            entries.append(entry)
            tables.append(arrays)
        manifest = manifest_of(golden, columns, entries, rejects, dict(sorted(listed.items())), version)
        fingerprints.append(commit_manifest(store, manifest, golden.shards_in_json).fingerprint)
    return fingerprints, {name: np.concatenate([table[name] for table in tables]) for name in (tables or [{}])[0]}


def manifest_of(
    golden: Golden,
    columns: CodeColumns,
    shards: Sequence[ShardEntry],
    rejects: Sequence[RejectsEntry],
    models: dict[str, int],
    version: int,
) -> Manifest:
    spec, _ = tokenizer_of(golden)
    samples = sum(entry.rows for entry in shards)
    grids = {entry.grid for entry in shards} or {(None,) * columns.rank}
    return Manifest(
        version=version,
        parent=version - 1 or None,
        kind=golden.kind,
        totals=Totals(
            samples=samples,
            ids=sum(entry.ids for entry in shards),
            raw_bytes=sum(entry.raw_bytes for entry in shards),
            token_bytes=sum(entry.bytes for entry in shards),
            rejects=golden.rejects,
        ),
        code=CodeEntry(
            levels=tuple(
                LevelEntry(
                    alphabet=tokenizer_alphabet(golden, level),
                    used=min(level.alphabet, 30),
                    remap=remap_of(golden, level),
                )
                for level in golden.levels
            ),
            grid=tuple(dims[0] if len(set(dims)) == 1 else None for dims in zip(*grids, strict=True)),
            columns=columns.codes,
        ),
        tokenizer=TokenizerEntry(fingerprint=spec.fingerprint, numerics=spec.numerics),
        models=models,
        columns=tuple(listed_columns(golden, columns, version > 1 and golden.grows)),
        preprocess={"size": 32, "scale": 0.1, "tiny": 1e-7, "fit": "crop", "note": 'a "b" \\ ü\n'},
        source={"path": "photos/"},
        jobs=(
            JobEntry(
                id="golden",
                spec_sha256="0" * 64,
                plan_sha256="1" * 64,
                units=max(len(shards), 1),
                inputs=samples + golden.rejects + 1,
                retried=1,
            ),
        ),
        splits={"train": samples} if golden.many_types else {},
        shards=tuple(shards),
        rejects=tuple(rejects),
    )


def listed_columns(golden: Golden, columns: CodeColumns, later: bool) -> list[ColumnEntry]:
    user = user_columns(np.random.default_rng(0), 0, golden, later).schema
    layouts = tuple("list" if spec.codec == "zstd" else "binary" for spec in columns.codes)
    return column_entries(shard_schema(columns, layouts, user), columns, {"label": ("zero", "one")})


def main(names: Sequence[str]) -> None:
    index = HERE / "expected.json"
    expected = json.loads(index.read_text()) if index.exists() else {}
    for golden in SETS:
        if golden.name in expected or (names and golden.name not in names):
            continue
        fingerprints, arrays = make(golden, HERE / "sets" / golden.name)
        (HERE / "expected").mkdir(exist_ok=True)
        np.savez_compressed(HERE / "expected" / f"{golden.name}.npz", **arrays)
        expected[golden.name] = fingerprints
    index.write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
