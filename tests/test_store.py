"""One contract, three kinds of storage: local disk, memory, and a real S3-protocol server."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaky_s3 import Fault, FlakyS3, every
from tokenshard.errors import StoreError
from tokenshard.store import TEMPORARY, Entry, Store

NASTY_NAMES = [
    *(
        "a-",
        "a.txt",
        "a/b",
        "a/b.c/d",
        "a/b0",
        "a0",
        "A",
        "Z/z",
        "aa/",
        "a b/c d",
        "a::b/zip::c",
        " leading",
        "trailing ",
        "tab\there",
    ),
    *("100%", "a%20b", "a+b", "a&b=c", "#hash", "?query", "[set]*", "quote'\"", "back\\slash", "~", ".hidden", "..."),
    *("ü", "u\u0308", "日本/写真.jpg", "\uffee", "😀", "e" * 200),
]
NASTY = {name.rstrip("/"): f"content of {name}".encode() for name in NASTY_NAMES}
MIB = 1 << 20
ON_S3 = pytest.param("s3", marks=pytest.mark.integration)


@pytest.fixture(params=["local", "memory", ON_S3])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "s3":
        return Store(request.getfixturevalue("s3_url"))
    return Store(tmp_path / "root" if request.param == "local" else f"memory://{uuid.uuid4().hex}")


def files_below(root: str | Path) -> list[str]:
    return [os.path.join(folder, name) for folder, _, names in os.walk(root) for name in names]


# -- reading and writing, everywhere the same ----------------------------------------------------------------------


def test_what_is_put_is_read_back(store: Store, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"from a file")
    store.put("x/bytes", b"from memory")
    store.put("x/path", tmp_path / "source")
    assert (store.read("x/bytes"), store.read("x/path")) == (b"from memory", b"from a file")
    store.put("x/bytes", b"replaced")
    assert store.read("x/bytes") == b"replaced"


@pytest.mark.parametrize(
    ("start", "length", "expected"),
    [
        (0, None, b"0123456789"),
        (0, 3, b"012"),
        (4, 2, b"45"),
        (7, None, b"789"),
        (7, 100, b"789"),
        (3, 0, b""),
        (10, None, b""),
        (10, 5, b""),
        (99, None, b""),
        (99, 5, b""),
    ],
)
def test_a_range_ends_where_the_file_ends(store: Store, start: int, length: int | None, expected: bytes) -> None:
    store.put("digits", b"0123456789")
    assert store.read("digits", start, length) == expected


def test_an_empty_file_is_a_file(store: Store) -> None:
    store.put("empty", b"")
    assert (store.size("empty"), store.exists("empty"), list(store.list())) == (0, True, [Entry("empty", 0)])
    assert (store.read("empty"), store.read("empty", 0, 9), store.open("empty").read()) == (b"", b"", b"")


def test_an_open_file_is_seekable(store: Store) -> None:
    store.put("digits", b"0123456789")
    with store.open("digits") as file:
        assert (file.read(2), file.tell()) == (b"01", 2)
        file.seek(-3, os.SEEK_END)
        assert (file.read(), file.read()) == (b"789", b"")
        file.seek(1)
        file.seek(2, os.SEEK_CUR)
        buffer = bytearray(4)
        assert (file.readinto(buffer), bytes(buffer)) == (4, b"3456")  # type: ignore[attr-defined]


@pytest.mark.parametrize("method", ["read", "open", "size"])
def test_a_missing_file_is_a_file_not_found_error(store: Store, method: str) -> None:
    store.put("folder/file", b"x")
    for name in ("none", "folder/none"):
        with pytest.raises(FileNotFoundError):
            getattr(store, method)(name)
    assert not store.exists("none")


def test_a_folder_is_not_a_file(store: Store) -> None:
    store.put("folder/file", b"x")
    assert store.exists("folder/file")
    assert not store.exists("folder")
    assert (store.is_dir("folder"), store.is_dir(), store.is_dir("none")) == (True, True, False)
    with pytest.raises(FileNotFoundError):
        store.size("folder")
    for method in (store.read, store.open):
        with pytest.raises((FileNotFoundError, StoreError)):
            method("folder")


def test_a_deleted_file_is_gone_and_deleting_it_again_is_no_error(store: Store) -> None:
    store.put("file", b"x")
    store.delete("file")
    store.delete("file")
    assert not store.exists("file")


def test_a_store_can_be_pickled_after_use(store: Store) -> None:
    store.put("file", b"x")
    copy = pickle.loads(pickle.dumps(store))
    assert (copy.root, copy.options, copy.read("file")) == (store.root, store.options, b"x")


def test_any_name_can_be_written_read_and_deleted(store: Store) -> None:
    for name, content in NASTY.items():
        store.put(name, content)
    for name, content in NASTY.items():
        assert (store.read(name), store.size(name)) == (content, len(content)), name
        store.delete(name)
    assert list(store.list()) == []


def test_names_are_listed_in_the_order_of_their_bytes(store: Store) -> None:
    for name, content in NASTY.items():
        store.put(name, content)
    assert list(store.list()) == [Entry(name, len(NASTY[name])) for name in sorted(NASTY, key=str.encode)]


def test_a_listing_below_a_folder_holds_that_folder_only_and_full_names(store: Store) -> None:
    for name in ("a", "ab/x", "abc", "ab/c/y", "ab-"):
        store.put(name, b"")
    assert [entry.name for entry in store.list("ab")] == ["ab/c/y", "ab/x"]
    assert [entry.name for entry in store.list("ab/")] == ["ab/c/y", "ab/x"]
    assert list(store.list("none")) == []


@pytest.mark.integration
def test_a_listing_of_many_pages_misses_and_repeats_nothing(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "3")  # of the test server; S3 sends 1,000 a page
    store = Store(s3_url)
    for name in NASTY:
        store.put(name, b"")
    assert [entry.name for entry in store.list()] == sorted(NASTY, key=str.encode)


PARTS = st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=3) | st.just("a::b")


def is_name(part: str) -> bool:
    return part not in {".", "..", TEMPORARY}


@settings(max_examples=20, deadline=None)
@given(st.sets(st.lists(PARTS.filter(is_name), min_size=1, max_size=3).map(tuple)))
def test_local_disk_and_memory_list_any_names_alike(paths: set[tuple[str, ...]]) -> None:
    folders = {path[:depth] for path in paths for depth in range(1, len(path))}
    names = sorted(("/".join(path) for path in paths - folders), key=str.encode)
    with tempfile.TemporaryDirectory() as folder:
        for store in (Store(folder), Store(f"memory://{uuid.uuid4().hex}")):
            for name in names:
                store.put(name, b"")
            assert [entry.name for entry in store.list()] == names, store


# -- atomic and exclusive writes -----------------------------------------------------------------------------------


def test_a_reader_sees_the_old_content_or_the_new_one_never_a_part(tmp_path: Path) -> None:
    store = Store(tmp_path)
    contents = [bytes([value]) * (1_000_000 + value) for value in range(4)]
    store.put("file", contents[0])
    done = threading.Event()
    seen: list[bytes] = []

    def read() -> None:
        while not done.is_set():
            seen.append(store.read("file"))

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(60):
        store.put("file", contents[number % 4])
    done.set()
    reader.join()
    assert len(seen) > 10
    assert set(seen) <= set(contents)


def test_a_file_is_created_once_and_never_replaced(store: Store, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"second")
    assert store.put_if_absent("x/file", b"first")
    assert not store.put_if_absent("x/file", b"second")
    assert not store.put_if_absent("x/file", tmp_path / "source")
    assert not store.put_if_absent("x/file", b"first"), "equal bytes of an earlier call are not this call's"
    assert store.read("x/file") == b"first"
    assert store.put_if_absent("x/other", tmp_path / "source")
    assert store.read("x/other") == b"second"


CREATE_ALL = """
import sys
from tokenshard.store import Store
store, me = Store(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()
print(*[number for number in range(50) if store.put_if_absent(f"claims/{number}", me.encode() * 1000)])
"""


def test_of_8_processes_that_create_the_same_50_files_each_has_exactly_one_winner(tmp_path: Path) -> None:
    def start(me: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", CREATE_ALL, str(tmp_path), str(me)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    writers = [start(me) for me in range(8)]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    won = [{int(number) for number in writer.communicate(timeout=60)[0].split()} for writer in writers]
    assert sorted(number for numbers in won for number in numbers) == list(range(50))
    for me, numbers in enumerate(won):
        assert all((tmp_path / "claims" / str(number)).read_bytes() == b"%d" % me * 1000 for number in numbers)
    assert len(files_below(tmp_path)) == 50


@pytest.mark.integration
def test_of_8_threads_that_create_the_same_object_exactly_one_wins_though_every_fifth_request_fails(
    s3_url: str, flaky_s3: Callable[..., FlakyS3]
) -> None:
    proxy = flaky_s3(every(5))
    barrier = threading.Barrier(8)

    def create(me: int) -> list[bool]:
        store, won = Store(s3_url, {"endpoint_url": proxy.endpoint}), []
        for number in range(6):
            barrier.wait(timeout=60)
            won.append(store.put_if_absent(f"claims/{number}", b"the same bytes from everyone"))
        return won

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(create, range(8)))
    assert [sum(winners) for winners in zip(*won, strict=True)] == [1] * 6
    assert proxy.failures[Fault.LOST] > 0


# -- killed writers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["put", "put_if_absent"])
def test_a_killed_writer_leaves_nothing_under_a_final_name(tmp_path: Path, method: str) -> None:
    os.mkfifo(tmp_path / "slow source")
    script = (
        "import sys; from pathlib import Path; from tokenshard.store import Store; "
        f"Store(sys.argv[1]).{method}('file', Path(sys.argv[2]))"
    )
    store = Store(tmp_path / "out")
    writer = subprocess.Popen([sys.executable, "-c", script, store.root, str(tmp_path / "slow source")])
    with open(tmp_path / "slow source", "wb") as source:  # opens when the writer does; a pipe holds 64 KiB at most
        source.write(b"x" * 8 * MIB)
        source.flush()
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    left = files_below(store.root)
    assert [os.path.dirname(path) for path in left] == [os.path.join(store.root, TEMPORARY)]
    assert os.path.getsize(left[0]) >= 4 * MIB
    assert (list(store.list()), store.exists("file")) == ([], False)
    assert store.clean_temporary() == 1
    assert os.listdir(store.root) == []
    assert store.clean_temporary() == 0


def test_temporary_files_are_never_listed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put("file", b"x")
    (tmp_path / TEMPORARY).mkdir(exist_ok=True)
    (tmp_path / TEMPORARY / "left over").write_bytes(b"x")
    assert [entry.name for entry in store.list()] == ["file"]


def test_ranges_are_read_into_given_memory(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(range(200)))
    memory_store = Store("memory://ranges")
    memory_store.put("file", bytes(range(200)))
    for store in (Store(tmp_path), memory_store):
        out = bytearray(50)
        assert store.read_into("file", 120, memoryview(out)) == 50
        assert out == bytes(range(120, 170))
        assert store.read_into("file", 180, memoryview(out)) == 20
        assert out[:20] == bytes(range(180, 200))
        with pytest.raises(FileNotFoundError):
            store.read_into("none", 0, memoryview(out))
