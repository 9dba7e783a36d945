"""What exact late interaction finds with the embedded encoder: the ceiling of every compressed search.

    python benchmarks/page_encoders.py FOLDER [--judgements qrels_test.tsv] [--zero-grade 4] [--tokens 256]

FOLDER holds a corpus in the BEIR layout: `corpus.jsonl`, `queries.jsonl`, judgements. Rows: the mean of the token
states as the one vector of a page (what sentence-transformers makes of this network, but for its special tokens), token
states as they are, and what `minilm` makes of them. Exact MaxSim in fp32; 95 % intervals from resampled queries.

`--zero-grade`: the grade of judgements that the file has as 0. In some copies of Cranfield the papers that the queries
were taken from, which the collection codes as -1, have become 0; others count them as fully relevant.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from retrieving.corpus import read

from tokenshard.retrieval.encoders.base import normalized
from tokenshard.retrieval.encoders.minilm import DIMENSIONS, MiniLM
from tokenshard.retrieval.evaluation import (
    estimate,
    measured,
    ndcg,
    read_judgements,
    read_queries,
    recall,
    reciprocal_rank,
)
from tokenshard.retrieval.exact import Multivectors, Vectors, maxsim, ranking
from tokenshard.store import Store

MEASURES = {"nDCG@10": (ndcg, 10), "recall@2": (recall, 2), "recall@10": (recall, 10), "MRR@10": (reciprocal_rank, 10)}


def token_vectors(reduce: Callable[[NDArray[np.float32]], Vectors], states: list[NDArray[np.float32]]) -> Multivectors:
    return Multivectors.of([reduce(one) for one in states])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--judgements", default="qrels_test.tsv")
    parser.add_argument("--zero-grade", type=float)
    parser.add_argument("--tokens", type=int, help="cut documents after so many")
    parser.add_argument("--out", type=Path, help="JSON file of the rows")
    options = parser.parse_args()
    torch.set_num_threads(1)

    store = Store(options.folder)
    pages, queries = read(options.folder), read_queries(store, "queries.jsonl")
    judgements = read_judgements(store, options.judgements)
    if options.zero_grade is not None:
        judgements = {
            query: {page: grade or options.zero_grade for page, grade in judged.items()}
            for query, judged in judgements.items()
        }
    queries = {query: text for query, text in queries.items() if query in judgements}

    encoder = MiniLM(tokens=options.tokens)
    began = time.process_time()
    found = encoder.page_states(pages)
    seconds = time.process_time() - began
    states = [of_page for _, (of_page, _) in found]
    asked = [encoder.query_states(text) for text in queries.values()]
    count = sum(map(len, states))
    print(f"{len(pages)} documents, {count} token vectors, {len(queries)} queries; {1e3 * seconds / len(pages):.0f} ms")

    def scores() -> dict[str, NDArray[np.float32]]:
        means = [normalized(np.stack([one.mean(0) for one in some])) for some in (asked, states)]
        rows = {"sentence vector": means[0] @ means[1].T}
        for name, reduce in (("384 d", normalized), (f"{DIMENSIONS} d", encoder.reduction_of(states))):
            rows[f"tokens, {name}"] = maxsim(token_vectors(reduce, asked), token_vectors(reduce, states))
        return rows

    keys, rows = [page.key for page in pages], []
    for name, matrix in scores().items():
        run = {query: [keys[page] for page in best] for query, best in zip(queries, ranking(matrix, 10), strict=True)}
        row = {label: estimate(measured(measure, run, judgements, k)) for label, (measure, k) in MEASURES.items()}
        rows.append({"vectors": name, **{label: vars(value) for label, value in row.items()}})
        print(f"{name:18}", *(f"{label} {value}" for label, value in row.items()))
    if options.out is not None:
        options.out.write_text(json.dumps({"documents": len(pages), "token_vectors": count, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
