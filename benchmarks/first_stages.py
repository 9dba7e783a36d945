"""What first stages propose: how many of the ten best pages by exact MaxSim are among their first candidates.

    python benchmarks/first_stages.py VECTORS.npz [--codec ofec:0.16] [--queries 225] [--probes 32 64 128]

VECTORS.npz is a file of documents.py. Candidates are scored exactly afterwards, so that this share is recall@10 of the
whole search. Documents are text: each 32 of their tokens are a row of patches, of which `hnsw` has a mean. Bytes a
vector are those of the index as files, before their own compression; CPU time of one thread a query is that of the
estimates alone.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tokenshard.retrieval.compression.registry import Method
from tokenshard.retrieval.exact import Multivectors, maxsim, ranking
from tokenshard.retrieval.first_stages.base import FirstStage, Numbered, Part, patch_rows
from tokenshard.retrieval.first_stages.hnsw import Hnsw
from tokenshard.retrieval.first_stages.lists import InvertedLists
from tokenshard.retrieval.first_stages.signs import Signs

CANDIDATES = (16, 32, 64, 128, 200, 512)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vectors", type=Path)
    parser.add_argument("--codec", default="ofec:0.16")
    parser.add_argument("--queries", type=int, default=225)
    parser.add_argument("--probes", type=int, nargs="+", default=[32, 64, 128])
    options = parser.parse_args()
    torch.set_num_threads(1)
    held = np.load(options.vectors)
    pages, every = Multivectors(held["pages"], held["pages_at"]), Multivectors(held["queries"], held["queries_at"])
    chosen = np.linspace(0, len(every) - 1, min(options.queries, len(every))).astype(int).tolist()
    queries = Multivectors.of([every[query] for query in chosen])
    best = ranking(maxsim(queries, pages), 10)
    compressor = Method.parse(options.codec).fit(pages)
    encoded = compressor.encode(pages)
    places = np.arange(len(pages.vectors)) - np.repeat(pages.offsets[:-1], pages.lengths)
    if encoded.order is not None:
        places = places[encoded.order]
    rows = np.split(places, pages.offsets[1:-1])
    numbers = np.arange(len(pages))
    numbered = Numbered(
        encoded, numbers, tuple(patch_rows(own, int(width)) for own, width in zip(rows, pages.lengths, strict=True))
    )
    print(f"{len(pages)} documents, {len(pages.vectors)} vectors, {len(queries)} queries, {options.codec}")
    kinds: list[tuple[type[FirstStage], str, Numbered]] = [
        (InvertedLists, "lists", numbered),
        (Signs, "signs", numbered),
        (Hnsw, "hnsw", numbered),
        (Hnsw, "hnsw, one mean", Numbered(encoded, numbers)),
    ]
    for stage, name, part in kinds:
        arrays, entries = stage.build(compressor, None, [part])
        opened = stage.open(compressor, None, [Part(arrays, entries, numbers)], len(pages))
        size = sum(array.nbytes for array in arrays.values()) / len(pages.vectors)
        for probes in options.probes if stage is not Signs else options.probes[:1]:
            shares, milliseconds = _found(opened, queries, best, probes)
            table = "  ".join(f"{count}: {share:.3f}" for count, share in zip(CANDIDATES, shares, strict=True))
            print(f"{name:14} {probes:4} probes {size:6.2f} B  {milliseconds:7.2f} ms   {table}", flush=True)


def _found(stage: FirstStage, queries: Multivectors, best: NDArray[np.int64], probes: int) -> tuple[list[float], float]:
    """Share of the best pages among the first candidates, for each of their numbers, and CPU time a query."""
    stage.estimates(queries[0], probes)
    began = time.process_time()
    estimates = [stage.estimates(queries[query], probes) for query in range(len(queries))]
    milliseconds = 1e3 * (time.process_time() - began) / len(queries)
    shares = []
    for count in CANDIDATES:
        hits = 0
        for values, wanted in zip(estimates, best, strict=True):
            order = np.argsort(-values, kind="stable")[:count]
            hits += len(np.intersect1d(order[np.isfinite(values[order])], wanted))
        shares.append(hits / best.size)
    return shares, milliseconds


if __name__ == "__main__":
    main()
