"""Videos as a source: the files of a folder, a manifest or tar archives, cut into clips of which each is an input.

Planning opens every file once, for what its container says; a file that is no video is planned as a reject.
"""

from __future__ import annotations

import io
import posixpath
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import groupby
from threading import Lock
from typing import Any, BinaryIO, cast

import numpy as np
import pyarrow as pa

from tokenshard.errors import InputError, StoreError
from tokenshard.ranged import RangedFile
from tokenshard.sources.base import Reject, Sample, SourceColumn, Thunk
from tokenshard.sources.images.base import ImageSource
from tokenshard.sources.images.columns import ClassNames
from tokenshard.sources.images.open import open_image_source
from tokenshard.sources.outcome import planned_reject, rejected
from tokenshard.sources.plan import DUPLICATE, META, Input, plan_batches, planned_inputs, require_usable
from tokenshard.sources.video.clips import ClipReader, Span
from tokenshard.sources.video.container import MICRO, Video, describe
from tokenshard.spec.videos import VideoSourceSpec

READ_BYTES = 1 << 20
"""Requested at once of a file that is not local."""
FOUND = {
    "start": pa.float64(), "end": pa.float64(), "fps": pa.float64(), "video_codec": pa.string(),
    "audio_codec": pa.string(), "audio_rate": pa.int64(), "audio_seconds": pa.float64(),
}  # fmt: skip
"""Columns that planning finds out: seconds of the clip, frames a second of the file, codecs, sound."""
DECODED = {"pts": pa.list_(pa.int64()), "complete": pa.bool_(), "incomplete_reason": pa.string()}
"""Columns that decoding finds out: presentation time stamps of the frames (microseconds), and what is missing."""
_SPAN = {"_start": pa.int64(), "_end": pa.int64(), "_missing": pa.string()}
"""What planning writes down for reading only."""


class VideoSource:
    """Clips of videos; ``key`` is that of the file, with `#` and the number of the clip."""

    def __init__(self, spec: VideoSourceSpec, files: ImageSource, state: Mapping[str, Any] | None = None) -> None:
        self.spec, self._files = spec, files
        self._listed: list[str] = list((state or {}).get("listed", []))
        self._classes = ClassNames()
        self._names: list[str] = list((state or {}).get("names", []))
        """with labels by name: the classes, in order"""

    def plan(self) -> Iterator[pa.RecordBatch]:
        yield from require_usable(self._batches(), self.spec.path, self.spec.what)
        self._listed = [column.name for column in self._files.columns()]
        if self._by_name:
            self._listed.append("label")
            self._names = list(self._classes.column("label").names or ())

    @property
    def _by_name(self) -> bool:
        return self.spec.labels == "name"

    def columns(self) -> tuple[SourceColumn, ...]:
        listed = tuple(column for column in self._files.columns() if column.name not in {**FOUND, **DECODED})
        found = tuple(SourceColumn(name, kind, "metadata") for name, kind in {**FOUND, **DECODED}.items())
        named = (self._classes.column("label"),) if self._by_name else ()
        return named + listed + found

    def state(self) -> dict[str, Any]:
        return {"files": self._files.state(), "listed": self._listed, "names": self._names}

    # -- planning -----------------------------------------------------------------------------------------------------

    def _batches(self) -> Iterator[pa.RecordBatch]:
        for batch in self._files.plan():
            listed = [field for field in batch.schema if field.name.startswith(META)]
            fields = [pa.field(field.name.removeprefix(META), field.type) for field in listed]
            meta = {field.name: field.type for field in fields} | FOUND | _SPAN
            meta |= {"label": pa.string()} if self._by_name else {}
            rows = planned_inputs(pa.Table.from_batches([batch]), [field.name for field in fields])
            yield from plan_batches(self._clips(rows), [pa.field(name, kind) for name, kind in meta.items()])

    def _clips(self, rows: Iterator[Input]) -> Iterator[Input]:
        """The clips of the files, in order; several files are looked at at once."""
        ahead: deque[tuple[Input, Future[Video]]] = deque()
        with ThreadPoolExecutor(8) as pool:
            for row in rows:
                ahead.append((row, pool.submit(self._described, row)))
                if len(ahead) > 32:
                    yield from self._clips_of(*ahead.popleft())
            while ahead:
                yield from self._clips_of(*ahead.popleft())

    def _described(self, row: Input) -> Video:
        if row.error is not None and not self._is_part(row):
            raise InputError(row.error)
        if row.index is not None:
            raise InputError("a video in a compressed archive cannot be sought in; repack it without compression")
        with self._open(row) as file:
            return describe(file, self.spec.stream)

    def _clips_of(self, row: Input, described: Future[Video]) -> Iterator[Input]:
        try:
            video = described.result()
            first, last = _range(row, video)
            if last - first > self.spec.max_seconds:
                raise InputError(f"{last - first:.0f} s are over max_seconds ({self.spec.max_seconds:g})")
        except (InputError, StoreError, FileNotFoundError) as error:
            if isinstance(error, StoreError) and error.transient:
                raise
            yield replace(
                row,
                error=f"not usable: {error}" if self._is_part(row) else row.error or f"not usable: {error}",
                meta={},
            )
            return
        if self._by_name:
            row.meta["label"] = posixpath.splitext(posixpath.basename(row.uri))[0]
            self._classes.add([row.meta["label"]])
        said = {"fps": video.fps, "video_codec": video.codec, **video.audio}
        asked = row.meta.get("end") is not None
        open_end = not asked and self.spec.stride <= self.spec.clip_seconds  # frames may come after the last known one
        starts = range(round(first * MICRO), round(last * MICRO) + 1, round(self.spec.stride * MICRO))
        share = None if row.bytes is None else row.bytes // len(starts)
        for number, start in enumerate(starts):
            end = start + round(self.spec.clip_seconds * MICRO)
            final = number == len(starts) - 1
            if final and asked:
                end = min(end, round(last * MICRO))
            meta = {**row.meta, **said, "start": start / MICRO, "end": min(end / MICRO, max(last, start / MICRO))}
            meta |= {"_start": start, "_end": None if final and open_end else end}
            meta["_missing"] = video.missing if final and not asked else None
            yield replace(row, key=f"{row.key}#{number:05d}", bytes=share, index=number, error=None, meta=meta)

    def _is_part(self, row: Input) -> bool:
        """Whether it is one of several parts of a video that a manifest names, which all have its key."""
        return row.error == DUPLICATE and (row.meta.get("start") is not None or row.meta.get("end") is not None)

    # -- reading ------------------------------------------------------------------------------------------------------

    def read(self, inputs: pa.Table) -> Iterator[Thunk]:
        names = [*self._listed, *FOUND, *_SPAN]
        labels = self._files.label_values()
        if self._by_name:
            labels["label"] = {name: number for number, name in enumerate(self._names)}.get  # type: ignore[assignment]
        rows = list(planned_inputs(inputs, dict.fromkeys(names)))
        for _, group in groupby(rows, key=_file):
            clips = list(group)
            usable = [row for row in clips if row.error is None]
            opened = _Opened(partial(self._open, usable[0]), self.spec, usable) if usable else None
            for row in clips:
                if row.error is not None or opened is None:
                    yield partial(planned_reject, row.key, row.uri, row.error or "")
                else:
                    columns = {n: labels[n](v) if n in labels else v for n, v in row.meta.items() if n not in _SPAN}
                    yield partial(self._sample, opened, usable.index(row), row, columns)

    def excerpts(self, inputs: pa.Table, frames: int, draw: np.random.Generator) -> tuple[pa.Table, Sequence[float]]:
        """The same clips, each cut down to a random part in which about ``frames`` are taken.

        And how many times as long as its part each clip is. Parts of a file are in the order of their time. Clips stay
        whole where nobody knows beforehand which frames are taken (key frames, scenes).
        """
        rows = list(planned_inputs(inputs, (*FOUND, *_SPAN)))
        found = [self._excerpt(row, frames, draw) for row in rows]
        order: list[int] = []
        for _, group in groupby(range(len(rows)), key=lambda number: _file(rows[number])):
            order += sorted(group, key=lambda number: found[number][0] or 0)
        for name, values in zip(("_start", "_end"), zip(*found, strict=True), strict=False):
            place = inputs.schema.get_field_index(META + name)
            inputs = inputs.set_column(place, inputs.schema.field(place), pa.array(values, pa.int64()))
        return inputs.take(pa.array(order, pa.int64())), [found[number][2] for number in order]

    def _excerpt(self, row: Input, frames: int, draw: np.random.Generator) -> tuple[int | None, int | None, float]:
        """Start and end of a part of a clip (microseconds), and how many times as long the clip is."""
        start, end, rate = row.meta["_start"], row.meta["_end"], self.spec.rate(row.meta["fps"])
        if rate is None or start is None:
            return start, end, 1.0
        period = round(MICRO / rate)
        there = (round(row.meta["end"] * MICRO) - start) // period
        if there <= frames:
            return start, end, 1.0
        first = start + period * int(draw.integers(0, there - frames + 1))
        return first, first + period * frames, there / frames

    def _sample(self, opened: _Opened, number: int, row: Input, columns: dict[str, Any]) -> Sample | Reject:
        try:
            clip = opened.reader().clip(number)
            damage = clip.damage or row.meta["_missing"]
            if damage is not None and self.spec.incomplete == "reject":
                raise InputError(f"incomplete: {damage}")
            decoded = {"pts": clip.pts, "complete": damage is None, "incomplete_reason": damage}
            return Sample(row.key, row.uri, clip.frames.array(), row.bytes or 0, {**columns, **decoded})
        except Exception as error:
            if isinstance(error, StoreError) and error.transient:
                raise
            return rejected(row.key, row.uri, "decode", error)

    def _open(self, row: Input) -> BinaryIO:
        """The bytes of a video as a file."""
        store, name = self._files.place(row.uri)
        if row.bytes is not None and row.offset is not None:
            offset = row.offset
            ranged = RangedFile(row.bytes, lambda start, length: store.read(name, offset + start, length))
            return cast(BinaryIO, io.BufferedReader(ranged, READ_BYTES))
        return cast(BinaryIO, io.BufferedReader(cast(Any, store.open(name)), READ_BYTES))


class _Opened:
    """The reader of the clips of one file, opened when the first of them is asked for."""

    def __init__(self, open_file: Any, spec: VideoSourceSpec, rows: Sequence[Input]) -> None:
        self._open, self._spec = open_file, spec
        self._spans = [Span(row.meta["_start"], row.meta["_end"]) for row in rows]
        self._reader: ClipReader | None = None
        self._lock = Lock()

    def reader(self) -> ClipReader:
        with self._lock:
            if self._reader is None:
                self._reader = ClipReader(self._open(), self._spec, self._spans)
            return self._reader


def _file(row: Input) -> tuple[str, int | None, str]:
    """What the clips of one file have in common."""
    return row.uri, row.offset, row.key.rpartition("#")[0]


def _range(row: Input, video: Video) -> tuple[float, float]:
    """Seconds that a manifest asks for (columns `start` and `end`), else all there are."""
    asked = [row.meta.get(name) for name in ("start", "end")]
    first = video.start if asked[0] is None else max(video.start, float(asked[0]))
    last = video.last if asked[1] is None else min(video.last, float(asked[1]))
    if last < first:
        raise InputError(f"the clip from {first:g} s to {last:g} s is not in the video, which ends at {video.last:g} s")
    return first, last


def open_video_source(
    spec: VideoSourceSpec, storage: Mapping[str, Any] | None = None, state: Mapping[str, Any] | None = None
) -> VideoSource:
    """The source of a spec, as :func:`~tokenshard.sources.images.open.open_image_source`."""
    listed = spec.model_copy(update={"labels": "none"}) if spec.labels == "name" else spec
    return VideoSource(spec, open_image_source(listed, storage, None if state is None else state["files"]), state)
