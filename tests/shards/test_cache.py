"""The cache of remote datasets: right bytes or none, within its limit, whoever else uses it."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

from flaky_s3 import Fault, FlakyS3
from shards.conftest import token_rows, write_dataset
from tokenshard.errors import SpecError, StoreError
from tokenshard.shards.cache import Cache, CachedStore
from tokenshard.shards.dataset import Dataset, open_dataset
from tokenshard.store import Store

pytestmark = pytest.mark.integration
READ = """
import sys
import numpy as np
import tokenshard as ts
url, endpoint, folder, limit, times = sys.argv[1:]
plain = ts.open(url, {"endpoint_url": endpoint})
expected = [np.asarray(codes) for codes in plain.iter_codes()]
cached = ts.open(url, {"endpoint_url": endpoint}, cache=ts.Cache(folder, int(limit)))
print("ready", flush=True)
for _ in range(int(times)):
    for group in np.random.default_rng().permutation(len(expected)).tolist():
        assert np.array_equal(cached.group_codes(group), expected[group])
"""


@pytest.fixture
def remote(s3_url: str, tmp_path: Path) -> Dataset:
    """2,560 samples of 16 KiB of ids a group of 64, in 40 row groups of one shard, in a bucket."""
    rows = token_rows(2560, side=16)
    local = write_dataset(tmp_path / "set", [rows], row_group_bytes=1)
    for entry in local.list():
        Store(s3_url).put(entry.name, local.read(entry.name))
    return open_dataset(s3_url)


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("??/*.range"))


def all_codes(dataset: Dataset) -> np.ndarray:
    return np.concatenate(list(dataset.iter_codes()))  # type: ignore[arg-type]


def test_what_is_cached_needs_no_request(
    remote: Dataset, tmp_path: Path, flaky_s3: Callable[[Iterable[Fault | None]], FlakyS3]
) -> None:
    proxy = flaky_s3([])
    cache = Cache(tmp_path / "cache")
    expected = all_codes(remote)
    opened = open_dataset(remote.store.root, {"endpoint_url": proxy.endpoint})
    assert np.array_equal(all_codes(opened.cached(cache)), expected)
    requests = proxy.requests
    again = opened.cached(cache)
    assert np.array_equal(all_codes(again), expected)
    assert proxy.requests == requests


def test_the_limit_holds_and_the_last_used_stay(remote: Dataset, tmp_path: Path) -> None:
    limit = 8 * 17_000
    cache = Cache(tmp_path / "cache", limit)
    dataset = remote.cached(cache)
    for group in range(remote.num_row_groups):
        dataset.group_codes(group)
        dataset.group_codes(0)
        assert size(tmp_path / "cache") <= limit
    kept = [path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("??/*.range")]
    assert len(kept) >= 5
    assert int((tmp_path / "cache" / "usage").read_text()) == size(tmp_path / "cache")
    assert isinstance(dataset.store, CachedStore)
    first = dataset.manifest.shards[0].row_groups[0]
    spans = [path for path in (tmp_path / "cache").glob("??/*.range") if path.stat().st_mtime_ns == max(kept)]
    assert spans[0].stat().st_size >= first.codes[0].length


@pytest.mark.parametrize("damage", ["cut", "changed", "empty"])
def test_a_damaged_file_is_fetched_again(remote: Dataset, tmp_path: Path, damage: str) -> None:
    cache = Cache(tmp_path / "cache")
    expected = all_codes(remote.cached(cache))
    files = list((tmp_path / "cache").glob("??/*.range"))
    for path in files:
        data = path.read_bytes()
        changed = data[:100] + bytes([data[100] ^ 1]) + data[101:]
        path.write_bytes({"cut": data[:-1], "changed": changed, "empty": b""}[damage])
    assert np.array_equal(all_codes(remote.cached(cache)), expected)
    assert sorted(path.stat().st_size for path in files)[0] > 100


def test_processes_share_a_cache_that_is_too_small_and_may_be_killed(
    remote: Dataset, tmp_path: Path, s3_server: str
) -> None:
    folder, limit = tmp_path / "cache", 10 * 17_000
    words = [sys.executable, "-c", READ, remote.store.root, s3_server, str(folder), str(limit)]
    killed = subprocess.Popen([*words, "1000"], stdout=subprocess.PIPE)
    others = [subprocess.Popen([*words, "4"], stdout=subprocess.PIPE) for _ in range(2)]
    assert killed.stdout is not None
    assert killed.stdout.readline() == b"ready\n"
    while not any(folder.glob("??/*.range")):
        assert killed.poll() is None
    killed.kill()
    killed.wait()
    while any(other.poll() is None for other in others):
        with open(folder / "lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # files neither come nor go while they are counted
            assert size(folder) <= limit
        time.sleep(0.01)
    assert [other.returncode for other in others] == [0, 0]
    for other in others:
        assert other.stdout is not None
        other.stdout.close()
    killed.stdout.close()


def test_what_a_killed_process_left_behind_goes_when_room_is_made(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 30_000)
    cache.put("one", b"1" * 10_000)
    stale, fresh = tmp_path / "ab" / "old.part", tmp_path / "ab" / "new.part"
    stale.parent.mkdir(exist_ok=True)
    for path in (stale, fresh):
        path.write_bytes(b"?")
    os.utime(stale, (0, time.time() - 3600))
    for name in ("two", "three", "four"):
        cache.put(name, b"2" * 10_000)
    assert (stale.exists(), fresh.exists()) == (False, True)
    assert (cache.get("one", 10_000), cache.get("four", 10_000)) == (None, b"2" * 10_000)


def test_contents_at_one_place_are_told_apart_by_version(tmp_path: Path) -> None:
    cache, store = Cache(tmp_path), Store("memory://cached")
    for version, content in (("a", b"a" * 5000), ("b", b"b" * 5000)):
        store.put("file", content)
        assert CachedStore(store, cache, version).read("file", 0, 5000) == content
    store.delete("file")
    assert CachedStore(store, cache, "a").read("file", 0, 5000) == b"a" * 5000


def test_caches_that_cannot_work_are_refused(remote: Dataset, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="0 bytes holds nothing"):
        Cache(tmp_path, 0)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="cannot make the cache folder"):
        Cache(tmp_path / "file" / "cache")
    with pytest.raises(SpecError, match=r"too small for s3://.*; give it at least"):
        remote.cached(Cache(tmp_path, 100))


def test_a_local_dataset_needs_no_cache(tmp_path: Path) -> None:
    local = open_dataset(write_dataset(tmp_path / "set", [token_rows(10)]).root)
    assert local.cached(Cache(tmp_path / "cache")) is local
