"""The loader where things go wrong: processes killed within an epoch, an object store that is slow and fails."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader

from flaky_s3 import Fault, FlakyS3
from shards.conftest import token_rows, write_dataset
from tokenshard.loading.adapters import TorchBatches, to_ray
from tokenshard.loading.loader import TokenLoader
from tokenshard.loading.order import Shuffle
from tokenshard.shards.dataset import Dataset, open_dataset
from tokenshard.store import Store

pytestmark = pytest.mark.integration
BATCH = 24
OPTIONS = {"shuffle": Shuffle(5, 2), "seed": 4, "columns": ["codes", "key"], "global_batch_size": BATCH}

TRAIN = """
import json, sys, time
import tokenshard as ts
url, out, rank, world, threads, state = sys.argv[1:]
loader = ts.loader(url, shuffle=ts.Shuffle(5, 2), seed=4, columns=["codes", "key"], global_batch_size=24,
                   rank=int(rank), world=int(world), threads=int(threads))
if state != "-":
    loader.load_state_dict(json.loads(state))
with open(out, "a") as log:
    for batch in loader:
        log.write(json.dumps([batch["key"], loader.state_dict()]) + "\\n")
        log.flush()
        time.sleep(0.01)
"""


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """1,500 samples in 24 row groups of 3 shards."""
    rows = [token_rows(500, codecs=("context",), first=500 * number) for number in range(3)]
    return open_dataset(write_dataset(tmp_path_factory.mktemp("tokens") / "set", rows, row_group_bytes=1).root)


def test_killed_ranks_resume_at_another_world_size_with_nothing_lost_or_doubled(
    tokens: Dataset, tmp_path: Path
) -> None:
    draw = random.Random(1)
    whole = [key for batch in TokenLoader(tokens, rank=0, world=1, **OPTIONS) for key in batch["key"]]
    done: list[str] = []
    state = "-"
    for world, threads in ((2, 1), (1, 3), (3, 0)):
        logs = [tmp_path / f"{len(done)}-{world}-{rank}.jsonl" for rank in range(world)]
        words = [sys.executable, "-c", TRAIN, tokens.store.root]
        ranks = [
            subprocess.Popen([*words, str(log), str(rank), str(world), str(threads), state])
            for rank, log in enumerate(logs)
        ]
        wanted = draw.randint(3, 12)
        while world != 3 and min(map(lines, logs)) < wanted and any(rank.poll() is None for rank in ranks):
            threading.Event().wait(0.01)
        for rank in ranks:
            if world != 3:
                rank.kill()
            rank.wait()
        steps = [[json.loads(line) for line in log.read_text().splitlines(True) if line.endswith("\n")] for log in logs]
        common = min(map(len, steps))  # what all ranks trained on: a checkpoint is of one step
        assert common
        done += [
            key for step in zip(*(rank[:common] for rank in steps), strict=True) for keys, _ in step for key in keys
        ]
        state = json.dumps(steps[0][common - 1][1])
        assert done == whole[: len(done)]
    assert done == whole


def lines(log: Path) -> int:
    return log.read_text().count("\n") if log.exists() else 0


def test_a_slow_and_failing_object_store_costs_few_requests_and_no_sample(
    tokens: Dataset,
    s3_url: str,
    flaky_s3: Callable[[Iterable[Fault | None]], FlakyS3],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("flaky_s3.LATENCY", 0.03)
    for entry in tokens.store.list():
        Store(s3_url).put(entry.name, tokens.store.read(entry.name))
    bad = itertools.cycle([Fault.BUSY, Fault.RESET, Fault.CUT])
    proxy = flaky_s3(next(bad) if number % 20 == 19 else Fault.SLOW for number in itertools.count())
    remote = open_dataset(s3_url, {"endpoint_url": proxy.endpoint})
    stored = sum(shard.bytes for shard in tokens.manifest.shards)
    options = {**OPTIONS, "shuffle": True, "prefetch_bytes": stored // 2}  # too little to keep what was read
    loader, local = (TokenLoader(dataset, rank=0, world=1, **options) for dataset in (remote, tokens))
    for epoch in range(2):
        begun, failed = proxy.requests, failures(proxy)
        for ours, theirs in zip(loader, local, strict=True):
            assert ours["key"] == theirs["key"]
            assert ours["codes"].equal(theirs["codes"])
        answered = proxy.requests - begun - (failures(proxy) - failed)
        if epoch == 1:  # footers are known by now
            assert answered <= 1.1 * tokens.num_row_groups
    assert failures(proxy) >= 2


def test_the_first_batch_waits_for_eight_row_groups_that_come_at_the_same_time(
    tokens: Dataset, s3_url: str, flaky_s3: Callable[[Iterable[Fault | None]], FlakyS3]
) -> None:
    for entry in tokens.store.list():
        Store(s3_url).put(entry.name, tokens.store.read(entry.name))
    hold = threading.Event()
    proxy = flaky_s3(Fault.HELD if hold.is_set() else None for _ in itertools.count())
    remote = open_dataset(s3_url, {"endpoint_url": proxy.endpoint})
    for shard in range(len(remote.manifest.shards)):
        remote.reader(shard)  # footers are known by now
    options = {"shuffle": True, "seed": 4, "columns": ["codes", "key"], "rank": 0, "world": 1}
    loader = TokenLoader(remote, BATCH, **options)
    begun, sent = proxy.requests, proxy.sent
    hold.set()
    with ThreadPoolExecutor(1) as consumer:
        epoch = iter(loader)
        first = consumer.submit(next, epoch)
        assert proxy.holds(8)
        assert proxy.requests - begun == 8
        proxy.release()
        batch = first.result()
    wanted = sum(
        chunk.length for shard in tokens.manifest.shards for group in shard.row_groups for chunk in group.codes
    )
    rest = list(epoch)
    assert proxy.requests - begun == tokens.num_row_groups + len(tokens.manifest.models)
    assert wanted < proxy.sent - sent < 1.05 * sum(shard.bytes for shard in tokens.manifest.shards)
    expected = list(TokenLoader(tokens, BATCH, **options))
    assert [part["key"] for part in (batch, *rest)] == [part["key"] for part in expected]


@pytest.mark.filterwarnings("ignore:This DataLoader will create", "ignore:.*use of fork")
def test_forked_workers_read_from_an_object_store_that_their_parent_has_read_from(tokens: Dataset, s3_url: str) -> None:
    for entry in tokens.store.list():
        Store(s3_url).put(entry.name, tokens.store.read(entry.name))
    remote = open_dataset(s3_url)
    loader = TokenLoader(remote, rank=0, world=1, **OPTIONS)
    expected = [batch["key"] for batch in loader]  # connections, footers and compiled loops are the parent's by now
    batches = TorchBatches(loader)
    batches.set_epoch(0)
    workers = DataLoader(batches, batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60)
    assert [batch["key"] for batch in workers] == expected


def failures(proxy: FlakyS3) -> int:
    return Counter(proxy.failures).total() - proxy.failures[Fault.SLOW]


def test_ray_data_reads_the_samples_of_the_loader(tokens: Dataset, ray_address: str) -> None:
    found = to_ray(tokens, ["codes", "key", "label"]).take_batch(len(tokens))
    expected = next(iter(TokenLoader(tokens, len(tokens), columns=["codes", "key", "label"], rank=0, world=1)))
    order = np.argsort(found["key"])
    assert found["key"][order].tolist() == expected["key"]
    assert found["label"][order].tolist() == expected["label"].tolist()
    assert found["codes"].dtype == np.uint16
    assert np.array_equal(found["codes"][order], expected["codes"].numpy())
