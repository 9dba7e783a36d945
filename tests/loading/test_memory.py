"""Memory of a loader over many epochs, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from shards.conftest import token_rows, write_dataset

PREFETCH = 8 << 20
EPOCHS = """
import json, sys
from pathlib import Path
import torch
import tokenshard as ts

def megabytes(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024 / 1e6

sizes = {"imports": megabytes("VmRSS")}
ts.open(sys.argv[1])[0]
sizes["first sample"] = megabytes("VmRSS")
columns = ["codes", "label", "key"]
loader = ts.loader(sys.argv[1], 256, shuffle=True, columns=columns, threads=2, prefetch_bytes=int(sys.argv[2]))
peaks = []
for _ in range(20):
    for batch in loader:
        pass
    peaks.append(megabytes("VmHWM"))
print(json.dumps({**sizes, "peaks": peaks}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_more_epochs_take_no_more_memory(tmp_path: Path) -> None:
    """At most 150 MB and `prefetch_bytes` above a process that has its libraries loaded, and then no growth.

    Ten epochs give out 100 MB of batches. All memory is of one heap here: heaps for each thread, glibc's and those of
    Arrow's allocator, keep what was freed in them, and how many there are hangs on which threads met.
    """
    store = write_dataset(tmp_path / "tokens", [token_rows(20_000, side=16, alphabet=1024)])
    command = [sys.executable, "-c", EPOCHS, str(store.root), str(PREFETCH)]
    one_heap = {**os.environ, "MALLOC_ARENA_MAX": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"}
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=one_heap)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    peaks = found["peaks"]
    assert peaks[-1] - found["first sample"] <= 150 + PREFETCH / 1e6, found
    assert peaks[19] - peaks[1] <= 30, found
