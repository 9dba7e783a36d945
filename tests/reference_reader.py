"""A second implementation of a reader of datasets: schemas/shard-format.md and pyarrow, nothing of the package.

Reads a whole dataset from a local folder and checks on the way what the specification says can be checked: an
AssertionError names a difference. Streams and models are read by `reference_decoder`, its companion.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import xxhash

from reference_decoder import Model, decode_packed, decode_sample, joined_grid, read_model

Grid = tuple[int, ...]


@dataclass(frozen=True)
class Sample:
    key: str
    codes: np.ndarray
    """[levels, *grid], the tokenizer's ids"""


def read_dataset(folder: Path, version: int | None = None) -> tuple[dict[str, Any], list[Sample]]:
    """(manifest with its shard list filled in, all samples in order) of the newest or the given version."""
    manifest = read_manifest(folder, version)
    models = {sha256: _model(folder / "models", sha256, size) for sha256, size in manifest["models"].items()}
    of_tokenizer = folder / "tokenizer" / manifest["tokenizer"]["fingerprint"]
    models |= {sha256: _model(of_tokenizer, sha256, size) for sha256, size in manifest.get("tables", {}).items()}
    samples = [sample for entry in manifest["shards"] for sample in read_shard(folder, manifest, entry, models)]
    gone = sum(end - start for entry in manifest["shards"] for start, end in entry.get("deleted", ()))
    assert len({sample.key for sample in samples}) == len(samples) == manifest["totals"]["samples"] - gone
    assert gone or sum(sample.codes.size for sample in samples) == manifest["totals"]["ids"]
    for entry in manifest["rejects"]:
        data = (folder / entry["path"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (entry["bytes"], entry["sha256"])
        assert pq.read_metadata(folder / entry["path"]).num_rows == entry["rows"]
    inputs = sum(job["inputs"] - job["retried"] for job in manifest["jobs"])
    assert manifest["totals"]["samples"] + manifest["totals"]["rejects"] + manifest.get("removed", 0) == inputs
    return manifest, samples


def read_manifest(folder: Path, version: int | None = None) -> dict[str, Any]:
    number = version or max(int(path.stem) for path in (folder / "manifest").glob("????????.json"))
    document: dict[str, Any] = json.loads((folder / "manifest" / f"{number:08d}.json").read_bytes())
    assert (document["format"], document["version"]) == ("tokenshard", number)
    assert document["min_reader"] <= 2
    if document["shards_file"]:
        listed = document["shards_file"]
        data = (folder / listed["path"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (listed["bytes"], listed["sha256"])
        rows = pq.read_table(folder / listed["path"]).to_pylist()
        document["shards"] = [{k: v for k, v in row.items() if k != "deleted" or v is not None} for row in rows]
        assert len(document["shards"]) == listed["rows"]
    content = {k: v for k, v in document.items() if k not in ("source", "shards_file", "fingerprint")}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert hashlib.sha256(canonical.encode()).hexdigest() == document["fingerprint"]
    return document


def _model(folder: Path, sha256: str, size: int) -> Model:
    data = (folder / f"{sha256}.tsm").read_bytes()
    assert (len(data), hashlib.sha256(data).hexdigest()) == (size, sha256)
    return read_model(data)


def read_shard(
    folder: Path, manifest: dict[str, Any], entry: dict[str, Any], models: dict[str, Model]
) -> Iterator[Sample]:
    data = (folder / entry["path"]).read_bytes()
    assert (len(data), hashlib.sha256(data).hexdigest()) == (entry["bytes"], entry["sha256"])
    assert _piece(data, entry["footer"])[-4:] == b"PAR1"
    with pq.ParquetFile(folder / entry["path"], page_checksum_verification=True) as file:
        keys = file.metadata.metadata
        assert int(keys[b"tokenshard.min_reader"]) <= 1
        columns = json.loads(keys[b"tokenshard.columns"])
        for spec, listed in zip(columns["codes"], manifest["code"]["columns"], strict=True):
            assert {**spec, "model": None} == {**listed, "model": None}
        assert file.num_row_groups == len(entry["row_groups"])
        gone, number_in_shard = {n for run in entry.get("deleted", ()) for n in range(*run)}, 0
        for number, group in enumerate(entry["row_groups"]):
            table = file.read_row_group(number).to_pydict()
            grids = _grids(columns, table)
            _piece(data, group["sizes"])
            levels: list[list[list[int]]] = []
            for spec, span in zip(columns["codes"], group["codes"], strict=True):
                streams, before = _piece(data, span), levels[-1] if levels else None
                levels.append(_level(spec, table, streams, grids, models, before))
            assert len(grids) == group["rows"]
            for row, grid in enumerate(grids):
                number_in_shard += 1
                if number_in_shard - 1 in gone:
                    continue
                ids = [_tokenizer_ids(level, levels[n][row]) for n, level in enumerate(manifest["code"]["levels"])]
                yield Sample(table["key"][row], np.array(ids, np.int64).reshape(len(ids), *grid))


def _piece(data: bytes, span: dict[str, Any]) -> bytes:
    piece = data[span["offset"] : span["offset"] + span["length"]]
    assert xxhash.xxh64(piece).hexdigest() == span["xxh64"]
    return piece


def _grids(columns: dict[str, Any], table: dict[str, list[Any]]) -> list[Grid]:
    counts = table["num_tokens"]
    if columns["extents"]:
        extents = zip(*(table[name] for name in columns["extents"]), strict=True)
        grids = [tuple(-(-n // step) for n, step in zip(row, columns["downsample"], strict=True)) for row in extents]
    elif len(columns["grid"]) == 1:
        grids = [(count,) for count in counts]
    else:
        grids = [tuple(columns["grid"])] * len(counts)
    assert [prod(grid) for grid in grids] == counts
    return grids


def _level(
    spec: dict[str, Any],
    table: dict[str, list[Any]],
    streams: bytes,
    grids: list[Grid],
    models: dict[str, Model],
    before: list[list[int]] | None,
) -> list[list[int]]:
    """Stored ids of each row; the streams are taken from the byte range, as a reader without Parquet would."""
    column = table[spec["column"]]
    if spec["codec"] == "zstd":
        return column
    lengths = table[spec["column"].replace("codes", "code_len")]
    assert b"".join(column) == streams
    assert list(map(len, column)) == lengths
    decode: Callable[[bytes, Grid, list[int] | None], list[int]]
    if spec["codec"] == "pack":
        decode = lambda stream, grid, _: decode_packed(spec["alphabet"], stream, prod(grid))  # noqa: E731
    else:
        model = models[spec["model"]]
        assert model.alphabet == spec["alphabet"]
        decode = lambda stream, grid, earlier: decode_sample(model, stream, grid, earlier)  # noqa: E731
    rows, at = [], 0
    for first in range(0, len(grids), spec["group"]):
        members = range(first, min(first + spec["group"], len(grids)))
        end = at + lengths[first]
        assert not any(lengths[row] for row in members[1:])
        earlier = [i for row in members for i in before[row]] if spec["needs_earlier"] and before else None
        ids = decode(streams[at:end], joined_grid([grids[row] for row in members]), earlier)
        for row in members:
            rows.append(ids[: prod(grids[row])])
            ids = ids[prod(grids[row]) :]
        at = end
    assert at == len(streams)
    return rows


def _tokenizer_ids(level: dict[str, Any], stored: list[int]) -> list[int]:
    ids = stored if level["remap"] is None else [level["remap"][i] for i in stored]
    assert all(0 <= i < level["alphabet"] for i in ids)
    return ids
