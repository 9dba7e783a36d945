"""Search indexes as files of a dataset: `search/<stage>/NNNNNNNN.json` lists parts, each built of some shards' pages.

A part holds for as long as its shards are in the dataset. Of a dataset that grew, the index lacks pages, which search
scores one and all until `build` adds a part for them; pages that were deleted are left out when a part is opened.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import cast

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from tokenshard.errors import FormatError, ManifestConflict, SpecError
from tokenshard.retrieval.compression.base import Compressor
from tokenshard.retrieval.compression.kmeans import trained_centroids
from tokenshard.retrieval.exact import Vectors
from tokenshard.retrieval.first_stages.base import Arrays, FirstStage, Numbered, Part, patch_rows
from tokenshard.retrieval.pages import PageCodes
from tokenshard.shards.bounds import damage_reported, require
from tokenshard.shards.dataset import Dataset
from tokenshard.spec.manifest import ShardEntry
from tokenshard.spec.search_index import (
    FORMAT,
    FORMAT_VERSION,
    IndexedShard,
    IndexFile,
    IndexManifest,
    IndexPart,
    Stage,
)
from tokenshard.store import Store

FOLDER = "search"
STAGES: dict[Stage, str] = {
    "lists": "tokenshard.retrieval.first_stages.lists:InvertedLists",
    "signs": "tokenshard.retrieval.first_stages.signs:Signs",
    "hnsw": "tokenshard.retrieval.first_stages.hnsw:Hnsw",
}
"""In the order in which search looks for them."""
PART = 1 << 26
"""Vectors of a part, at most, unless a shard has more."""
_SAMPLE = 1 << 18
"""Vectors that centroids are trained on."""
_NAME = re.compile(r"search/[a-z]+/\d{8}\.json")
_FILE = re.compile(r"search/[a-z]+/[0-9a-f]{64}\.safetensors")


@dataclass(frozen=True)
class Index:
    """An open index."""

    stage: FirstStage
    version: int
    covered: NDArray[np.bool_]
    """[P]: pages that are in it"""


def build(dataset: Dataset, compressor: Compressor, name: Stage, rebuild: bool = False) -> IndexManifest:
    """Index the pages of a dataset that are not indexed yet, and commit that; the newest manifest if all are.

    ``rebuild``: index all of them. Raises ManifestConflict where another build was faster.
    """
    store, before = dataset.store, read_index(dataset.store, name)
    version = 1 if before is None else before.version + 1
    shards = {shard.path: shard for shard in dataset.manifest.shards}
    kept: tuple[IndexPart, ...] = ()
    if before is not None and not rebuild and before.tokenizer == dataset.manifest.tokenizer.fingerprint:
        kept = tuple(part for part in before.parts if all(_same(shards.get(own.path), own) for own in part.shards))
    covered = {own.path for part in kept for own in part.shards}
    missing = [number for number, shard in enumerate(dataset.manifest.shards) if shard.path not in covered]
    if before is not None and not missing and kept == before.parts:
        return before
    codes = PageCodes(dataset, compressor)
    file, centroids = before.centroids if before is not None and kept else None, None
    if name == "lists" and compressor.centroids is None:
        if file is None:
            file = _put(store, name, {"centroids": _trained(codes)})
        centroids = _centroids(store, file)
    parts = [_part(dataset, compressor, codes, name, centroids, own) for own in _portions(dataset, codes, missing)]
    manifest = IndexManifest(
        version=version,
        stage=name,
        tokenizer=dataset.manifest.tokenizer.fingerprint,
        centroids=file,
        parts=(*kept, *parts),
    )
    manifest = manifest.model_copy(update={"fingerprint": manifest.computed_fingerprint()})
    place = _place(name, version)
    if not store.put_if_absent(place, manifest.model_dump_json(indent=1).encode()):
        raise ManifestConflict(f"{store.url(place)}: another build was faster; run the command again")
    return manifest


def open_index(dataset: Dataset, compressor: Compressor, name: Stage | None = None) -> Index | None:
    """The newest index of that kind (None: the first kind of :data:`STAGES` that there is); None where there is none.

    Raises FormatError where its files are missing or damaged.
    """
    manifest = None
    for each in STAGES if name is None else (name,):
        manifest = manifest or read_index(dataset.store, each)
    if manifest is None or manifest.tokenizer != dataset.manifest.tokenizer.fingerprint:
        return None
    numbers = {shard.path: (shard, dataset.numbers(place)) for place, shard in enumerate(dataset.manifest.shards)}
    covered, parts = np.zeros(len(dataset), np.bool_), []
    centroids = None if manifest.centroids is None else _centroids(dataset.store, manifest.centroids)
    for part in manifest.parts:
        pages = []
        for own in part.shards:
            shard, live = numbers.get(own.path, (None, None))
            pages.append(live if live is not None and _same(shard, own) else np.full(own.rows, -1, np.int64))
        joined = np.concatenate([np.zeros(0, np.int64), *pages])
        if (joined >= 0).any():
            covered[joined[joined >= 0]] = True
            parts.append(Part(_arrays(dataset.store, part.file), part.entries, joined))
    with damage_reported(dataset.store.url(f"{FOLDER}/{manifest.stage}")):
        stage = stage_class(manifest.stage).open(compressor, centroids, parts, len(dataset))
    return Index(stage, manifest.version, covered)


def read_index(store: Store, name: Stage) -> IndexManifest | None:
    """The newest manifest of an index; None where there is none. Raises FormatError where it is damaged or too new."""
    names = [entry.name for entry in store.list(f"{FOLDER}/{name}") if _NAME.fullmatch(entry.name)]
    if not names:
        return None
    with damage_reported(store.url(names[-1])):
        document = json.loads(store.read(names[-1]))
        require(isinstance(document, dict) and document.get("format") == FORMAT, "not the manifest of an index")
        newest = document["min_reader"]
        require(newest <= FORMAT_VERSION, f"an index of version {newest} needs a newer tokenshard")
        manifest = IndexManifest.model_validate(document)
        require(manifest.fingerprint == manifest.computed_fingerprint(), "damaged (fingerprint differs); delete it")
    return manifest


def unlisted(store: Store) -> list[str]:
    """Names of the files of indexes that the newest manifest of each does not list."""
    names = []
    for stage in STAGES:
        manifest = read_index(store, stage)
        listed = set[str]()
        if manifest is not None:
            listed = {part.file.path for part in manifest.parts} | {_place(stage, manifest.version)}
            listed |= {manifest.centroids.path} if manifest.centroids is not None else set()
        names += [entry.name for entry in store.list(f"{FOLDER}/{stage}") if entry.name not in listed]
    return names


def stage_class(name: Stage) -> type[FirstStage]:
    """Raises SpecError on an unknown name."""
    if name not in STAGES:
        raise SpecError(f"unknown first stage {name!r}; choose one of {', '.join(STAGES)}")
    module, _, cls = STAGES[name].partition(":")
    return cast(type[FirstStage], getattr(import_module(module), cls))


# -- parts ------------------------------------------------------------------------------------------------------------


def _portions(dataset: Dataset, codes: PageCodes, missing: Sequence[int]) -> Iterator[list[int]]:
    """Shards, so many together as make a part."""
    own, held = list[int](), 0
    for shard in missing:
        numbers = dataset.numbers(shard)
        vectors = int(codes.lengths[numbers[numbers >= 0]].sum())
        if own and held + vectors > PART:
            yield own
            own, held = [], 0
        own.append(shard)
        held += vectors
    if own:
        yield own


def _part(
    dataset: Dataset,
    compressor: Compressor,
    codes: PageCodes,
    name: Stage,
    centroids: Vectors | None,
    shards: list[int],
) -> IndexPart:
    arrays, entries = stage_class(name).build(compressor, centroids, _numbered(dataset, codes, shards))
    listed = [dataset.manifest.shards[shard] for shard in shards]
    return IndexPart(
        file=_put(dataset.store, name, arrays),
        entries=entries,
        shards=tuple(IndexedShard(path=shard.path, sha256=shard.sha256, rows=shard.rows) for shard in listed),
    )


def _numbered(dataset: Dataset, codes: PageCodes, shards: Sequence[int]) -> Iterator[Numbered]:
    """The pages of some shards, a row group at a time."""
    before = 0
    for shard in shards:
        numbers = dataset.numbers(shard)
        rows = np.flatnonzero(numbers >= 0)
        groups = np.unique(np.searchsorted(dataset.group_starts, numbers[rows], "right") - 1)
        for group in groups.tolist():
            first, last = dataset.group_starts[group : group + 2] - (numbers[rows[0]] if len(rows) else 0)
            encoded = codes.group(group)
            yield Numbered(encoded, before + rows[first:last], _patch_rows(dataset, group, encoded.lengths))
        before += len(numbers)


def _patch_rows(dataset: Dataset, group: int, lengths: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
    """The row of patches of each vector of each page of a row group; none where positions are not stored."""
    if not {"positions", "grid_width"} <= set(dataset.schema.names):
        return ()
    table = dataset.group_table(group, ["positions", "grid_width"])
    pairs = zip(table["positions"].to_pylist(), table["grid_width"].to_pylist(), lengths.tolist(), strict=True)
    found = []
    for places, width, count in pairs:
        kind = "<u2" if len(places or b"") == 2 * count else "<u4"
        found.append(patch_rows(np.frombuffer(places or b"", kind).astype(np.int64), width or 1))
        require(len(found[-1]) == count, "positions do not fit the vectors of a page; the shard is damaged")
    return tuple(found)


def _same(shard: ShardEntry | None, indexed: IndexedShard) -> bool:
    return shard is not None and (shard.sha256, shard.rows) == (indexed.sha256, indexed.rows)


def _trained(codes: PageCodes) -> Vectors:
    """Centroids of what the codes of some pages, spread evenly, stand for."""
    total = int(codes.lengths.sum())
    if not total:
        return np.zeros((1, codes.compressor.dimensions), np.float32)
    full = np.flatnonzero(codes.lengths)
    step = max(1, -(-total // _SAMPLE))
    vectors = codes.compressor.decode(codes.part(full[::step])).vectors
    count = 1 << int(np.log2(16 * np.sqrt(total)))
    return trained_centroids(vectors, max(1, min(count, len(vectors) // 8)), seed=0)


def _place(name: Stage, version: int) -> str:
    return f"{FOLDER}/{name}/{version:08d}.json"


# -- files ------------------------------------------------------------------------------------------------------------


def _put(store: Store, name: Stage, arrays: Arrays) -> IndexFile:
    data = save_tensors({key: np.ascontiguousarray(array) for key, array in arrays.items()})
    sha256 = hashlib.sha256(data).hexdigest()
    path = f"{FOLDER}/{name}/{sha256}.safetensors"
    store.put_if_absent(path, data)
    return IndexFile(path=path, bytes=len(data), sha256=sha256)


def _arrays(store: Store, file: IndexFile) -> Arrays:
    """The arrays of a file. Raises FormatError where it is missing or damaged."""
    require(_FILE.fullmatch(file.path) is not None, f"path {file.path!r} of an index leaves its folder")
    with damage_reported(store.url(file.path)):
        data = store.read(file.path, 0, file.bytes)
        require(hashlib.sha256(data).hexdigest() == file.sha256, "damaged (SHA-256 differs); build the index again")
        try:
            return load_tensors(data)
        except SafetensorError as error:
            raise FormatError(f"not a safetensors file ({error}); build the index again") from error


def _centroids(store: Store, file: IndexFile) -> Vectors:
    centroids = _arrays(store, file).get("centroids")
    fits = centroids is not None and centroids.dtype == np.float32 and centroids.ndim == 2
    require(fits, f"{store.url(file.path)}: holds no centroids; build the index again")
    return cast(Vectors, centroids)
