"""What a store makes of failures: those of an object store that pass, and those a user can do something about."""

from __future__ import annotations

import asyncio
import itertools
import os
import pickle
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from flaky_s3 import FAILURES, Fault, FlakyS3, every
from tokenshard.errors import SpecError, StoreError
from tokenshard.remote import Hedge
from tokenshard.store import Entry, Store

MIB = 1 << 20


# -- failures of the object store ----------------------------------------------------------------------------------


@pytest.mark.integration
@pytest.mark.parametrize("fault", FAILURES)
def test_a_fault_of_any_kind_changes_no_result(s3_url: str, flaky_s3: Callable[..., FlakyS3], fault: Fault) -> None:
    store = Store(s3_url, {"endpoint_url": (proxy := flaky_s3(every(3, fault))).endpoint})
    content = random.Random(0).randbytes(100_000)
    store.put("file", content)
    assert store.read("file") == content
    assert store.read("file", 50_000, 9) == content[50_000:50_009]
    assert store.size("file") == len(content)
    assert list(store.list()) == [Entry("file", len(content))]
    assert store.exists("file")
    assert not store.exists("none")
    store.delete("file")
    assert not store.exists("file")
    assert proxy.failures[fault] >= 3


@pytest.mark.integration
def test_many_threads_get_right_results_from_a_store_that_fails_every_fifth_request(
    s3_url: str, flaky_s3: Callable[..., FlakyS3]
) -> None:
    proxy = flaky_s3(every(5))

    def work(me: int) -> dict[str, int]:
        store, choose = Store(s3_url, {"endpoint_url": proxy.endpoint}), random.Random(me)
        kept: dict[str, int] = {}
        for number in range(6):
            name, content = f"{me}/{number}", choose.randbytes(choose.randrange(30_000))
            if choose.random() < 0.5:
                store.put(name, content)
            else:
                assert store.put_if_absent(name, content)
                assert not store.put_if_absent(name, b"other")
            start = choose.randrange(len(content) + 1)
            assert store.read(name) == content
            assert store.read(name, start, 1000) == content[start : start + 1000]
            if choose.random() < 0.3:
                store.delete(name)
            else:
                kept[name] = len(content)
        return kept

    with ThreadPoolExecutor(8) as pool:
        kept = {name: size for part in pool.map(work, range(8)) for name, size in part.items()}
    assert list(Store(s3_url).list()) == [Entry(name, kept[name]) for name in sorted(kept)]
    assert proxy.failures.total() == proxy.requests // 5 > 30


@pytest.mark.integration
def test_a_create_whose_response_was_lost_is_still_ours(s3_url: str, flaky_s3: Callable[..., FlakyS3]) -> None:
    store = Store(s3_url, {"endpoint_url": (proxy := flaky_s3([Fault.LOST])).endpoint})
    assert store.put_if_absent("file", b"content")
    assert proxy.failures == {Fault.LOST: 1}
    assert not store.put_if_absent("file", b"content")


@pytest.mark.integration
def test_a_create_that_lost_the_race_stays_lost_when_its_response_is_lost_too(
    s3_url: str, flaky_s3: Callable[..., FlakyS3]
) -> None:
    Store(s3_url).put("file", b"same")
    store = Store(s3_url, {"endpoint_url": flaky_s3([Fault.LOST, Fault.LOST, Fault.LOST]).endpoint})
    assert not store.put_if_absent("file", b"same")


@pytest.mark.integration
def test_an_upload_in_parts_survives_failures_of_its_last_steps(
    s3_url: str, flaky_s3: Callable[..., FlakyS3], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokenshard.store.IN_ONE", 100 * MIB)  # in parts of 50 MiB
    big = tmp_path / "big"
    big.write_bytes(random.Random(1).randbytes(MIB) * 101)
    first_round = [None] * 4 + [Fault.BUSY, Fault.BUSY, Fault.LOST]  # start, 3 parts; finish twice; abort
    second_round = [None] * 4 + [Fault.LOST]  # start, 3 parts; finish
    proxy = flaky_s3([*first_round, *second_round])
    assert Store(s3_url, {"endpoint_url": proxy.endpoint}).put_if_absent("big", big)
    assert proxy.failures == {Fault.BUSY: 2, Fault.LOST: 2}
    assert proxy.requests > 12
    assert Store(s3_url).read("big") == big.read_bytes()


@pytest.mark.integration
def test_a_large_file_is_created_by_one_request_that_carries_the_condition(
    s3_url: str, flaky_s3: Callable[..., FlakyS3], tmp_path: Path
) -> None:
    big = tmp_path / "big"
    big.write_bytes(random.Random(1).randbytes(MIB) * 101)  # s3fs alone would send parts of 50 MiB
    proxy = flaky_s3([])
    store = Store(s3_url, {"endpoint_url": proxy.endpoint})
    assert store.put_if_absent("big", big)
    assert proxy.requests == 1
    assert not store.put_if_absent("big", b"other")


# -- errors a user can do something about --------------------------------------------------------------------------

OPERATIONS: dict[str, Callable[[Store], object]] = {
    "read": lambda store: store.read("file"),
    "stat": lambda store: store.exists("file"),
    "list": lambda store: list(store.list()),
    "write": lambda store: store.put("file", b"x"),
    "create": lambda store: store.put_if_absent("file", b"x"),
    "delete": lambda store: store.delete("file"),
}


@contextmanager
def authentication(endpoint: str) -> Iterator[None]:
    """While it lasts, the test server checks access keys."""

    def check_after(requests: bytes) -> None:
        kind = {"Content-Type": "text/plain"}
        urlopen(Request(f"{endpoint}/moto-api/reset-auth", data=requests, headers=kind, method="POST")).close()

    check_after(b"0")
    try:
        yield
    finally:
        check_after(b"inf")


@pytest.mark.integration
@pytest.mark.parametrize("action", OPERATIONS)
def test_wrong_credentials_are_one_line_that_says_which(s3_url: str, s3_server: str, action: str) -> None:
    store = Store(s3_url, {"key": "WRONGKEY", "secret": "wrong"})
    with authentication(s3_server), pytest.raises(StoreError) as caught:
        OPERATIONS[action](store)
    message = str(caught.value)
    assert message.startswith(s3_url)
    assert f"cannot {action}: access denied" in message
    assert "AWS_ACCESS_KEY_ID" in message
    assert "\n" not in message


@pytest.mark.integration
@pytest.mark.parametrize("action", OPERATIONS)
def test_a_missing_bucket_is_one_line_that_says_so(s3_server: str, action: str) -> None:
    with pytest.raises(
        StoreError, match=rf"^s3://nowhere/x.*: cannot {action}: .*no such bucket; create it or correct"
    ):
        OPERATIONS[action](Store("s3://nowhere/x"))


@pytest.mark.integration
def test_an_unreachable_endpoint_is_given_up_in_bounded_time(s3_url: str) -> None:
    store = Store(s3_url, {"endpoint_url": "http://127.0.0.1:1"})
    started = time.monotonic()
    with pytest.raises(StoreError) as caught:
        store.read("file")
    assert time.monotonic() - started < 30
    message = str(caught.value)
    assert message.startswith(f"{s3_url}/file: cannot read (after 6 attempts): Could not connect")
    assert "check the network and the endpoint" in message


@pytest.mark.integration
@pytest.mark.parametrize("action", ["read", "stat", "list"])
def test_a_store_that_never_answers_is_given_up_after_the_deadline(
    s3_url: str, flaky_s3: Callable[..., FlakyS3], action: str
) -> None:
    options = {"endpoint_url": flaky_s3(itertools.repeat(Fault.HELD)).endpoint, "deadline": 1.5}
    Store(s3_url).is_dir()  # loads the libraries, which takes long on a busy machine
    store = Store(s3_url, options)
    calls = {"read": lambda: store.read("file", 0, 9), "stat": lambda: store.size("file"), "list": store.is_dir}
    with pytest.raises(StoreError) as caught:
        calls[action]()
    assert caught.value.transient
    message = str(caught.value)
    assert message.startswith(s3_url)
    assert f"cannot {action}: no answer within 1.5 seconds (after " in message
    assert "or wait longer with the storage option deadline" in message


def test_a_deadline_is_a_number_of_seconds(tmp_path: Path) -> None:
    for value in (0, -1, "soon", True):
        with pytest.raises(SpecError, match="deadline must be a number of seconds above 0"):
            Store("s3://bucket", {"deadline": value})
    assert Store("s3://bucket", {"deadline": 9}).with_options(hedge=True).deadline == 9


@pytest.mark.integration
def test_a_late_read_is_asked_for_again(
    s3_url: str, flaky_s3: Callable[..., FlakyS3], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokenshard.remote.LEAST_KNOWN", 30)
    content = random.Random(0).randbytes(100_000)
    Store(s3_url).put("file", content)
    proxy = flaky_s3(Fault.HELD if number == 30 else None for number in itertools.count())
    options = {"endpoint_url": proxy.endpoint, "hedge": True, "deadline": 600}
    store = pickle.loads(pickle.dumps(Store(s3_url, options)))
    assert [store.read("file", n, 50) for n in range(30)] == [content[n : n + 50] for n in range(30)]
    assert (store.hedge.reads, store.hedge.sent) == (30, 0)
    assert store.read("file", 30, 50) == content[30:80]  # the first answer never comes
    assert (store.hedge.sent, store.hedge.won) == (1, 1)
    assert proxy.requests == 32


def test_no_more_reads_are_sent_twice_than_the_budget_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenshard.remote.FLOOR", 0.0001)
    hedge, asked = Hedge(), 0

    async def answer() -> int:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0 if asked <= 16 else 0.001 * (asked % 7))
        return asked

    async def read() -> None:
        for _ in range(100):
            await hedge.fetch(answer)

    asyncio.run(read())
    assert hedge.reads == 100
    assert 1 <= hedge.sent <= 5
    assert asked == hedge.reads + hedge.sent


def test_an_unknown_kind_of_storage_is_one_line_that_says_so() -> None:
    with pytest.raises(StoreError, match=r"^gopher://x: cannot open this kind of storage: .*gopher"):
        Store("gopher://x").read("file")


def test_a_file_in_the_place_of_a_folder_is_one_line_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"")
    with pytest.raises(StoreError, match=r"out/file: cannot write: .*; choose another path"):
        Store(tmp_path / "out").put("file", b"x")


@pytest.fixture
def read_only_folder() -> Iterator[Path]:
    """A folder with one file, `kept`, in which this process may not write; root gives its rights up for the test."""
    folder = Path(tempfile.mkdtemp())
    (folder / "kept").write_bytes(b"")
    folder.chmod(0o555)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65_534)
    yield folder
    os.seteuid(user)
    folder.chmod(0o755)
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("action", "operation"),
    [("write", OPERATIONS["write"]), ("create", OPERATIONS["create"]), ("delete", lambda store: store.delete("kept"))],
)
def test_a_folder_without_write_permission_is_one_line_that_says_so(
    read_only_folder: Path, action: str, operation: Callable[[Store], object]
) -> None:
    with pytest.raises(StoreError, match=rf"{read_only_folder}.*: cannot {action}: access denied .*file permissions"):
        operation(Store(read_only_folder))


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small tmpfs needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("method", ["put", "put_if_absent"])
def test_a_full_disk_is_one_line_that_says_so_and_leaves_nothing_behind(tiny_disk: Path, method: str) -> None:
    store = Store(tiny_disk / "out")
    with pytest.raises(StoreError, match=r"out/file: cannot (write|create): the disk is full; free some space"):
        getattr(store, method)("file", b"x" * 2 * MIB)
    assert [path for path in tiny_disk.rglob("*") if path.is_file()] == []
    store.put("file", b"small enough")
    assert store.read("file") == b"small enough"
