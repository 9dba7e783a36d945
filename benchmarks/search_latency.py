"""Queries a second and memory of search in 5,000 and in 100,000 documents, beside FAISS on the same vectors.

    python benchmarks/search_latency.py VECTORS.npz FOLDER [--documents 5000 100000] [--queries 60] [--zero-grade 4]

VECTORS.npz and FOLDER (a corpus in the BEIR layout) are those of documents.py. The corpus is made larger by documents
of which each has an eighth of the vectors of eight others; nobody judged them. Codes depend on the vector alone, so
those of the larger corpus are gathered from those of the corpus.

tokenshard: inverted lists, then MaxSim on codes; or all pages. FAISS: the nearest tokens of each query token in an
`IndexPQ` or `IndexIVFPQ`, summed up by document as in inverted lists (the least similarity found stands in for what was
not), and perhaps MaxSim of the best documents on their decoded codes. Each at several settings.

nDCG@10, and overlap with the ten best by exact MaxSim. CPU time a query, of all threads; queries a second are by the
clock, on 2 threads: FAISS gets all queries in one call, tokenshard two at a time. Memory is that of codes and index.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from retrieving.corpus import load_corpus
from retrieving.large import (
    SETTINGS,
    THREADS,
    Collection,
    Large,
    Queries,
    Rankings,
    Search,
    best,
    in_threads,
    lists_search,
    most,
    timed,
)

from tokenshard.retrieval.compression import state
from tokenshard.retrieval.compression.base import Encoded
from tokenshard.retrieval.compression.ofec import Ofec, SparseScorer
from tokenshard.retrieval.compression.registry import Method
from tokenshard.retrieval.exact import Multivectors
from tokenshard.retrieval.first_stages.base import Numbered, Part
from tokenshard.retrieval.first_stages.lists import InvertedLists

# -- tokenshard -------------------------------------------------------------------------------------------------------


def gathered(scorer: SparseScorer, large: Large) -> SparseScorer:
    """Codes of the larger corpus."""
    lengths = np.diff(scorer.starts)[large.rows]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    entries = np.repeat(scorer.starts[large.rows] - starts[:-1], lengths) + np.arange(starts[-1])
    return replace(
        scorer,
        ids=scorer.ids[large.rows],
        offsets=large.offsets,
        starts=starts,
        dims=scorer.dims[entries],
        values=scorer.values[entries],
    )


# -- FAISS ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tokens:
    """A FAISS index of tokens. ``codes``: those of the corpus, to score documents on."""

    index: Any
    document: NDArray[np.int32]
    decoded: NDArray[np.float32]
    large: Large

    def search(self, queries: Queries, neighbours: int, rescored: int) -> Rankings:
        similar, found = self.index.search(np.concatenate(queries), neighbours)
        first, rankings = 0, []
        count = len(self.large.offsets) - 1
        for query in queries:
            total = np.zeros(count, np.float32)
            for values, tokens in zip(
                similar[first : first + len(query)], found[first : first + len(query)], strict=True
            ):
                there = tokens >= 0
                documents, place = np.unique(self.document[tokens[there]], return_index=True)  # sorted by similarity
                total[documents] += values[there][place] - (values[there][-1] if there.any() else 0)
            first += len(query)
            if not rescored:
                rankings.append(best(total))
                continue
            chosen = most(total, rescored)
            rows = [self.large.rows[slice(*self.large.offsets[page : page + 2])] for page in chosen]
            starts = np.cumsum([0, *(len(own) for own in rows[:-1])])
            scores = query @ self.decoded[np.concatenate(rows)].T
            rankings.append(chosen[best(np.maximum.reduceat(scores, starts, axis=1).sum(0))])
        return rankings


def faiss_tokens(large: Large, key: str, centroids: NDArray[np.float32]) -> Tokens:
    """An index trained on the corpus, with the tokens of the larger one; inverted lists of the same centroids."""
    vectors = large.collection.pages.vectors
    if key.startswith("IVF"):
        key = f"IVF{len(centroids)},{key.partition(',')[2]}"
    index = faiss.index_factory(vectors.shape[1], key, faiss.METRIC_INNER_PRODUCT)
    if key.startswith("IVF"):
        faiss.extract_index_ivf(index).quantizer.add(centroids)
    index.train(vectors)
    codes = index.sa_encode(vectors)
    decoded = index.sa_decode(codes)
    document = np.repeat(np.arange(len(large.offsets) - 1, dtype=np.int32), np.diff(large.offsets))
    for start in range(0, len(large.rows), 1 << 20):
        part = np.ascontiguousarray(codes[large.rows[start : start + (1 << 20)]])
        index.add_sa_codes(part)
    return Tokens(index, document, decoded, large)


# -- measuring --------------------------------------------------------------------------------------------------------


def report(name: str, search: Search, large: Large, memory: int) -> None:
    row = timed(search, large.queries)
    value, same = large.quality(row.found)
    print(
        f"{name:44} nDCG@10 {value:.4f}  overlap {same:.3f}  CPU {row.cpu_ms:8.2f} ms  "
        f"{row.queries_a_second:8.1f} queries/s  {memory / 1e6:7.1f} MB",
        flush=True,
    )


def ours(large: Large, fitted: Ofec, base: SparseScorer) -> None:
    scorer = gathered(base, large)
    numbers = np.arange(len(large.offsets) - 1)
    began = time.process_time()
    arrays, entries = InvertedLists.build(fitted, None, [Numbered(Encoded(large.offsets, scorer.ids[None]), numbers)])
    lists = InvertedLists.open(fitted, None, [Part(arrays, entries, numbers)], len(numbers))
    size = sum(array.nbytes for array in arrays.values()) / len(large.rows)
    print(f"inverted lists: {time.process_time() - began:.1f} s, {size:.2f} bytes a vector as a file", flush=True)
    for probes, candidates in SETTINGS:
        search = in_threads(lists_search(lists, scorer, probes, candidates))
        report(f"tokenshard, {probes} probes, {candidates} pages", search, large, scorer.nbytes + lists.nbytes)
    report("tokenshard, all pages", in_threads(lambda query: best(scorer.scores(query))), large, scorer.nbytes)


def peer(large: Large, key: str, centroids: NDArray[np.float32]) -> None:
    tokens = faiss_tokens(large, key, centroids)
    memory = len(faiss.serialize_index(tokens.index)) + tokens.document.nbytes
    for probes in (8, 32) if key.startswith("IVF") else (0,):
        if probes:
            faiss.extract_index_ivf(tokens.index).nprobe = probes
        for neighbours, rescored in ((256, 0), (1024, 0), (256, 128), (1024, 128), (4096, 256)):

            def search(queries: Queries, many: int = neighbours, few: int = rescored) -> Rankings:
                return tokens.search(queries, many, few)

            name = f"FAISS {key}, {probes or 'all'} probes, {neighbours} tokens" + ", rescored" * bool(rescored)
            report(name, search, large, memory + (4 * len(large.rows) if rescored else 0))  # codes of a document


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vectors", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--documents", type=int, nargs="+", default=[5_000, 100_000])
    parser.add_argument("--queries", type=int, default=60)
    parser.add_argument("--codec", default="ofec:0.12,4096", help="of tokenshard: any ofec")
    parser.add_argument("--peers", nargs="*", default=["PQ16", "IVF,PQ16", "IVF,PQ32"])
    parser.add_argument("--codebook", type=Path, help="Keep the fitted codec here for the next run.")
    parser.add_argument("--judgements", default="qrels_test.tsv")
    parser.add_argument("--zero-grade", type=float)
    options = parser.parse_args()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(THREADS)
    corpus = load_corpus(options.folder, options.judgements, options.zero_grade, options.vectors)
    if options.codebook is not None and options.codebook.is_file():
        fitted = state.load(options.codebook.read_bytes())
    else:
        fitted = Method.parse(options.codec).fit(corpus.pages)
        if options.codebook is not None:
            options.codebook.write_bytes(state.dump(fitted))
    assert isinstance(fitted, Ofec)
    encoded = fitted.encode(corpus.pages)
    base = fitted.open(encoded)  # of the vectors in another order
    pages = Multivectors(corpus.pages.vectors[encoded.order], corpus.pages.offsets)
    collection = Collection(pages, corpus.queries, corpus.keys, corpus.asked, corpus.judgements)
    for count in options.documents:
        large = Large.of(collection, count, options.queries)
        value, _ = large.quality(large.exact)
        print(f"{count:,} documents, {len(large.rows):,} vectors; exact nDCG@10 {value:.4f}")
        ours(large, fitted, base)
        for key in options.peers:
            peer(large, key, fitted.centroids)


if __name__ == "__main__":
    main()
