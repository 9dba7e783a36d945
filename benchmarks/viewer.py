"""How soon `tokenshard view` shows its first page, what it reads and what memory it takes, on a dataset of any size.

    python benchmarks/viewer.py FOLDER_OF_IMAGES [--samples 100000] [--out FOLDER]

The images are converted once; their codes are repeated under other keys until there are as many samples as asked for.
A process of its own runs the command, and requests are those of a browser: six connections, all files of the page, the
first 48 samples and their thumbnails. Bytes read are those that the process asked the system for (`rchar`).
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import tokenshard
from tokenshard.spec.job import JOB_KINDS, build_job

CONNECTIONS = 6
LOCAL = {"engine": {"kind": "local", "workers": 0}}
WANTED = {"seconds": 1.0, "megabytes": 400}


def repeated(images: Path, samples: int, root: Path) -> Path:
    """A dataset of so many samples, made of the codes of the images."""
    base, out = root / "base", root / f"tokens-{samples}"
    if out.exists():
        return out
    tokenshard.convert_images(images, base, "patch:4x4,k=1024", **LOCAL)
    dataset = tokenshard.open(base)
    codes = np.asarray(dataset.codes(range(len(dataset))))
    table = dataset.table(["key", "label"])
    keys, labels = table["key"].to_pylist(), table["label"].to_pylist()
    places = np.arange(samples) % len(dataset)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(codes[places].ravel()), codes[0].size)
    columns = {
        "key": [f"{number // len(dataset):04d}/{keys[place]}" for number, place in enumerate(places.tolist())],
        "label": [labels[place] for place in places.tolist()],
        "codes": lists.cast(pa.list_(pa.uint16())),
    }
    (root / "codes").mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), root / "codes" / "codes.parquet")
    tokenizer = base / "tokenizer" / dataset.manifest.tokenizer.fingerprint
    source = {
        "path": str(root / "codes"),
        "format": "parquet",
        "tokenizer": str(tokenizer),
        "grid": list(codes.shape[1:]),
        "labels": "label",
        "modality": "image",
    }
    tokenshard.run(build_job(JOB_KINDS["import"], {"source": source, "output": str(out), **LOCAL}))
    return out


class Process:
    """`tokenshard view` in a process of its own."""

    def __init__(self, out: Path) -> None:
        start = time.perf_counter()
        command = [sys.executable, "-m", "tokenshard", "view", str(out), "--port", "0"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        found = None
        while found is None:
            found = re.search(r"http://127.0.0.1:(\d+)/", self._process.stdout.readline())
        self.port = int(found[1])
        self.get(["/"])
        self.start = time.perf_counter() - start

    def get(self, paths: Sequence[str]) -> list[bytes]:
        """The answers to requests, over as many connections as a browser has."""
        with ThreadPoolExecutor(CONNECTIONS) as threads:
            parts = [paths[place::CONNECTIONS] for place in range(CONNECTIONS)]
            answers = dict(pair for part in threads.map(self._one_after_another, parts) for pair in part)
        return [answers[path] for path in paths]

    def _one_after_another(self, paths: Sequence[str]) -> list[tuple[str, bytes]]:
        line = http.client.HTTPConnection("127.0.0.1", self.port)
        found = []
        for path in paths:
            line.request("GET", path)
            answer = line.getresponse()
            content = answer.read()
            assert answer.status == 200, (path, content)
            found.append((path, content))
        return found

    def read(self) -> int:
        """Bytes that it has read, from sockets too."""
        return int(self._status("io", "rchar"))

    def peak(self) -> float:
        """Most megabytes of memory that it has had."""
        return int(self._status("status", "VmHWM").split()[0]) * 1024 / 1e6

    def cpu(self) -> float:
        """Seconds of CPU time that it has taken."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _status(self, file: str, name: str) -> str:
        text = Path(f"/proc/{self._process.pid}/{file}").read_text()
        return re.findall(rf"^{name}:\s*(.*)$", text, re.MULTILINE)[0]

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()


def measured(out: Path) -> list[dict[str, Any]]:
    """Seconds, bytes and peak memory of what somebody does after starting the viewer."""
    process = Process(out)
    static = ["main.js", "api.js", "dom.js", "samples.js", "sample.js", "codes.js", "rate.js", "codebook.js"]
    static += ["storage.js", "maps.js", "search.js", "base.css", "views.css", "icon.svg"]
    rows = [{"what": "start, until it answers", "seconds": process.start, "cpu": process.cpu(), "peak": process.peak()}]

    def first_page() -> list[bytes]:
        page = process.get(["/"]) + process.get([f"/static/{name}" for name in static]) + process.get(["/api/dataset"])
        return page + samples("/api/samples?count=48")

    def samples(path: str) -> list[bytes]:
        listed = process.get([path])
        numbers = [sample["number"] for sample in json.loads(listed[0])["samples"]]
        return listed + process.get([f"/api/samples/{number}/thumbnail.png" for number in numbers])

    steps = {
        "first page, 48 samples": first_page,
        "a page in the middle": lambda: samples("/api/samples?count=48&from=50016"),
        "a label": lambda: samples("/api/samples?count=48&where=label+%3D%3D+7"),
        "a key that is at the end": lambda: samples("/api/samples?count=48&key=0012/"),
        "a part of a key, nowhere": lambda: process.get(["/api/samples?key=nowhere&contains=1"]),
        "a sample with codes and ranks": lambda: process.get(["/api/samples/777", "/api/samples/777/codes"]),
        "codebook": lambda: process.get(["/api/codebook/0", "/api/codebook/0/strip.png"]),
        "storage": lambda: process.get(["/api/storage", "/api/rejects"]),
        "a rate of 64 codes": lambda: process.get(["/api/samples/777/rate?codes=64"]),
    }
    try:
        for what, step in steps.items():
            read, cpu, start = process.read(), process.cpu(), time.perf_counter()
            sent = sum(map(len, step()))
            seconds = time.perf_counter() - start
            taken = {"cpu": process.cpu() - cpu, "sent": sent, "read": process.read() - read, "peak": process.peak()}
            rows.append({"what": what, "seconds": seconds, **taken})
    finally:
        process.stop()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--out", type=Path, help="Folder for the dataset, kept. [default: a temporary one]")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = given.out or Path(scratch)
        root.mkdir(parents=True, exist_ok=True)
        out = repeated(given.images, given.samples, root)
        dataset = tokenshard.open(out)
        print(
            f"{len(dataset):,} samples, {dataset.manifest.totals.token_bytes:,} bytes, {dataset.num_row_groups} groups"
        )
        rows = measured(out)
    print("| | seconds | CPU | sent | read | peak memory |\n|---|---|---|---|---|---|")
    for row in rows:
        sent, read = (f"{row[name] / 1e3:,.0f} kB" if name in row else "" for name in ("sent", "read"))
        print(f"| {row['what']} | {row['seconds']:.2f} | {row['cpu']:.2f} | {sent} | {read} | {row['peak']:.0f} MB |")
    print(f"wanted: first page in {WANTED['seconds']:.0f} s, memory of at most {WANTED['megabytes']} MB")


if __name__ == "__main__":
    main()
