"""Videos as a source: which clips there are, which frames they have, and what becomes of damaged files."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sources.video.conftest import av, number_of, numbered, write_video
from tokenshard.errors import SpecError
from tokenshard.sources.base import LongSource, Reject, Sample
from tokenshard.sources.video.source import open_video_source
from tokenshard.spec.videos import VideoSourceSpec

MakeVideo = Callable[..., Path]
SIZE = {"size": (24, 32), "fit": "resize"}


def read(path: Path, threads: int = 1, **fields: Any) -> list[Sample | Reject]:
    """All inputs of a source, planned here and read as a worker does."""
    spec = VideoSourceSpec(path=str(path), **fields)
    planner = open_video_source(spec)
    plan = pa.Table.from_batches(list(planner.plan()))
    reader = open_video_source(spec, state=planner.state())
    thunks = list(reader.read(plan))
    if threads == 1:
        return [thunk() for thunk in thunks]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda thunk: thunk(), thunks))


def clips(path: Path, **fields: Any) -> list[Sample]:
    found = read(path, **fields)
    assert all(isinstance(item, Sample) for item in found), found
    return [item for item in found if isinstance(item, Sample)]


def numbers(sample: Sample) -> list[int]:
    return [number_of(frame) for frame in sample.data]


def decoded_times(path: Path) -> list[int]:
    """Microseconds of all frames, by PyAV itself."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return [round(frame.pts * stream.time_base * 1_000_000) for frame in container.decode(stream)]


def test_a_video_is_cut_into_clips_with_all_its_frames(video: MakeVideo) -> None:
    path = video(count=25)
    found = clips(path, clip_seconds=1)
    assert [sample.key for sample in found] == ["a.mp4#00000", "a.mp4#00001", "a.mp4#00002"]
    assert [n for sample in found for n in numbers(sample)] == list(range(25))
    assert [t for sample in found for t in sample.columns["pts"]] == decoded_times(path)
    assert [(sample.columns["start"], sample.columns["end"]) for sample in found][:2] == [(0.0, 1.0), (1.0, 2.0)]
    assert all(sample.columns["complete"] and sample.columns["incomplete_reason"] is None for sample in found)
    assert {sample.columns["video_codec"] for sample in found} == {"h264"}
    assert sum(sample.raw_bytes for sample in found) <= path.stat().st_size


def test_time_stamps_of_variable_frame_rates_are_kept(video: MakeVideo) -> None:
    times = [0.0, 0.04, 0.31, 0.32, 0.9, 1.4, 1.41, 2.75]
    path = video("vfr.mkv", len(times), times)
    found = clips(path, clip_seconds=1)
    assert [t for sample in found for t in sample.columns["pts"]] == [round(t * 1e6) for t in times]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"fps": 5}, [[0, 2, 4, 6, 8], [10, 12, 14, 16, 18]]),
        ({"every_n": 4}, [[0, 4, 8], [10, 14, 18]]),
        ({"keyframes": True}, [[0], [10]]),
        ({"fps": 5, "clip_seconds": 0.5, "stride_seconds": 1}, [[0, 2, 4], [10, 12, 14]]),
        ({"stride_seconds": 0.5}, [[*range(10)], [*range(5, 15)], [*range(10, 20)], [*range(15, 20)]]),
    ],
    ids=str,
)
def test_frames_are_taken_as_the_spec_says(video: MakeVideo, fields: dict[str, Any], expected: list[list[int]]) -> None:
    assert [numbers(sample) for sample in clips(video(count=20), **{"clip_seconds": 1, **fields})] == expected


def test_frames_after_scene_cuts_are_taken(tmp_path: Path) -> None:
    frames = [numbered(number) for number in (0, 0, 0, 20, 20, 20, 5, 5)]
    path = write_video(tmp_path / "cuts.mp4", frames)
    (found,) = clips(path, scenes=0.1)
    assert numbers(found) == [0, 20, 5]


def test_gaps_between_clips_are_sought_over(tmp_path: Path) -> None:
    frames = [numbered(number % 32) for number in range(400)]
    path = write_video(tmp_path / "long.mp4", frames)
    found = clips(path, clip_seconds=0.3, stride_seconds=10)
    assert [numbers(sample) for sample in found] == [[n % 32 for n in range(a, a + 3)] for a in (0, 100, 200, 300)]
    slow = clips(path, fps=0.1, clip_seconds=40)
    assert [numbers(sample) for sample in slow] == [[0, 100 % 32, 200 % 32, 300 % 32]]


@pytest.mark.parametrize(
    ("fields", "count"), [({}, 4), ({"fps": 5}, 4), ({"every_n": 2}, 4), ({"fps": 5, "stride_seconds": 0.5}, 4)]
)
def test_an_excerpt_is_some_frames_of_a_clip_in_a_row(video: MakeVideo, fields: dict[str, Any], count: int) -> None:
    path = video(count=30)
    spec = VideoSourceSpec(path=str(path), clip_seconds=1, **fields)
    planner = open_video_source(spec)
    plan = pa.Table.from_batches(list(planner.plan()))
    reader = open_video_source(spec, state=planner.state())
    assert isinstance(reader, LongSource)
    whole = {sample.key: sample for sample in clips(path, clip_seconds=1, **fields)}
    places = set()
    for seed in range(8):
        inputs, lengths = reader.excerpts(plan, count, np.random.default_rng(seed))
        assert sorted(inputs["key"].to_pylist()) == sorted(whole)
        for thunk, length in zip(reader.read(inputs), lengths, strict=True):
            part = thunk()
            assert isinstance(part, Sample)
            clip = whole[part.key]
            first = clip.columns["pts"].index(part.columns["pts"][0])
            last = first + len(part.data)
            assert min(count, len(clip.data)) <= len(part.data) <= count + 1  # a clip of one frame more stays whole
            assert part.columns["pts"] == clip.columns["pts"][first:last]
            assert np.array_equal(part.data, clip.data[first:last])
            assert length == pytest.approx(len(clip.data) / len(part.data), rel=0.3)
            places.add(first)
    assert len(places) > 1


@pytest.mark.parametrize("fields", [{"keyframes": True}, {"scenes": 0.1}], ids=str)
def test_clips_whose_frames_are_not_known_before_stay_whole(video: MakeVideo, fields: dict[str, Any]) -> None:
    planner = open_video_source(VideoSourceSpec(path=str(video(count=30)), clip_seconds=1, **fields))
    plan = pa.Table.from_batches(list(planner.plan()))
    inputs, lengths = planner.excerpts(plan, 1, np.random.default_rng(0))
    assert inputs.equals(plan)
    assert lengths == [1.0] * plan.num_rows


def test_a_clip_is_the_same_whoever_reads_it_and_beside_whichever(video: MakeVideo) -> None:
    path = video(count=30, bf="2", preset="medium")
    spec = VideoSourceSpec(path=str(path), clip_seconds=0.7, stride_seconds=0.4)
    planner = open_video_source(spec)
    plan = pa.Table.from_batches(list(planner.plan()))
    whole = read(path, clip_seconds=0.7, stride_seconds=0.4)
    for rows in ([3], [1, 5], [0, 2, 4]):
        part = list(open_video_source(spec, state=planner.state()).read(plan.take(rows)))
        for row, thunk in zip(rows, part, strict=True):
            sample, other = thunk(), whole[row]
            assert isinstance(sample, Sample)
            assert isinstance(other, Sample)
            assert np.array_equal(sample.data, other.data)
            assert sample.columns == other.columns
    threaded = read(path, threads=4, clip_seconds=0.7, stride_seconds=0.4)
    assert all(np.array_equal(a.data, b.data) for a, b in zip(whole, threaded, strict=True))  # type: ignore[union-attr]


def test_a_file_cut_off_in_the_middle_gives_what_is_there_and_says_so(video: MakeVideo, tmp_path: Path) -> None:
    path = video("whole.mkv", 30)
    cut = tmp_path / "cut" / "cut.mkv"
    cut.parent.mkdir()
    cut.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    found = clips(cut, clip_seconds=1)
    assert next(numbers(sample) for sample in found) == [*range(10)]
    assert sum(len(sample.data) for sample in found) < 30
    assert [sample.columns["complete"] for sample in found] == [True] * (len(found) - 1) + [False]
    assert "the file ends at" in found[-1].columns["incomplete_reason"]
    last = read(cut, clip_seconds=1, incomplete="reject")[-1]
    assert isinstance(last, Reject)
    assert "incomplete: the file ends at" in last.message


def test_frames_that_cannot_be_decoded_are_told(video: MakeVideo, tmp_path: Path) -> None:
    data = bytearray(video("good.mkv", 30, g="30").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 200] = bytes(200)
    bad = tmp_path / "bad" / "bad.mkv"
    bad.parent.mkdir()
    bad.write_bytes(data)
    found = clips(bad, clip_seconds=1)
    assert not all(sample.columns["complete"] for sample in found)
    assert all(sample.columns["incomplete_reason"] for sample in found if not sample.columns["complete"])


@pytest.mark.parametrize(
    "content", [b"", b"not a video at all", b"#EXTM3U\n#EXTINF:1,\na.mp4\n"], ids=["empty", "text", "playlist"]
)
def test_what_is_no_video_is_planned_as_a_reject(video: MakeVideo, tmp_path: Path, content: bytes) -> None:
    video("a.mp4", 10)
    (tmp_path / "b.mp4").write_bytes(content)
    found = read(tmp_path)
    assert [item.key for item in found] == ["a.mp4#00000", "b.mp4"]
    reject = found[1]
    assert isinstance(reject, Reject)
    assert (reject.stage, reject.error) == ("plan", "not usable")
    assert "not a video in a known container" in reject.message


def test_a_folder_without_videos_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(SpecError, match="no videos found"):
        read(tmp_path)


@pytest.mark.parametrize(("labels", "names"), [("folder", ("cat", "dog")), ("name", ("a", "b")), ("none", None)])
def test_labels_come_from_folders_or_names(video: MakeVideo, tmp_path: Path, labels: str, names: Any) -> None:
    video("dog/a.mp4", 10)
    video("cat/b.mp4", 10)
    spec = VideoSourceSpec(path=str(tmp_path), labels=labels)
    source = open_video_source(spec)
    list(source.plan())
    columns = {column.name: column for column in source.columns()}
    assert (columns["label"].names if names else columns.get("label")) == names
    if names:
        found = read(tmp_path, labels=labels)
        assert [item.columns["label"] for item in found if isinstance(item, Sample)] == (
            [0, 1] if labels == "folder" else [1, 0]
        )


def test_a_manifest_says_which_parts_are_wanted(video: MakeVideo, tmp_path: Path) -> None:
    video("a.mp4", 30)
    (tmp_path / "parts.csv").write_text(
        "path,start,end,caption\na.mp4,0.5,1.0,first\na.mp4,2.5,,rest\na.mp4,9,10,none\n"
    )
    found = read(tmp_path / "parts.csv", clip_seconds=5)
    assert [numbers(item) for item in found if isinstance(item, Sample)] == [[5, 6, 7, 8, 9], [25, 26, 27, 28, 29]]
    assert [item.columns["caption"] for item in found if isinstance(item, Sample)] == ["first", "rest"]
    assert isinstance(found[-1], Reject)
    assert "is not in the video" in found[-1].message


def test_videos_in_tar_archives_are_read_where_they_lie(video: MakeVideo, tmp_path: Path) -> None:
    video("x/a.mp4", 10)
    video("x/b.mp4", 10)
    with tarfile.open(tmp_path / "v.tar", "w") as archive:
        for name in ("a", "b"):
            archive.add(tmp_path / "x" / f"{name}.mp4", f"{name}.mp4")
            (tmp_path / f"{name}.cls").write_text("3")
            archive.add(tmp_path / f"{name}.cls", f"{name}.cls")
    found = clips(tmp_path / "v.tar")
    assert [(sample.key, numbers(sample), sample.columns["label"]) for sample in found] == [
        ("a#00000", [*range(10)], 3),
        ("b#00000", [*range(10)], 3),
    ]


@pytest.mark.parametrize(
    ("fields", "message"), [({"max_frames": 5}, "more than max_frames"), ({"max_pixels": 100}, "over max_pixels")]
)
def test_limits_of_a_clip_end_as_rejects(video: MakeVideo, fields: dict[str, Any], message: str) -> None:
    found = read(video(count=20), **fields)
    assert [isinstance(item, Reject) and message in item.message for item in found] == [True]


@pytest.mark.parametrize(
    ("fields", "message"), [({"max_seconds": 0.5}, "over max_seconds"), ({"stream": 1}, "no video stream 1")]
)
def test_limits_of_a_file_are_found_at_planning(video: MakeVideo, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        read(video(count=20), **fields)


def test_two_ways_to_take_frames_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="fps and every_n exclude each other"):
        VideoSourceSpec(path="x", fps=5, every_n=2)


def test_every_file_of_the_collection_is_clips_or_a_reject_with_the_right_reason(data_dir: Path) -> None:
    found = read(data_dir / "video", fps=2, **SIZE)
    by_file: dict[str, list[Sample | Reject]] = {}
    for item in found:
        by_file.setdefault(item.uri, []).append(item)
    rejected = {name: items[0].message for name, items in by_file.items() if isinstance(items[0], Reject)}
    assert set(rejected) == {
        f"broken/{name}" for name in ("audio_only.mp4", "moov_missing.mp4", "text.mp4", "zero_byte.mp4")
    }
    assert "no video stream 0" in rejected["broken/audio_only.mp4"]
    assert all(isinstance(item, Sample) for name, items in by_file.items() if name not in rejected for item in items)
    incomplete = {
        name: [item.columns["incomplete_reason"] for item in items if not item.columns["complete"]]
        for name, items in by_file.items()
        if name not in rejected
    }
    told = {name: reasons for name, reasons in incomplete.items() if reasons}
    assert set(told) == {
        f"broken/{name}"
        for name in ("bitflips_400.mp4", "corrupted_midway.mp4", "truncated_50pct.webm", "truncated_60pct.mp4")
    }
    assert all(
        "the file ends at" in told[f"broken/{name}"][-1] for name in ("truncated_50pct.webm", "truncated_60pct.mp4")
    )


def test_time_stamps_of_the_collection_are_those_of_pyav(data_dir: Path) -> None:
    for name in (
        "made_vfr_dropped.mp4",
        "no_duration_vfr.webm",
        "test_non_zero_start.mp4",
        "unordered.mov",
        "newtonscradle.gif",
    ):
        path = data_dir / "video" / name
        assert [t for sample in clips(path, **SIZE) for t in sample.columns["pts"]] == decoded_times(path), name


def test_turned_clips_stand_upright(data_dir: Path) -> None:
    (turned,) = clips(data_dir / "video" / "video_90.mov")
    (flat,) = clips(data_dir / "video" / "video_0.mov")
    assert turned.data.shape[1:3] == flat.data.shape[1:3][::-1]
