"""What compression of page vectors keeps, byte by byte: every method on one corpus, beside exact fp32 MaxSim.

    python benchmarks/documents.py FOLDER [--codecs ofec:0.16 …] [--out OUT]
    python benchmarks/documents.py cranfield --zero-grade 4 --tokens 256
    python benchmarks/documents.py scifact --pages 1200
    python benchmarks/documents.py limit-small --judgements qrels.jsonl --measure recall@2 --codebooks-of cranfield

FOLDER holds a corpus in the BEIR layout: `corpus.jsonl`, `queries.jsonl`, judgements. Its vectors are those of `minilm`
(128 d, length 1), kept in the folder `--vectors` for the next run, as are centroids of k-means. Bytes a vector are
those of all code columns with the models of their codecs; codebooks are listed apart, as bytes of the file over the
vectors of the corpus. What is kept of the measure has a 95 % interval from resampled queries; overlap is the share of
the exact ten best pages found. Speeds are CPU time of one thread. Reductions before a codec are counted at the vectors
of the whole pages.

A codec may be followed by `/quantized` (queries go through the same codebook) or `/hamming` (distance between the ids
or signs of queries and pages, bit by bit): HPC-ColPali as published. `prune:cls` prunes by the attention of the first
token. `--pages`: all judged documents and a fixed sample of the others. `--codebooks-of`: encoder and codebooks are
fitted to that other corpus, and the table says what its own vectors take. `--zero-grade`: as in page_encoders.py.

OUT gets `documents.csv` and `documents.png`.
"""

from __future__ import annotations

import argparse
import csv
from dataclasses import asdict
from pathlib import Path

import torch
from retrieving.centroids import keep_centroids
from retrieving.corpus import Corpus, load_corpus
from retrieving.figure import plot
from retrieving.measure import MEASURES, Fitted, Row, gemm_ns, measure_fitted

from tokenshard.errors import SpecError
from tokenshard.retrieval.compression.accounting import code_bytes
from tokenshard.retrieval.evaluation import estimate, measured

CODECS = (
    *("fp16", "int8", "int4", "bits", "bits/hamming", "rabitq:1", "rabitq:2", "caq:2", "caq:4", "saq:1", "saq:2"),
    *("pvq:22", "pvq:48", "lvq:2", "lvq:4", "leanvec:64,4", "pq8", "pq16", "pq32", "opq16", "rq8", "rq16"),
    *("ofec:0.22", "ofec:0.16", "ofec:0.16,auto", "ofec:0.12", "ofec:0.09", "plaid:1", "plaid:2", "plaid:4"),
    *("hpc:256", "hpc:256/quantized", "hpc:256/hamming", "hpc:512", "hpc:512/quantized", "hpc:512/hamming"),
    *(f"prune:{by},{share}|fp16" for share in (0.6, 0.4) for by in ("attention", "cls", "idf", "random")),
    *("prune:attention,0.6|hpc:256", "prune:random,0.6|hpc:256", "prune:attention,0.4|hpc:512"),
    *("pool:2|fp16", "pool:3|fp16", "pool:2|ofec:0.16"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--codecs", nargs="+", default=CODECS)
    parser.add_argument("--judgements", default="qrels_test.tsv")
    parser.add_argument("--measure", choices=MEASURES, default="nDCG@10")
    parser.add_argument("--zero-grade", type=float)
    parser.add_argument("--pages", type=int, help="of a corpus that is larger")
    parser.add_argument("--tokens", type=int, help="cut documents after so many")
    parser.add_argument("--vectors", type=Path, metavar="FOLDER")
    parser.add_argument("--codebooks-of", type=Path, metavar="FOLDER")
    parser.add_argument("--out", type=Path, default=Path("documents-out"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.vectors:
        options.vectors.mkdir(parents=True, exist_ok=True)
        keep_centroids(options.vectors)

    def kept(*names: str) -> Path | None:
        return options.vectors and options.vectors / f"{'-by-'.join(names)}.npz"

    other, names = None, [options.folder.name]
    first_token = any("prune:cls" in codec for codec in options.codecs)
    if options.codebooks_of:
        names.append(options.codebooks_of.name)
        other = load_corpus(
            options.codebooks_of, vectors=kept(names[1]), tokens=options.tokens, first_token=first_token
        )
    corpus = load_corpus(
        options.folder,
        options.judgements,
        options.zero_grade,
        kept(*names),
        options.pages,
        options.tokens,
        other.reduction if other else None,
        first_token,
    )
    function, k = MEASURES[options.measure]
    exact = estimate(measured(function, corpus.run(corpus.exact), corpus.judgements, k))
    print(f"{len(corpus.pages)} pages, {len(corpus.pages.vectors)} vectors, {len(corpus.asked)} queries")
    print(f"exact {options.measure} {exact}; matrix product and maximum {gemm_ns(corpus):.2f} ns a pair")
    rows = []
    options.out.mkdir(parents=True, exist_ok=True)
    for codec in options.codecs:
        try:
            fitted = Fitted.on(other or corpus, codec)
        except SpecError as refusal:  # of a training that does not help
            print(f"{codec}: {refusal}", flush=True)
            continue
        rows.append(measure_fitted(corpus, fitted, options.measure))
        print(rows[-1], *(() if other is None else [f"{_drift(fitted, rows[-1], other):.2f} x the bytes"]), flush=True)
        _write(rows, options.out / "documents.csv")
    plot(rows, options.measure, options.out / "documents.png")


def _drift(fitted: Fitted, row: Row, home: Corpus) -> float:
    """Bytes a vector over those of the corpus that the codebook was fitted to."""
    own = code_bytes(fitted.compressor, fitted.encoded(home)) / len(home.pages.vectors)
    return row.bytes_a_vector / own


def _write(rows: list[Row], file: Path) -> None:
    with open(file, "w", newline="") as out:
        writer = csv.DictWriter(out, list(asdict(rows[0])))
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


if __name__ == "__main__":
    main()
