"""The loader on an object store that is slow and fails: requests, bytes, and seconds to the first batch.

    python benchmarks/remote_loader.py [--samples 500000] [--latency 0.03] [--fail-every 20]

An S3-protocol server (moto, behind a proxy that delays and breaks requests) runs in another process on this machine and
shares its cores, so that counts and bytes say more than seconds. An epoch of codes, labels and keys, shuffled, in
batches of 256, is compared with the same epoch from local disk. What is compiled is compiled before.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from feeding.tokens import make_tokens

import tokenshard as ts
from tokenshard.spec.job import Import, build_job
from tokenshard.store import Store

BATCH = 256
BUCKET = "tokens"
COLUMNS = ("codes", "label", "key")
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


@contextlib.contextmanager
def object_store(latency: float, fail_every: int) -> Iterator[tuple[str, str, Callable[[], dict[str, int]]]]:
    """URL of the server, URL of the proxy before it, and what counts its traffic."""
    command = [sys.executable, "-m", "feeding.object_store", str(latency), str(fail_every)]
    with subprocess.Popen(
        command, cwd=Path(__file__).parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        asking, answers = server.stdin, server.stdout

        def traffic() -> dict[str, int]:
            asking.write("\n")
            asking.flush()
            found: dict[str, int] = json.loads(answers.readline())
            return found

        upstream, endpoint = json.loads(answers.readline())
        yield upstream, endpoint, traffic
        asking.close()


def write(raw: Path, folder: Path) -> ts.Dataset:
    """The set as token shards of up to 262,144 samples: of some 64 MiB and more, as object stores like them."""
    source = {"path": str(raw), "format": "npy", "alphabet": 1024}
    job = {"source": source, "output": str(folder), "codec": "pack", "unit": {"samples": 1 << 18}}
    ts.run(build_job(Import, {**job, "engine": {"kind": "local", "workers": 0}}))
    return ts.open(folder)


def upload(local: ts.Dataset, url: str, endpoint: str) -> None:
    import boto3

    boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket=BUCKET)
    target = Store(url, {"endpoint_url": endpoint})
    for entry in local.store.list():
        target.put(entry.name, local.store.read(entry.name))


def main() -> None:
    parser = argparse.ArgumentParser(description="The loader on a slow and failing object store.")
    parser.add_argument("--samples", type=int, default=500_000)
    parser.add_argument("--side", type=int, default=16, help="ids along each side of a sample")
    parser.add_argument("--latency", type=float, default=0.03, help="seconds")
    parser.add_argument("--fail-every", type=int, default=20, help="0: no request fails")
    options = parser.parse_args()
    os.environ.update(CREDENTIALS)
    with tempfile.TemporaryDirectory() as temporary, object_store(options.latency, options.fail_every) as server:
        upstream, endpoint, traffic = server
        make_tokens(None, options.samples, options.side).save(Path(temporary) / "raw")
        local = write(Path(temporary) / "raw", Path(temporary) / "tokens")
        upload(local, f"s3://{BUCKET}/set", upstream)
        shuffle = ts.loader(local, BATCH, True).shuffle
        ts.open(f"s3://{BUCKET}/set", {"endpoint_url": endpoint})  # what has to be imported is imported
        found = {
            "with an opening": epoch(shuffle, local, endpoint, traffic),
            "without": epoch(replace(shuffle, opening=0), local, endpoint, traffic),
        }
        print(json.dumps(found, indent=1))


def epoch(shuffle: ts.Shuffle, local: ts.Dataset, endpoint: str, traffic: Callable[[], dict[str, int]]) -> Any:
    """Figures of one epoch, the opening of the dataset included."""
    expected = [batch["key"] for batch in ts.loader(local, BATCH, shuffle, 1, COLUMNS)]
    start, used, started, first, found = traffic(), cpu(), time.perf_counter(), 0.0, []
    remote = ts.open(f"s3://{BUCKET}/set", {"endpoint_url": endpoint})
    for batch in ts.loader(remote, BATCH, shuffle, 1, COLUMNS):
        if not found:
            first, opened = time.perf_counter() - started, traffic()
        found.append(batch["key"])
    wall, used, end = time.perf_counter() - started, cpu() - used, traffic()
    assert found == expected, "samples are lost, wrong or in another order"
    groups, stored = local.num_row_groups, sum(shard.bytes for shard in local.manifest.shards)
    failed = end["failed"] - start["failed"]
    answered = end["requests"] - start["requests"] - failed
    return {
        "samples": len(local),
        "shards": len(local.manifest.shards),
        "row_groups": groups,
        "stored_mb": round(stored / 1e6, 1),
        "requests_answered": answered,
        "requests_failed": failed,
        "answered_by_row_groups": round(answered / groups, 3),
        "bytes_by_stored": round((end["bytes"] - start["bytes"]) / stored, 3),
        "first_batch_s": round(first, 2),
        "mb_before_first_batch": round((opened["bytes"] - start["bytes"]) / 1e6, 1),
        "epoch_s": round(wall, 1),
        "client_cpu_us": round(1e6 * used / len(local), 1),
        "load": round(os.getloadavg()[0], 1),
    }


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
