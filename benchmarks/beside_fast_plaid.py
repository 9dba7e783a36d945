"""Search on two cores beside fast-plaid: the same vectors, queries and machine, in one run.

    python benchmarks/beside_fast_plaid.py pack VECTORS.npz FOLDER MATERIAL [--zero-grade 4]
    python benchmarks/beside_fast_plaid.py run MATERIAL WORK [--documents 5000] [--eighths 8] [--build-device cuda]

fast-plaid needs a torch of its own (wheels up to 2.11), so that both are seldom installed side by side: `pack` writes
vectors, queries, judgements and codebooks into one folder (VECTORS.npz and FOLDER are those of documents.py), and `run`
needs numba, pyarrow, pydantic, safetensors and zstandard, but neither faiss nor an encoder. The corpus is made larger
as in search_latency.py; with `--eighths 1` by short documents, each of an eighth of one other.

Each search runs in a process of its own that may use two cores (``--cores``). tokenshard answers two queries at a time;
fast-plaid does that, too (`n_processes`), or one query on two threads. nDCG@10, overlap with the ten best by exact
MaxSim, CPU time of all threads a query, queries a second by the clock (the best of three), growth of the process's
memory from before the index is opened until it has answered, bytes of the index on disk and seconds to build it.
fast-plaid's index is built on `--build-device`, and its k-means is in that time; codebooks of tokenshard come packed.
With a GPU fast-plaid also searches there. `--seconds` bounds the work at each size: what comes later is left out,
and fast-plaid comes first.

WORK gets the indexes and `fast_plaid.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

PLAID_SETTINGS = ((1, 256), (2, 512), (4, 1024), (8, 4096), (16, 4096), (32, 4096))
"""Of fast-plaid: lists a query vector looks at, and full scores, the quickest first; its defaults are 8 and 4,096."""
MOST_SCORED = 20_000
"""Documents that are all scored for a query, at most."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack")
    packing.add_argument("vectors", type=Path)
    packing.add_argument("folder", type=Path)
    packing.add_argument("material", type=Path)
    packing.add_argument("--codecs", nargs="+", default=["ofec:0.12,4096", "ofec:0.08,4096", "ofec:0.06,4096"])
    packing.add_argument("--judgements", default="qrels_test.tsv")
    packing.add_argument("--zero-grade", type=float)
    running = commands.add_parser("run")
    running.add_argument("material", type=Path)
    running.add_argument("work", type=Path)
    running.add_argument("--documents", type=int, nargs="+", default=[5_000])
    running.add_argument("--queries", type=int, default=225)
    running.add_argument("--bits", type=int, nargs="*", default=[4, 2], help="of fast-plaid")
    running.add_argument("--eighths", type=int, default=8, choices=range(1, 9))
    running.add_argument("--cores", type=int, default=2)
    running.add_argument("--build-device", default="cpu")
    running.add_argument("--codecs", nargs="+", help="of those packed, as file names: ofec-0.12,4096")
    running.add_argument("--seconds", type=float, default=240)
    for name in ("search-ours", "search-fast-plaid", "build-fast-plaid"):  # run by `run`
        child = commands.add_parser(name)
        child.add_argument("options", type=json.loads)
    options = parser.parse_args()
    match options.command:
        case "pack":
            _pack(options)
        case "run":
            _run(options)
        case "search-ours":
            _search_ours(**options.options)
        case "search-fast-plaid":
            _search_fast_plaid(**options.options)
        case "build-fast-plaid":
            _build_fast_plaid(**options.options)


def _pack(options: argparse.Namespace) -> None:
    from retrieving.corpus import load_corpus
    from retrieving.large import Collection
    from retrieving.packed import pack

    corpus = load_corpus(options.folder, options.judgements, options.zero_grade, options.vectors)
    collection = Collection(corpus.pages, corpus.queries, corpus.keys, corpus.asked, dict(corpus.judgements))
    pack(collection, options.codecs, options.material)


# -- the run ----------------------------------------------------------------------------------------------------------


def _run(options: argparse.Namespace) -> None:
    from retrieving.large import Large
    from retrieving.packed import unpacked

    collection = unpacked(options.material)
    rows: list[dict[str, Any]] = []
    for count in options.documents:
        large = Large.of(collection, count, options.queries, len(os.sched_getaffinity(0)), options.eighths)
        value, _ = large.quality(large.exact)
        print(f"{count:,} documents, {len(large.rows):,} vectors; exact nDCG@10 {value:.4f}", flush=True)
        work = options.work / str(count)
        work.mkdir(parents=True, exist_ok=True)
        for row in _measured(options, large, work, time.monotonic() + options.seconds):
            found = row.pop("found")
            row["documents"] = count
            row["ndcg_at_10"], row["overlap"] = large.quality(found)
            print(_line(row), flush=True)
            rows.append(row)
            (options.work / "fast_plaid.json").write_text(json.dumps({"cores": options.cores, "rows": rows}, indent=1))


@dataclass(frozen=True)
class _Searches:
    """Searches of one index: what their process is told, the threads of a search, and what is known beforehand."""

    command: str
    words: dict[str, Any]
    threads: int
    known: dict[str, Any]


def _measured(options: argparse.Namespace, large: Any, work: Path, end: float) -> Iterator[dict[str, Any]]:
    """Rows of all searches there is time for."""
    np.savez(work / "large.npz", rows=large.rows, offsets=large.offsets)
    np.savez(work / "queries.npz", vectors=np.concatenate(large.queries), lengths=[len(q) for q in large.queries])
    searches = [*_fast_plaid(options, work, end), *_ours(options, large, work)]
    for place, own in enumerate(searches):
        share = (end - time.monotonic()) / (len(searches) - place)
        words = {**own.words, "queries": str(work / "queries.npz"), "cores": options.cores, "seconds": share}
        for row in _child(own.command, words, end, own.threads, options.cores):
            yield {**own.known, **row}


def _ours(options: argparse.Namespace, large: Any, work: Path) -> Iterator[_Searches]:
    """Indexes of all codebooks that were packed, or of those asked for."""
    from retrieving.packed import build

    threads = len(os.sched_getaffinity(0))
    for codebook in sorted(options.material.glob("*.safetensors"), reverse=True):
        if options.codecs and codebook.stem not in options.codecs:
            continue
        folder = work / codebook.stem
        began = time.perf_counter()
        sizes = build(large, codebook, folder, threads)
        known = {"build_seconds": time.perf_counter() - began, "build": f"{threads} threads", **sizes}
        print(f"{codebook.stem}: {known}", flush=True)
        known |= {"name": f"tokenshard {codebook.stem}", "index_bytes": sum(sizes.values())}
        yield _Searches("search-ours", {"folder": str(folder)}, 1, known)


def _fast_plaid(options: argparse.Namespace, work: Path, end: float) -> Iterator[_Searches]:
    """Indexes of so many bits, each searched in two ways on the processor, and on the device that built it."""
    for bits in options.bits:
        folder = str(work / f"plaid-{bits}")
        words = {"material": str(options.material), "large": str(work / "large.npz"), "folder": folder, "bits": bits}
        built = list(_child("build-fast-plaid", {**words, "device": options.build_device}, end))
        print(f"fast-plaid, {bits} bits: {built}", flush=True)
        ways = [("cpu", options.cores, PLAID_SETTINGS), ("cpu", 1, PLAID_SETTINGS[:2])]
        if options.build_device != "cpu":
            ways.append((options.build_device, 1, PLAID_SETTINGS))
        for device, processes, settings in ways if built else ():
            own = {"folder": folder, "device": device, "processes": processes, "settings": settings}
            name = f"fast-plaid, {bits} bits, {device}, n_processes {processes}"
            yield _Searches("search-fast-plaid", own, options.cores // processes, {"name": name, **built[0]})


def _child(
    command: str, words: dict[str, Any], end: float, threads: int | None = None, cores: int | None = None
) -> Iterator[dict[str, Any]]:
    """What a process of this file prints, on so many cores; its errors go where ours go. A failure ends it, not us."""
    chosen = set(_cores(cores)) if cores else None
    env = dict(os.environ)
    if threads:
        env |= {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")}
        env |= {"OPENBLAS_NUM_THREADS": str(threads)}
    with subprocess.Popen(
        [sys.executable, __file__, command, json.dumps(words)],
        stdout=subprocess.PIPE,
        text=True,
        env=env,
        preexec_fn=(lambda: os.sched_setaffinity(0, chosen)) if chosen else None,
    ) as process:
        assert process.stdout is not None
        bound = threading.Timer(end - time.monotonic(), process.kill)
        bound.start()
        for line in process.stdout:
            if line.startswith("{"):
                yield json.loads(line)
        bound.cancel()
    if process.returncode:
        print(f"{command} {words}: ended with {process.returncode}", flush=True)


def _cores(count: int) -> list[int]:
    """Processors that are not two threads of one core, where there are so many."""
    allowed, firsts = sorted(os.sched_getaffinity(0)), {}
    for cpu in allowed:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        firsts.setdefault(siblings.read_text() if siblings.is_file() else cpu, cpu)
    return [*firsts.values(), *(cpu for cpu in allowed if cpu not in firsts.values())][:count]


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['name']:46} {row['setting']:34} nDCG@10 {row['ndcg_at_10']:.4f}  overlap {row['overlap']:.3f}  "
        f"CPU {row['cpu_ms']:8.2f} ms  {row['queries_a_second']:8.1f} queries/s  "
        f"+{row['memory_bytes'] / 1e6:7.1f} MB  index {row.get('index_bytes', 0) / 1e6:7.1f} MB  "
        f"built in {row.get('build_seconds', 0):5.1f} s"
    )


# -- in processes of their own ----------------------------------------------------------------------------------------


def _resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _asked(queries: str) -> list[Any]:
    held = np.load(queries)
    return np.split(held["vectors"], np.cumsum(held["lengths"])[:-1])


def _search_ours(folder: str, queries: str, cores: int, seconds: float) -> None:
    from retrieving.large import SETTINGS, best, in_threads, lists_search, timed
    from retrieving.packed import opened, warmed_up

    end, asked = time.monotonic() + seconds, _asked(queries)
    warmed_up(Path(folder))  # so that machine code is not counted as memory of the index
    before = _resident()
    lists, scorer = opened(Path(folder))
    searches = {
        f"{probes} probes, {pages} pages": lists_search(lists, scorer, probes, pages) for probes, pages in SETTINGS
    }
    if len(scorer) <= MOST_SCORED:
        searches["all pages"] = lambda query: best(scorer.scores(query))
    for setting, search in searches.items():
        if time.monotonic() < end:
            row = timed(in_threads(search, cores), asked)
            grown = {"memory_bytes": _resident() - before, "arrays_bytes": scorer.nbytes + lists.nbytes}
            print(json.dumps({"setting": setting, **row.__dict__, **grown}), flush=True)


def _plaid(folder: str, device: str) -> Any:
    from fast_plaid import search

    return search.FastPlaid(index=folder, device=device)


def _build_fast_plaid(material: str, large: str, folder: str, bits: int, device: str) -> None:
    import torch
    from retrieving.packed import unpacked

    vectors, held = unpacked(Path(material)).pages.vectors.astype(np.float16), np.load(large)
    every = torch.from_numpy(vectors[held["rows"]])
    documents = list(every.split(np.diff(held["offsets"]).tolist()))
    _plaid(f"{folder}-warm", device).create(documents[:300], nbits=bits)  # libraries of the device are loaded
    began = time.perf_counter()
    _plaid(folder, device).create(documents, nbits=bits, seed=0)
    seconds = time.perf_counter() - began
    size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
    print(json.dumps({"build_seconds": seconds, "build": device, "index_bytes": size}), flush=True)


def _search_fast_plaid(
    folder: str, queries: str, cores: int, seconds: float, device: str, processes: int, settings: list[list[int]]
) -> None:
    import torch
    from retrieving.large import timed

    torch.set_num_threads(cores // processes)
    end, asked = time.monotonic() + seconds, [torch.from_numpy(query) for query in _asked(queries)]
    before = _resident()
    index = _plaid(folder, device)
    for probes, scores in settings:
        if time.monotonic() >= end:
            return

        def search(own: Any, probes: int = probes, scores: int = scores) -> Any:
            how = {"n_ivf_probe": probes, "n_full_scores": scores, "n_processes": processes, "show_progress": False}
            return [np.array([page for page, _ in found]) for found in index.search(own, top_k=10, **how)]

        row = timed(search, asked)
        grown = {"memory_bytes": _resident() - before}
        setting = f"{probes} probes, {scores} full scores"
        print(json.dumps({"setting": setting, **row.__dict__, **grown}), flush=True)


if __name__ == "__main__":
    main()
