"""What compression of page vectors keeps, byte by byte: every codec on one corpus, beside exact fp32 MaxSim.

    python benchmarks/documents.py FOLDER [--codecs ofec:0.16 …] [--zero-grade 4] [--vectors FILE.npz] [--out FOLDER]

FOLDER holds a corpus in the BEIR layout: `corpus.jsonl`, `queries.jsonl`, judgements. Its vectors are those of `minilm`
(128 d, length 1), kept in FILE.npz for the next run. Bytes a vector are those of all code columns with the models of
their codecs; codebooks are listed apart, as bytes of the file over the vectors of the corpus. nDCG@10 kept has a 95 %
interval from resampled queries; overlap is the share of the exact ten best pages found. Speeds are CPU time of one
thread. Reductions before a codec are counted at the vectors of the whole pages. OUT gets `documents.csv` and
`documents.png`.

`--zero-grade`: as in page_encoders.py.
"""

from __future__ import annotations

import argparse
import csv
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from page_encoders import read, token_vectors

from tokenshard.retrieval.compression.accounting import code_bytes, state_bytes
from tokenshard.retrieval.compression.registry import Method
from tokenshard.retrieval.encoders.minilm import MiniLM
from tokenshard.retrieval.evaluation import (
    Estimate,
    Judgements,
    estimate,
    measured,
    ndcg,
    overlap,
    read_judgements,
    read_queries,
    retained,
)
from tokenshard.retrieval.exact import Multivectors, maxsim, ranking
from tokenshard.store import Store

CODECS = (
    *("fp16", "ofec:0.22", "ofec:0.16", "ofec:0.12", "ofec:0.09", "ofec:0.16,auto", "plaid:1", "plaid:2", "plaid:4"),
    *("pq8", "pq16", "pq32", "opq16", "rq16", "rabitq:1", "rabitq:2", "caq:2", "caq:4", "saq:1", "saq:2", "pvq:22"),
    *("pvq:48", "lvq:2", "lvq:4", "leanvec:64,4", "int8", "int4", "bits", "hpc:256", "hpc:512", "pool:2|ofec:0.16"),
    *("pool:2|fp16", "prune:random,0.6|fp16", "prune:random,0.4|fp16"),
)


@dataclass(frozen=True)
class Corpus:
    """Vectors of a corpus and its queries, with exact scores."""

    pages: Multivectors
    queries: Multivectors
    keys: list[str]
    asked: list[str]
    judgements: Judgements
    exact: NDArray[np.float32]

    def run(self, scores: NDArray[np.float32]) -> dict[str, list[str]]:
        best = ranking(scores, 10)
        return {query: [self.keys[page] for page in own] for query, own in zip(self.asked, best, strict=True)}


@dataclass(frozen=True)
class Row:
    codec: str
    bytes_a_vector: float
    codebook_bytes_a_vector: float
    kept: float
    kept_low: float
    kept_high: float
    overlap: float
    fit_seconds: float
    encoded_a_second: float
    opened_a_second: float
    ns_a_pair: float
    memory_a_vector: float

    def __str__(self) -> str:
        interval = f"{100 * self.kept:5.1f} [{100 * self.kept_low:.1f}, {100 * self.kept_high:.1f}]"
        size = f"{self.bytes_a_vector:7.2f} + {self.codebook_bytes_a_vector:5.2f} B"
        speeds = f"{self.encoded_a_second / 1e3:7.0f} k/s {self.opened_a_second / 1e3:8.0f} k/s"
        return f"{self.codec:22} {size}  {interval:20} {self.overlap:.3f} {speeds} {self.ns_a_pair:6.2f} ns"


def load_corpus(folder: Path, judgements_file: str, zero_grade: float | None, vectors: Path | None) -> Corpus:
    store = Store(folder)
    judgements: dict[str, dict[str, float]] = read_judgements(store, judgements_file)
    if zero_grade is not None:
        judgements = {q: {page: grade or zero_grade for page, grade in own.items()} for q, own in judgements.items()}
    queries = {query: text for query, text in read_queries(store, "queries.jsonl").items() if query in judgements}
    if vectors is None or not vectors.is_file():
        samples = read(folder)
        encoder = MiniLM()
        states = [of_page for _, (of_page, _) in encoder.page_states(samples)]
        reduce = encoder.reduction_of(states)
        pages = token_vectors(reduce, states)
        asked = token_vectors(reduce, [encoder.query_states(text) for text in queries.values()])
        keys = [sample.key for sample in samples]
        if vectors is not None:
            parts = {"pages": pages.vectors, "pages_at": pages.offsets, "queries": asked.vectors}
            np.savez(vectors, **parts, queries_at=asked.offsets, keys=keys)
    else:
        kept = np.load(vectors)
        pages = Multivectors(kept["pages"], kept["pages_at"])
        asked, keys = Multivectors(kept["queries"], kept["queries_at"]), kept["keys"].tolist()
    return Corpus(pages, asked, keys, list(queries), judgements, maxsim(asked, pages))


def measure(corpus: Corpus, codec: str) -> Row:
    method, vectors = Method.parse(codec), len(corpus.pages.vectors)
    began = time.process_time()
    reduced, _ = method.reduce(corpus.pages)
    fitted = method.fit(reduced)
    fit_seconds = time.process_time() - began
    fitted.open(fitted.encode(reduced.part(0, 4))).scores(corpus.queries[0])  # compile
    began = time.process_time()
    encoded = fitted.encode(reduced)
    encoding = time.process_time() - began
    began = time.process_time()
    scorer = fitted.open(encoded)
    opening = time.process_time() - began
    began = time.process_time()
    scores = np.stack([scorer.scores(corpus.queries[query]) for query in range(len(corpus.queries))])
    scoring = time.process_time() - began
    run, exact = corpus.run(scores), corpus.run(corpus.exact)
    values = [measured(ndcg, found, corpus.judgements, 10) for found in (run, exact)]
    kept: Estimate = retained(*values)
    return Row(
        codec,
        code_bytes(fitted, encoded) / vectors,
        state_bytes(fitted) / vectors,
        kept.mean,
        kept.low,
        kept.high,
        float(np.mean([overlap(run[query], exact[query]) for query in corpus.asked])),
        fit_seconds,
        len(reduced.vectors) / max(encoding, 1e-9),
        len(reduced.vectors) / max(opening, 1e-9),
        1e9 * scoring / len(corpus.queries.vectors) / len(reduced.vectors),
        scorer.nbytes / len(reduced.vectors),
    )


def gemm_ns(corpus: Corpus) -> float:
    """CPU time of a matrix product and the largest of each page, per (query vector, vector)."""
    few = range(0, len(corpus.queries), 10)
    began = time.process_time()
    for query in few:
        maxsim(corpus.queries.part(query, query + 1), corpus.pages)
    pairs = sum(len(corpus.queries[query]) for query in few) * len(corpus.pages.vectors)
    return 1e9 * (time.process_time() - began) / pairs


def plot(rows: list[Row], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(13, 5.5), constrained_layout=True)
    families = sorted({row.codec.rstrip("0123456789").split(":")[0] for row in rows if "|" not in row.codec})
    for number, family in enumerate(families):
        own = [r for r in rows if "|" not in r.codec and r.codec.rstrip("0123456789").split(":")[0] == family]
        own.sort(key=lambda row: row.bytes_a_vector)
        style = {"color": f"C{number % 10}", "marker": "os^Dv"[number // 10 + number % 3], "label": family}
        for panel, ys in zip(panels, ([r.overlap for r in own], [100 * r.kept for r in own]), strict=True):
            panel.plot([r.bytes_a_vector for r in own], ys, linewidth=2.5 if family == "ofec" else 1, **style)
    for panel, label in zip(panels, ("overlap of the ten best with exact", "nDCG@10 kept, %"), strict=True):
        panel.set(xscale="log", xlabel="bytes a vector on disk, codebook excluded", ylabel=label)
        panel.grid(alpha=0.3)
    panels[0].legend(ncols=2, fontsize=8)
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--codecs", nargs="+", default=CODECS)
    parser.add_argument("--judgements", default="qrels_test.tsv")
    parser.add_argument("--zero-grade", type=float)
    parser.add_argument("--vectors", type=Path)
    parser.add_argument("--out", type=Path, default=Path("documents-out"))
    options = parser.parse_args()
    torch.set_num_threads(1)

    corpus = load_corpus(options.folder, options.judgements, options.zero_grade, options.vectors)
    exact = estimate(measured(ndcg, corpus.run(corpus.exact), corpus.judgements, 10))
    print(f"{len(corpus.pages)} pages, {len(corpus.pages.vectors)} vectors, exact nDCG@10 {exact}")
    print(f"matrix product and maximum: {gemm_ns(corpus):.2f} ns a pair")
    rows = []
    options.out.mkdir(parents=True, exist_ok=True)
    for codec in options.codecs:
        rows.append(measure(corpus, codec))
        print(rows[-1], flush=True)
        with open(options.out / "documents.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, list(asdict(rows[0])))
            writer.writeheader()
            writer.writerows(asdict(row) for row in rows)
    plot(rows, options.out / "documents.png")


if __name__ == "__main__":
    main()
