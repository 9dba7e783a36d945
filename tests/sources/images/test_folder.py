"""Folders of images: what is an input, how it is called, and what the folders mean."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokenshard.errors import SpecError

Read = Callable[..., Any]


@pytest.fixture
def write(encoded: Callable[..., bytes], picture: Callable[..., Any]) -> Callable[..., Path]:
    """``write(root, *names)``: the same picture under every name."""

    def write(root: Path, *names: str | bytes) -> Path:
        data = encoded(picture())
        for name in names:
            path = os.path.join(os.fsencode(root), os.fsencode(name))
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                file.write(data)
        return root

    return write


def test_the_key_is_the_path_below_the_source_and_the_order_is_that_of_the_bytes(
    write: Callable[..., Path], tmp_path: Path, read_source: Read
) -> None:
    write(tmp_path, "b/1.png", "a.png", "b-1.png", "é.png", "Z.PNG", "b/c/2.Png")
    keys = read_source(tmp_path).plan["key"].to_pylist()
    assert keys == ["Z.PNG", "a.png", "b-1.png", "b/1.png", "b/c/2.Png", "é.png"]


def test_the_plan_holds_sizes_but_nothing_of_the_machine(
    write: Callable[..., Path], tmp_path: Path, read_source: Read
) -> None:
    one = write(tmp_path / "one", "x/a.png", "y/b.png")
    other = write(tmp_path / "other", "y/b.png", "x/a.png")
    os.utime(other / "x/a.png", (0, 0))
    plan = read_source(one).plan
    assert plan.equals(read_source(other).plan)
    assert plan["bytes"].to_pylist() == [(one / "x/a.png").stat().st_size] * 2


def test_litter_and_other_files_are_skipped(write: Callable[..., Path], tmp_path: Path, read_source: Read) -> None:
    write(tmp_path, "a.png", ".hidden.png", "__MACOSX/a.png", ".git/a.png", "Thumbs.db", "notes.txt", "table.csv")
    assert list(read_source(tmp_path).samples) == ["a.png"]


def test_a_file_without_extension_is_an_image_by_its_first_bytes(
    write: Callable[..., Path], tmp_path: Path, read_source: Read
) -> None:
    write(tmp_path, "picture")
    (tmp_path / "README").write_text("not an image")
    (tmp_path / "EMPTY").touch()
    assert list(read_source(tmp_path).samples) == ["picture"]


def test_only_the_chosen_extensions_count(write: Callable[..., Path], tmp_path: Path, read_source: Read) -> None:
    write(tmp_path, "a.png", "b.PIC")
    assert list(read_source(tmp_path, extensions=("pic",)).samples) == ["b.PIC"]


def test_a_name_that_is_not_utf8_is_escaped_and_still_read(
    write: Callable[..., Path], tmp_path: Path, read_source: Read
) -> None:
    write(tmp_path, b"caf\xe9.png", "100%.png", "a%E9.png")
    assert set(read_source(tmp_path).samples) == {"caf%E9.png", "100%.png", "a%25E9.png"}


# -- labels ----------------------------------------------------------------------------------------------------------


def test_folders_are_classes_sorted_by_name(write: Callable[..., Path], tmp_path: Path, read_source: Read) -> None:
    write(tmp_path, "dog/1.png", "cat/1.png", "cat/2.png", "ant/1.png")
    result = read_source(tmp_path)
    assert result.columns["label"].names == ("ant", "cat", "dog")
    assert {key: sample.columns["label"] for key, sample in result.samples.items()} == {
        "ant/1.png": 0,
        "cat/1.png": 1,
        "cat/2.png": 1,
        "dog/1.png": 2,
    }


def test_a_first_folder_level_of_splits_becomes_a_column(
    write: Callable[..., Path], tmp_path: Path, read_source: Read
) -> None:
    write(tmp_path, "train/dog/1.png", "test/cat/1.png")
    result = read_source(tmp_path)
    assert result.samples["train/dog/1.png"].columns == {"label": 1, "split": "train"}
    assert result.columns["split"].role == "metadata"


@pytest.mark.parametrize(
    ("names", "columns"),
    [
        (["a.png", "b.png"], set()),
        (["dog/1.png", "loose.png"], set()),
        (["train/1.png", "test/2.png"], {"split"}),
        (["train/dog/1.png", "other/cat/1.png"], {"label"}),
    ],
)
def test_folders_mean_nothing_where_not_all_images_agree(
    names: list[str], columns: set[str], write: Callable[..., Path], tmp_path: Path, read_source: Read
) -> None:
    assert set(read_source(write(tmp_path, *names)).columns) == columns


def test_labels_can_be_turned_off_and_forced(write: Callable[..., Path], tmp_path: Path, read_source: Read) -> None:
    write(tmp_path, "dog/1.png", "loose.png")
    assert set(read_source(tmp_path, labels="none").columns) == set()
    forced = read_source(tmp_path, labels="folder")
    assert {key: sample.columns["label"] for key, sample in forced.samples.items()} == {
        "dog/1.png": 0,
        "loose.png": None,
    }


# -- what else a path may be -----------------------------------------------------------------------------------------


def test_one_image_is_a_source_too(write: Callable[..., Path], tmp_path: Path, read_source: Read) -> None:
    write(tmp_path, "a.png", "b.png")
    result = read_source(tmp_path / "b.png")
    assert (result.form, list(result.samples), set(result.columns)) == ("folder", ["b.png"], set())


def test_a_glob_selects_and_its_plain_part_is_the_root(
    write: Callable[..., Path], tmp_path: Path, read_source: Read
) -> None:
    write(tmp_path, "in/cat/1.png", "in/dog/1.png", "in/dog/2.jpg", "in/dog/deep/3.png", "out/1.png")
    assert list(read_source(tmp_path / "in/*/*.png").samples) == ["cat/1.png", "dog/1.png"]
    assert list(read_source(tmp_path / "in/**/[23].{png,jpg}").samples) == ["dog/2.jpg", "dog/deep/3.png"]


def test_a_folder_whose_name_looks_like_a_glob_is_a_folder(
    write: Callable[..., Path], tmp_path: Path, read_source: Read
) -> None:
    assert list(read_source(write(tmp_path / "a[1]", "x.png")).samples) == ["x.png"]


@pytest.mark.parametrize("name", ["missing", "missing/*.png", "empty"])
def test_nothing_to_read_is_one_clear_error(name: str, tmp_path: Path, read_source: Read) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SpecError, match=r"(no such file or folder|no images found).*check the path"):
        read_source(tmp_path / name)


# -- files that cannot be read ---------------------------------------------------------------------------------------


def test_fifos_and_links_never_hang_or_leave_the_folder(
    write: Callable[..., Path], tmp_path: Path, read_source: Read
) -> None:
    root = write(tmp_path / "root", "ok.png", "sub/in.png")
    write(tmp_path, "outside.png")
    os.mkfifo(root / "fifo.png")
    os.mkfifo(root / "fifo.txt")
    (root / "inside_link.png").symlink_to("ok.png")
    (root / "outside_link.png").symlink_to("../outside.png")
    (root / "dangling.png").symlink_to("nowhere.png")
    (root / "loop").symlink_to(".")
    result = read_source(root)
    assert set(result.samples) == {"ok.png", "sub/in.png", "inside_link.png"}
    assert set(result.rejects) == {"fifo.png", "outside_link.png", "dangling.png"}
    assert result.rejects["fifo.png"].message == "fifo.png: unreadable: not a regular file"
    assert result.plan["key"].to_pylist() == sorted(result.plan["key"].to_pylist())


def test_a_file_that_vanished_after_planning_is_a_fetch_reject(
    write: Callable[..., Path], tmp_path: Path, encoded: Callable[..., bytes]
) -> None:
    import pyarrow as pa

    from tokenshard.sources.images.open import open_image_source
    from tokenshard.spec.images import ImageSourceSpec

    source = open_image_source(ImageSourceSpec(path=str(write(tmp_path, "a.png", "b.png"))))
    plan = pa.Table.from_batches(list(source.plan()))
    (tmp_path / "b.png").unlink()
    kept, gone = (thunk() for thunk in source.read(plan))
    assert kept.key == "a.png"
    assert (gone.stage, gone.message) == ("fetch", "b.png: no such file")


def test_a_file_over_max_bytes_is_not_read(write: Callable[..., Path], tmp_path: Path, read_source: Read) -> None:
    write(tmp_path, "a.png")
    (tmp_path / "big.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100_000))
    result = read_source(tmp_path, max_bytes=50_000)
    assert list(result.samples) == ["a.png"]
    assert result.rejects["big.png"].stage == "fetch"
    assert "over max_bytes" in result.rejects["big.png"].message


# -- developer data --------------------------------------------------------------------------------------------------


def unpack(archive: Path, target: Path) -> None:
    """A tar with names that are no UTF-8, links and FIFOs, as the plain `tar` program unpacks it."""
    with tarfile.open(archive, encoding="utf-8", errors="surrogateescape") as tar:
        tar.extractall(target, filter="fully_trusted")


@pytest.mark.data
def test_odd_names_are_read_and_litter_is_skipped(data_dir: Path, tmp_path: Path, read_source: Read) -> None:
    unpack(data_dir / "bad/fs.tar", tmp_path)
    result = read_source(tmp_path / "fs")
    assert not result.rejects
    assert set(result.samples) == {
        " leading and trailing space .jpg",
        "UPPER.JPG",
        "a" * 246 + ".jpg",
        "cafe\u0301_nfd.jpg",
        "caf\u00e9_nfc.jpg",
        "directory_named.jpg/inside.jpg",
        "dup_of_noextension.jpg",
        "latin1_caf%E9.jpg",
        "new\nline.jpg",
        "noextension",
        "quote'\"$(x);&.jpg",
        "symlink_to_file.jpg",
        "ünïcödé 画像 😀.jpg",
    }
    first = result.samples["UPPER.JPG"].data
    assert all(np.array_equal(sample.data, first) for sample in result.samples.values())


@pytest.mark.data
def test_a_nasty_folder_neither_hangs_nor_leaks(data_dir: Path, tmp_path: Path, read_source: Read) -> None:
    unpack(data_dir / "bad/fs_nasty.tar", tmp_path)
    result = read_source(tmp_path / "nasty")
    readable = set() if os.access(tmp_path / "nasty/no_permission.jpg", os.R_OK) else {"no_permission.jpg"}
    assert set(result.rejects) == {"abs_link.jpg", "dangling.jpg", "fifo.jpg"} | readable
    assert set(result.samples) == {"ok.jpg", "hardlink.jpg", "no_permission.jpg"} - readable


@pytest.mark.data
def test_real_class_folders_with_splits(data_dir: Path, read_source: Read) -> None:
    result = read_source(data_dir / "images/sign_digits", size=32, fit="resize")
    assert not result.rejects
    assert result.columns["label"].names == tuple("0123456789")
    for key, sample in result.samples.items():
        split, digit, _ = key.split("/")
        assert (sample.columns["split"], sample.columns["label"]) == (split, int(digit))
