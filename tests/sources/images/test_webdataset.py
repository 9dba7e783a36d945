"""WebDataset archives: written by the real writer, damaged by hand."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset

from tokenshard.errors import SpecError

Read = Callable[..., Any]


@pytest.fixture
def samples(encoded: Callable[..., bytes], picture: Callable[..., Any]) -> list[dict[str, Any]]:
    """Five samples as WebDataset's writer takes them."""
    return [
        {
            "__key__": f"set/{number:04d}",
            "png": encoded(picture(number)),
            "cls": number % 3,
            "json": {"number": number},
            "txt": f"picture {number}",
        }
        for number in range(5)
    ]


def write(path: Path, samples: list[dict[str, Any]], **options: Any) -> Path:
    with webdataset.TarWriter(str(path), **options) as writer:  # type: ignore[attr-defined]
        for sample in samples:
            writer.write(sample)
    return path


def raw_tar(path: Path, members: list[tuple[str, bytes]], format: int = tarfile.GNU_FORMAT) -> Path:
    with tarfile.open(path, "w", format=format) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("name", ["a.tar", "a.tgz", "a.tar.gz"])
def test_an_archive_of_the_real_writer_is_read_whole(
    name: str, samples: list[dict[str, Any]], tmp_path: Path, read_source: Read, picture: Callable[..., Any]
) -> None:
    result = read_source(write(tmp_path / name, samples))
    assert (result.form, result.rejects) == ("webdataset", {})
    assert list(result.samples) == [f"set/{number:04d}" for number in range(5)]
    for number, sample in enumerate(result.samples.values()):
        np.testing.assert_array_equal(sample.data, picture(number))
        assert sample.columns["label"] == number % 3
        assert json.loads(sample.columns["json"]) == {"number": number}
        assert sample.columns["txt"] == f"picture {number}"
        assert (sample.uri, sample.raw_bytes) == (name, len(samples[number]["png"]))
    assert result.columns["label"].names is None


def test_images_of_a_plain_archive_are_byte_ranges_and_of_a_compressed_one_members(
    samples: list[dict[str, Any]], tmp_path: Path, read_source: Read
) -> None:
    plain = read_source(write(tmp_path / "a.tar", samples)).plan
    data = (tmp_path / "a.tar").read_bytes()
    for row, sample in zip(plain.to_pylist(), samples, strict=True):
        assert data[row["offset"] : row["offset"] + row["bytes"]] == sample["png"]
        assert row["index"] is None
    packed = read_source(write(tmp_path / "a.tgz", samples)).plan
    assert packed["offset"].null_count == 5
    assert packed["index"].to_pylist() == sorted(packed["index"].to_pylist())


def test_a_part_of_a_compressed_archive_is_read_by_itself(samples: list[dict[str, Any]], tmp_path: Path) -> None:
    import pyarrow as pa

    from tokenshard.sources.images.open import open_image_source
    from tokenshard.spec.images import ImageSourceSpec

    source = open_image_source(ImageSourceSpec(path=str(write(tmp_path / "a.tgz", samples))))
    plan = pa.Table.from_batches(list(source.plan()))
    keys = [thunk().key for thunk in source.read(plan.take([1, 4]))]
    assert keys == ["set/0001", "set/0004"]


def test_many_archives_are_one_source_by_folder_glob_and_braces(
    samples: list[dict[str, Any]], tmp_path: Path, read_source: Read
) -> None:
    write(tmp_path / "s-000.tar", samples[:2])
    write(tmp_path / "s-001.tar", samples[2:4])
    write(tmp_path / "s-002.tgz", samples[4:])
    assert len(read_source(tmp_path).samples) == 5
    assert len(read_source(tmp_path / "s-*.tar").samples) == 4
    assert list(read_source(tmp_path / "s-{000..001}.tar").samples) == list(read_source(tmp_path / "*.tar").samples)
    with pytest.raises(SpecError, match=r"s-002.tar: no such file"):
        read_source(tmp_path / "s-{000..002}.tar")


def test_text_labels_become_classes_and_samples_may_lack_members(
    tmp_path: Path, read_source: Read, encoded: Callable[..., bytes], picture: Callable[..., Any]
) -> None:
    image = encoded(picture())
    members = [("a.png", image), ("a.cls", b"dog\n"), ("b.png", image), ("c.png", image), ("c.cls", b"cat")]
    result = read_source(raw_tar(tmp_path / "a.tar", members))
    assert result.columns["label"].names == ("cat", "dog")
    assert [sample.columns["label"] for sample in result.samples.values()] == [1, None, 0]


def test_the_plain_image_member_is_taken_unless_another_is_chosen(
    tmp_path: Path, read_source: Read, encoded: Callable[..., bytes], picture: Callable[..., Any]
) -> None:
    members = [("a.mask.png", encoded(picture(1))), ("a.PNG", encoded(picture(2)))]
    path = raw_tar(tmp_path / "a.tar", members)
    np.testing.assert_array_equal(read_source(path).samples["a"].data, picture(2))
    np.testing.assert_array_equal(read_source(path, image_column="mask.png").samples["a"].data, picture(1))


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_of_every_tar_dialect_are_understood(
    format: int, tmp_path: Path, read_source: Read, encoded: Callable[..., bytes], picture: Callable[..., Any]
) -> None:
    long = "d" * 90 + "/" + "f" * 80 + ".png"
    members = [(long, encoded(picture())), ("./dot.png", encoded(picture()))]
    result = read_source(raw_tar(tmp_path / "a.tar", members, format))
    assert list(result.samples) == [long.removesuffix(".png"), "dot"]


def test_keys_that_come_back_are_rejects(
    tmp_path: Path, read_source: Read, encoded: Callable[..., bytes], picture: Callable[..., Any]
) -> None:
    image = encoded(picture())
    members = [("a.png", image), ("a.png", image), ("b.png", image), ("a.cls", b"1")]
    result = read_source(raw_tar(tmp_path / "a.tar", members))
    assert set(result.samples) == {"a", "b"}
    assert {key: reject.error for key, reject in result.rejects.items()} == {
        "a#2": "duplicate key",
        "a#3": "duplicate key",
    }


def test_keys_that_start_again_in_the_next_archive_are_told_apart_by_its_name(
    tmp_path: Path, read_source: Read, encoded: Callable[..., bytes], picture: Callable[..., Any]
) -> None:
    for archive in ("a.tar", "b.tar"):
        raw_tar(tmp_path / archive, [("0.png", encoded(picture())), ("1.png", encoded(picture()))])
    result = read_source(tmp_path)
    assert list(result.samples) == ["0", "1", "b.tar/0", "b.tar/1"]
    assert not result.rejects


def test_unsafe_and_imageless_and_oversized_members_are_rejects(
    tmp_path: Path, read_source: Read, encoded: Callable[..., bytes], picture: Callable[..., Any]
) -> None:
    image = encoded(picture())
    members = [
        ("../../evil.png", image),
        ("/etc/evil.png", image),
        ("only_text.txt", b"x"),
        ("ok.png", image),
        ("noise.png", image),
        ("noise.txt", b"\xff\xfe"),
        ("long.png", image),
        ("long.json", b" " * (1 << 20) + b"{}"),
    ]
    result = read_source(raw_tar(tmp_path / "a.tar", members))
    assert list(result.samples) == ["ok"]
    assert {key: reject.error for key, reject in result.rejects.items()} == {
        "../../evil": "unsafe member name",
        "/etc/evil": "unsafe member name",
        "only_text": "no image among the members txt",
        "noise": "not text",
        "long": "member too large",
    }


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("cut", [100, 700, 3000])
def test_a_truncated_archive_gives_its_good_samples_and_one_reject(
    compress: bool, cut: int, samples: list[dict[str, Any]], tmp_path: Path, read_source: Read
) -> None:
    data = write(tmp_path / "whole.tar", samples).read_bytes()
    with tarfile.open(tmp_path / "whole.tar") as archive:
        last = archive.getmembers()[-1]
        third = archive.getmember("set/0003.png").offset_data
    assert cut < last.offset
    data = data[: third + min(cut, 100)] if cut == 100 else data[: last.offset - cut]
    (tmp_path / "cut.tar").write_bytes(gzip.compress(data) if compress else data)
    result = read_source(tmp_path / "cut.tar")
    assert set(result.rejects) == {"cut.tar"}
    assert result.rejects["cut.tar"].error == "damaged archive"
    assert list(result.samples) == [f"set/{number:04d}" for number in range(len(result.samples))]
    assert len(result.samples) >= 3


def test_a_damaged_header_in_the_middle_is_not_taken_for_the_end(
    samples: list[dict[str, Any]], tmp_path: Path, read_source: Read
) -> None:
    path = write(tmp_path / "a.tar", samples)
    with tarfile.open(path) as archive:
        place = archive.getmember("set/0002.png").offset
    data = bytearray(path.read_bytes())
    data[place : place + 40] = b"\xff" * 40
    path.write_bytes(data)
    result = read_source(path)
    assert set(result.rejects) == {"a.tar"}
    assert len(result.samples) >= 1


def test_a_damaged_gzip_stream_is_a_reject_of_the_archive(
    samples: list[dict[str, Any]], tmp_path: Path, read_source: Read
) -> None:
    data = write(tmp_path / "whole.tgz", samples).read_bytes()
    (tmp_path / "cut.tgz").write_bytes(data[: len(data) * 2 // 3])
    result = read_source(tmp_path / "cut.tgz")
    assert set(result.rejects) == {"cut.tgz"}
    assert 1 <= len(result.samples) < 5


@pytest.mark.parametrize("content", [b"", bytes(10_240), b"not an archive" * 100])
def test_an_archive_with_nothing_in_it_is_one_clear_error(content: bytes, tmp_path: Path, read_source: Read) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(SpecError, match=r"no usable input found.*a\.tar: (damaged|empty) archive"):
        read_source(tmp_path / "a.tar")


def test_a_header_that_claims_a_huge_name_is_refused_unread(tmp_path: Path, read_source: Read) -> None:
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 8 << 30
    (tmp_path / "a.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(5000))
    with pytest.raises(SpecError, match="header of 8589934592 bytes"):
        read_source(tmp_path / "a.tar")


# -- developer data --------------------------------------------------------------------------------------------------


@pytest.mark.data
def test_the_developer_archives_are_read(data_dir: Path, read_source: Read) -> None:
    shards = read_source(data_dir / "images/formats/webdataset/imagenette-{000000..000001}.tar")
    assert (len(shards.samples), len(shards.rejects)) == (60, 0)
    assert set(shards.columns) == {"label", "json"}
    sample = read_source(data_dir / "images/formats/webdataset/webdataset_sample.tgz")
    assert (len(sample.samples), len(sample.rejects)) == (90, 0)


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("gzip_named", {"0"}, set()),
        ("missing_label", {"0", "1", "2"}, set()),
        ("duplicate_keys", {"0"}, {"0#2"}),
        ("split_key", {"0", "1"}, {"0#2", "1#2"}),
        ("empty_member", {"1"}, {"0"}),
        ("traversal", {"ok"}, {"../../evil", "/abs/evil"}),
        ("truncated", {"0", "1"}, {"truncated.tar"}),
    ],
)
def test_bad_archives_give_what_is_good_in_them(
    name: str, good: set[str], bad: set[str], data_dir: Path, read_source: Read
) -> None:
    result = read_source(data_dir / f"bad/shards/{name}.tar")
    assert (set(result.samples), set(result.rejects)) == (good, bad)


@pytest.mark.data
def test_an_archive_of_zero_bytes_beside_good_ones_is_one_reject(data_dir: Path, read_source: Read) -> None:
    result = read_source(data_dir / "bad/shards/{traversal,zero}.tar")
    assert result.rejects["zero.tar"].message.startswith("zero.tar: damaged archive: empty file")
    with pytest.raises(SpecError, match="no usable input"):
        read_source(data_dir / "bad/shards/zero.tar")
