"""A collection with fitted codecs in one folder, to be measured on a machine that has no encoder and no faiss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from retrieving.large import Collection, Large, in_threads, lists_search
from tokenshard.retrieval.compression import state
from tokenshard.retrieval.compression.accounting import code_bytes
from tokenshard.retrieval.compression.base import Encoded, Scorer, Streams
from tokenshard.retrieval.compression.ofec import Ofec
from tokenshard.retrieval.compression.registry import Method
from tokenshard.retrieval.exact import Multivectors
from tokenshard.retrieval.first_stages.base import Numbered, Part
from tokenshard.retrieval.first_stages.lists import InvertedLists

LEVELS = 84
"""Of each sign that a coordinate of a packed vector has; vectors as packed are those that all are measured on."""
_PAGES = 500


def pack(collection: Collection, codecs: list[str], folder: Path) -> None:
    """Write the collection, its vectors rounded, and a codebook for each codec."""
    folder.mkdir(parents=True, exist_ok=True)
    vectors = collection.pages.vectors
    step = np.float32(np.abs(vectors).max() / LEVELS)
    rounded = np.rint(vectors / step).astype(np.int8)
    np.savez_compressed(
        folder / "collection.npz",
        columns=np.ascontiguousarray(rounded.T),
        step=step,
        pages_at=collection.pages.offsets,
        queries=collection.queries.vectors,
        queries_at=collection.queries.offsets,
    )
    named = {"keys": collection.keys, "asked": collection.asked, "judgements": collection.judgements}
    (folder / "names.json").write_text(json.dumps(named))
    pages = unpacked(folder).pages
    for codec in codecs:
        (folder / f"{codec.replace(':', '-')}.safetensors").write_bytes(state.dump(Method.parse(codec).fit(pages)))


def unpacked(folder: Path) -> Collection:
    named, held = json.loads((folder / "names.json").read_text()), np.load(folder / "collection.npz")
    vectors = np.ascontiguousarray(held["columns"].T, np.float32) * held["step"]
    return Collection(
        Multivectors(vectors, held["pages_at"]), Multivectors(held["queries"], held["queries_at"]), **named
    )


def build(large: Large, codebook: Path, folder: Path, threads: int) -> dict[str, int]:
    """Codes and inverted lists of the larger collection as files; bytes of what shards and index would hold."""
    fitted = state.load(codebook.read_bytes())
    assert isinstance(fitted, Ofec)
    parts = [np.array([first]) for first in range(0, len(large.offsets) - 1, _PAGES)]
    held: dict[int, Encoded] = {}

    def encode(part: NDArray[Any]) -> NDArray[Any]:
        ends = large.offsets[part[0] : part[0] + _PAGES + 1]
        pages = Multivectors(large.collection.pages.vectors[large.rows[ends[0] : ends[-1]]], ends - ends[0])
        held[int(part[0])] = fitted.encode(pages)
        return part

    with threadpool_limits(1):  # of each of the threads
        in_threads(encode, threads)(parts)
    encoded = _joined([held[int(first)] for (first,) in parts])
    numbers = np.arange(len(encoded))
    arrays, entries = InvertedLists.build(fitted, None, [Numbered(encoded, numbers)])
    folder.mkdir(parents=True, exist_ok=True)
    stream = encoded.streams["residual"]
    assert encoded.ids is not None
    codes = {"ids": encoded.ids, "offsets": encoded.offsets, "data": stream.data, "ends": stream.offsets}
    np.savez(folder / "index.npz", **codes, **arrays, entries=entries)
    (folder / "codebook.safetensors").write_bytes(codebook.read_bytes())
    lists = sum(array.nbytes for array in arrays.values())
    return {"codes": code_bytes(fitted, encoded), "lists": lists, "codebook": codebook.stat().st_size}


def opened(folder: Path) -> tuple[InvertedLists, Scorer]:
    """Inverted lists and codes in memory."""
    fitted, held = state.load((folder / "codebook.safetensors").read_bytes()), np.load(folder / "index.npz")
    encoded = Encoded(held["offsets"], held["ids"], {"residual": Streams(held["data"], held["ends"])})
    numbers = np.arange(len(encoded))
    part = Part({"counts": held["counts"], "steps": held["steps"]}, int(held["entries"]), numbers)
    return InvertedLists.open(fitted, None, [part], len(numbers)), fitted.open(encoded)


def warmed_up(folder: Path) -> None:
    """Compile, or load, all that a search needs, by one in a few pages of noise."""
    fitted = state.load((folder / "codebook.safetensors").read_bytes())
    noise = np.random.default_rng(0).normal(0, 0.1, (40, fitted.dimensions)).astype(np.float32)
    encoded, numbers = fitted.encode(Multivectors(noise, np.arange(0, 41, 4))), np.arange(10)
    arrays, entries = InvertedLists.build(fitted, None, [Numbered(encoded, numbers)])
    lists = InvertedLists.open(fitted, None, [Part(arrays, entries, numbers)], len(numbers))
    lists_search(lists, fitted.open(encoded), 4, 5)(noise[:23])


def _joined(parts: list[Encoded]) -> Encoded:
    def back_to_back(offsets: list[NDArray[np.int64]]) -> NDArray[np.int64]:
        return np.concatenate([[0], np.cumsum(np.concatenate([np.diff(own) for own in offsets]))]).astype(np.int64)

    streams = [part.streams["residual"] for part in parts]
    residual = Streams(np.concatenate([own.data for own in streams]), back_to_back([own.offsets for own in streams]))
    ids = np.concatenate([part.ids for part in parts if part.ids is not None], axis=1)
    return Encoded(back_to_back([part.offsets for part in parts]), ids, {"residual": residual})
