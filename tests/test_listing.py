"""Listing: streamed, in the order of S3 on every disk, in bounded memory, and safe in hostile folders."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenshard.listing import local_files
from tokenshard.store import TEMPORARY, Store


def names(root: Path | str, prefix: str = "", run: int = 1000) -> list[str]:
    def not_expected(name: str, reason: str) -> None:
        raise AssertionError(f"skipped {name}: {reason}")

    return [name for name, _ in local_files(str(root), prefix, not_expected, TEMPORARY, run)]


def touch(root: Path | str, *files: str) -> None:
    for name in files:
        path = Path(root, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def skips(root: Path) -> tuple[list[str], dict[str, str]]:
    skipped: dict[str, str] = {}
    listed = [entry.name for entry in Store(root).list(skipped=skipped.__setitem__)]
    return listed, skipped


# -- order ---------------------------------------------------------------------------------------------------------


def test_a_folder_sorts_by_its_name_with_a_slash_as_object_stores_sort(tmp_path: Path) -> None:
    touch(tmp_path, "a0", "a/b", "a/b0", "a-", "a.txt", "a/b-/c", "A", "a/b.d/e", "ä")
    assert names(tmp_path) == ["A", "a-", "a.txt", "a/b", "a/b-/c", "a/b.d/e", "a/b0", "a0", "ä"]


PARTS = st.text("a-./0ä\uffee😀 ".replace("/", ""), min_size=1, max_size=4).filter(lambda part: part not in {".", ".."})


@settings(max_examples=50, deadline=None)
@given(st.sets(st.lists(PARTS, min_size=1, max_size=3).map(tuple), max_size=30), st.integers(1, 5))
def test_any_tree_is_listed_in_the_byte_order_of_its_full_names_whatever_the_run(
    paths: set[tuple[str, ...]], run: int
) -> None:
    folders = {path[:depth] for path in paths for depth in range(1, len(path))}
    files = ["/".join(path) for path in paths - folders]
    with tempfile.TemporaryDirectory() as root:
        touch(root, *files)
        assert names(root, run=run) == sorted(files, key=str.encode)


@pytest.mark.parametrize("run", [1, 7, 99, 100, 101])
def test_sorted_runs_on_disk_are_merged_without_loss(tmp_path: Path, run: int) -> None:
    files = [f"{number * 7919 % 100:02}" + "x" * (number % 50) for number in range(100)]
    touch(tmp_path, *files)
    assert names(tmp_path, run=run) == sorted(files)


def test_long_names_survive_the_way_over_the_disk(tmp_path: Path) -> None:
    files = [f"{number:04}".rjust(255, "n") for number in range(600)]  # 150 KB: more than one read of a run
    touch(tmp_path, *files)
    assert names(tmp_path, run=400) == sorted(files)


def test_names_that_are_not_utf_8_survive_and_can_be_read(tmp_path: Path) -> None:
    encoded = [b"\xff\xfe.jpg", b"plain", b"caf\xe9", "café".encode()]
    for name in encoded:
        Path(os.fsdecode(bytes(tmp_path) + b"/" + name)).write_bytes(name)
    store = Store(tmp_path)
    listed = [entry.name for entry in store.list()]
    assert [os.fsencode(name) for name in listed] == sorted(encoded)
    assert [store.read(name) for name in listed] == sorted(encoded)


def test_the_first_names_come_before_the_rest_is_looked_at(tmp_path: Path) -> None:
    touch(tmp_path, "a/1", "b/2")
    listing = local_files(str(tmp_path), "", lambda name, reason: None, TEMPORARY)
    assert next(listing) == ("a/1", 0)
    (tmp_path / "b" / "2").write_bytes(b"grown")
    touch(tmp_path, "b/1")
    assert list(listing) == [("b/1", 0), ("b/2", 5)]


# -- what is not listed --------------------------------------------------------------------------------------------


def test_a_missing_folder_is_empty(tmp_path: Path) -> None:
    touch(tmp_path, "file")
    assert names(tmp_path / "none") == names(tmp_path, "none") == names(tmp_path, "file") == []


def test_the_temporary_folder_is_not_listed_but_one_of_that_name_further_down_is(tmp_path: Path) -> None:
    touch(tmp_path, f"{TEMPORARY}/half written", f"photos/{TEMPORARY}/image", "file")
    assert names(tmp_path) == ["file", f"photos/{TEMPORARY}/image"]


def test_special_files_are_reported_and_never_opened(tmp_path: Path) -> None:
    touch(tmp_path, "file")
    os.mkfifo(tmp_path / "fifo")  # opening it would wait for a writer for ever
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(tmp_path / "socket"))  # the length of a socket's path is limited
    listed, skipped = skips(tmp_path)
    assert listed == ["file"]
    assert skipped == {"fifo": "not a regular file", "socket": "not a regular file"}


def test_links_to_files_inside_are_files_and_all_other_links_are_reported(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    touch(root, "folder/file")
    touch(outside, "secret")
    (root / "folder" / "file").write_bytes(b"12345")
    for name, target in {
        "inside": "folder/file",
        "to a folder": "folder",
        "to a folder outside": "../outside",
        "to a file outside": "../outside/secret",
        "absolute": str(outside / "secret"),
        "out and in": "../root/folder/file",
        "dangling": "nothing",
        "loop": "loop",
        "root": ".",
    }.items():
        (root / name).symlink_to(target)
    skipped: dict[str, str] = {}
    listed = [(entry.name, entry.size) for entry in Store(root).list(skipped=skipped.__setitem__)]
    assert listed == [("folder/file", 5), ("inside", 5), ("out and in", 5)]
    assert skipped == {
        "to a folder": "symbolic link to a folder",
        "root": "symbolic link to a folder",
        "to a folder outside": "symbolic link leaves the folder",
        "to a file outside": "symbolic link leaves the folder",
        "absolute": "symbolic link leaves the folder",
        "dangling": "cannot be read: No such file or directory",
        "loop": "cannot be read: Too many levels of symbolic links",
    }


def test_a_root_that_is_itself_a_link_is_followed(tmp_path: Path) -> None:
    touch(tmp_path / "root", "file", "folder/file")
    (tmp_path / "root" / "inside").symlink_to("file")
    (tmp_path / "link").symlink_to("root")
    assert names(tmp_path / "link") == ["file", "folder/file", "inside"]


@pytest.fixture
def folder_of_others() -> Iterator[Path]:
    """A folder with a subfolder `private` that this process may not read; root gives its rights up for the test."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        touch(root, "a", "private/secret", "z")
        (root / "private").chmod(0)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65_534)
        yield root
        os.seteuid(user)
        (root / "private").chmod(0o755)


def test_a_folder_that_may_not_be_read_is_reported_and_the_rest_is_listed(folder_of_others: Path) -> None:
    assert skips(folder_of_others) == (["a", "z"], {"private": "folder cannot be read: Permission denied"})


def make_deep(root: Path, name: str, depth: int) -> None:
    """``depth`` folders in each other with a file in the last; made step by step, as the whole path may be too long."""
    here = os.getcwd()
    try:
        os.chdir(root)
        for _ in range(depth):
            os.mkdir(name)
            os.chdir(name)
        Path("file").touch()
    finally:
        os.chdir(here)


def test_a_tree_deeper_than_python_s_recursion_limit_is_listed(tmp_path: Path) -> None:
    make_deep(tmp_path, "d", 300)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(250)
    try:
        assert names(tmp_path) == ["d/" * 300 + "file"]
    finally:
        sys.setrecursionlimit(limit)


def test_a_folder_whose_path_is_too_long_for_the_system_is_reported(tmp_path: Path) -> None:
    make_deep(tmp_path, "d" * 250, 20)
    listed, skipped = skips(tmp_path)
    assert listed == []
    assert list(skipped.values()) == ["folder cannot be read: File name too long"]


# -- memory --------------------------------------------------------------------------------------------------------

LIST_AND_MEASURE = """
import resource, sys
from tokenshard.listing import local_files
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before, count, last = peak(), 0, ""
for name, _ in local_files(sys.argv[1], "", print, ".tmp", int(sys.argv[2])):
    assert last < name
    count, last = count + 1, name
print(count, peak() - before)
"""


@pytest.mark.integration
def test_memory_is_bounded_by_the_run_not_by_the_number_of_files(tmp_path: Path) -> None:
    template = tmp_path / "template"
    template.touch()
    many = tmp_path / "many"
    many.mkdir()
    folder = os.open(many, os.O_RDONLY)
    for number in range(200_000):
        os.close(os.open(f"{number * 7919 % 200_000:06}-a-usual-file-name.jpg", os.O_CREAT, dir_fd=folder))
    os.close(folder)

    def listed_and_growth(run: int) -> tuple[int, int]:
        command = [sys.executable, "-c", LIST_AND_MEASURE, str(many), str(run)]
        count, megabytes = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        return int(count), int(megabytes)

    whole, in_runs = listed_and_growth(500_000), listed_and_growth(10_000)
    assert (whole[0], in_runs[0]) == (200_000, 200_000)
    assert whole[1] < 60
    assert in_runs[1] < 12


def test_a_listing_may_be_left_before_its_end(tmp_path: Path) -> None:
    touch(tmp_path, *(str(number) for number in range(100)))
    assert [name for name, _ in islice(local_files(str(tmp_path), "", print, TEMPORARY, 7), 2)] == ["0", "1"]
    assert len(names(tmp_path, run=7)) == 100
