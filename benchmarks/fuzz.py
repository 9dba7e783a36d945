"""Damages datasets in every way and reads them: always one clear error, never a crash, a hang or a wrong id.

    python benchmarks/fuzz.py [--mutations 100000] [--seed 1] [--workers 2] [--bounds-check] [--only INDEX] [--json]

The golden datasets of tests/golden are the material. Half of the mutations damage a file as it lies there: what is read
afterwards must be an error or exactly what was written. The others come from an enemy, who makes every checksum fit
again: they must end in an error or in ids inside the alphabet, and never leave an array. Mutation INDEX depends on seed
and index alone. Worker processes run them, so that a crash or a hang costs one mutation and is counted as a violation;
they may not map more than 8 GiB. Streams and ids lie against pages that may not be touched. With ``--bounds-check`` the
compiled loops test every index, too (slow start). Exits with 1 where anything was violated.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import selectors
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fuzzing import DEFAULT_SETS, KINDS
from fuzzing.outcome import INSIDE, REFUSED, SAME, VIOLATED

TIMEOUT = 60
"""Seconds a mutation may take; most take a few milliseconds."""

START = 300
"""Seconds a worker may need for its first one, and for any with ``--bounds-check``: it may have to compile."""

MEMORY = 8 << 30


def main() -> int:
    arguments = parser().parse_args()
    if arguments.worker or arguments.only is not None:
        span = range(*arguments.worker) if arguments.worker else range(arguments.only, arguments.only + 1)
        return run_worker(arguments, span)
    started, total = time.time(), arguments.mutations
    share = -(-total // arguments.workers)
    spans = [range(first, min(first + share, total)) for first in range(0, total, share)]
    with ThreadPoolExecutor(arguments.workers) as threads, tempfile.TemporaryDirectory(prefix="fuzz-") as cache:
        environment = dict(os.environ)
        if arguments.bounds_check:
            environment |= {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": cache}
        parts = threads.map(lambda span: list(supervised(arguments, span, environment)), spans)
        results = [result for part in parts for result in part]
    counts = Counter((kind, outcome) for _, kind, outcome, _ in results)
    violations = [result for result in results if result[2] == VIOLATED]
    report(arguments, counts, violations, time.time() - started)
    return 1 if violations or len(results) != total else 0


def parser() -> argparse.ArgumentParser:
    parsed = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parsed.add_argument("--mutations", type=int, default=100_000)
    parsed.add_argument("--seed", type=int, default=1)
    parsed.add_argument("--workers", type=int, default=2)
    parsed.add_argument("--sets", type=Path, default=DEFAULT_SETS, help="folder of datasets")
    parsed.add_argument("--bounds-check", action="store_true", help="compile the loops with a test of every index")
    parsed.add_argument("--only", type=int, help="run one mutation and show what comes of it")
    parsed.add_argument("--json", action="store_true")
    parsed.add_argument("--worker", type=int, nargs=2, help=argparse.SUPPRESS)
    return parsed


def run_worker(arguments: argparse.Namespace, span: range) -> int:
    """Runs mutations in this process; one JSON line each."""
    from fuzzing.material import Material

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        material = Material(arguments.sets, Path(folder))
        for index in span:
            kind, outcome, detail = material.run(arguments.seed, index)
            print(json.dumps([index, kind, outcome, detail]), flush=True)
    return 0


def supervised(
    arguments: argparse.Namespace, span: range, environment: dict[str, str]
) -> Iterator[tuple[int, str, str, str]]:
    """Results of a span of mutations; a worker that dies or hangs is one violation and is replaced."""
    first = span.start
    while first < span.stop:
        command = [sys.executable, __file__, "--seed", str(arguments.seed), "--sets", str(arguments.sets)]
        command += ["--worker", str(first), str(span.stop)]
        worker = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
        reason = "ended early"
        for line in lines(worker, START if arguments.bounds_check else TIMEOUT):
            if line is None:
                worker.kill()
                reason = "hung"
                break
            index, kind, outcome, detail = json.loads(line)
            yield index, kind, outcome, detail
            first = index + 1
        code = worker.wait()
        if first < span.stop:
            yield first, KINDS[first % len(KINDS)], VIOLATED, f"the worker {reason} with exit code {code}"
            first += 1


def lines(worker: subprocess.Popen[bytes], patience: float) -> Iterator[bytes | None]:
    """Lines a worker prints; None when it is silent for too long."""
    assert worker.stdout is not None
    descriptor, waiting, limit = worker.stdout.fileno(), b"", float(START)
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while True:
            if not selector.select(limit):
                yield None
                return
            part = os.read(descriptor, 1 << 16)
            if not part:
                return
            *whole, waiting = (waiting + part).split(b"\n")
            yield from whole
            limit = patience


def report(arguments: argparse.Namespace, counts: Counter, violations: list, seconds: float) -> None:
    if arguments.json:
        listed = {kind: {o: n for (k, o), n in sorted(counts.items()) if k == kind} for kind in sorted(set(KINDS))}
        figures = {"seed": arguments.seed, "mutations": counts.total(), "seconds": round(seconds), "counts": listed}
        print(json.dumps(figures | {"violations": violations}, indent=1))
        return
    print(f"{'':16}" + "".join(f"{outcome:>10}" for outcome in (REFUSED, SAME, INSIDE, VIOLATED)))
    for kind in dict.fromkeys(KINDS):
        row = [counts[kind, outcome] for outcome in (REFUSED, SAME, INSIDE, VIOLATED)]
        print(f"{kind:16}" + "".join(f"{count:10,}" for count in row))
    print(f"{counts.total():,} mutations, seed {arguments.seed}, {seconds:.0f} s")
    for index, kind, _, detail in violations:
        print(f"VIOLATED by {kind} --seed {arguments.seed} --only {index}: {detail}")


if __name__ == "__main__":
    sys.exit(main())
