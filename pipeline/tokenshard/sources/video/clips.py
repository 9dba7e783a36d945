"""Clips of one video: the frames of some spans of time, of which the spec takes some.

What a clip is depends on file and spec alone: whoever asks when, spans are decoded in their order.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import BinaryIO

import av
import numpy as np
from numpy.typing import NDArray

from tokenshard.errors import InputError
from tokenshard.sources.video.container import MICRO
from tokenshard.sources.video.decoder import SEEK_MICRO, Decoder
from tokenshard.sources.video.pictures import FrameStack, Pictures, brightness
from tokenshard.spec.videos import VideoSourceSpec


@dataclass(frozen=True)
class Span:
    """A part of a video: microseconds, ``end`` exclusive and None for all that comes."""

    start: int
    end: int | None

    def holds(self, pts: int) -> bool:
        return pts >= self.start and (self.end is None or pts < self.end)


@dataclass
class Clip:
    """The frames that were taken of a span."""

    frames: FrameStack = field(default_factory=FrameStack)
    pts: list[int] = field(default_factory=list)
    """presentation time stamps, microseconds"""
    damage: str | None = None
    """what is known to be missing or wrong"""


class ClipReader:
    """The clips of some spans of a video, in rising order. Any thread may ask for any of them, once."""

    def __init__(self, file: BinaryIO, spec: VideoSourceSpec, spans: Sequence[Span]) -> None:
        self._file, self._spec, self._spans = file, spec, spans
        self._next = 0
        self._waiting: dict[int, Clip | Exception] = {}
        self._lock = Lock()
        self._decoder: Decoder | None = None

    def clip(self, number: int) -> Clip:
        """The clip of the span with this number. Raises InputError where it has no frames."""
        with self._lock:
            while number not in self._waiting:
                try:
                    self._waiting[self._next] = self._decoded(self._next)
                except Exception as error:
                    self._waiting[self._next] = error
                self._next += 1
            if self._next == len(self._spans):
                self._close()
            found = self._waiting.pop(number)
        if isinstance(found, Exception):
            raise found
        return found

    def _decoded(self, number: int) -> Clip:
        if self._decoder is None:
            self._decoder = Decoder(self._file, self._spec)
        span = self._spans[number]
        following = self._spans[number + 1].start if number + 1 < len(self._spans) else None
        clip = _taken(self._decoder, span, following, self._spec)
        if not clip.pts:
            raise InputError(clip.damage or "no frame can be decoded here; the file ends before it, or is damaged")
        return clip

    def _close(self) -> None:
        if self._decoder is not None:
            self._decoder.close()
            self._decoder = None
        self._file.close()


def _taken(decoder: Decoder, span: Span, following: int | None, spec: VideoSourceSpec) -> Clip:
    """The frames of a span that the spec asks for. Those from ``following`` on are kept for the span after it."""
    clip, pictures, taken = Clip(), Pictures(spec, decoder.aspect), _Taken(spec, span.start)
    deadline, number = time.monotonic() + spec.clip_timeout, 0
    for pts, frame in _between(decoder, span, following, taken):
        if time.monotonic() > deadline:
            raise InputError(f"decoding the clip took more than clip_timeout ({spec.clip_timeout:g} s)")
        number += 1
        if not taken.takes(pts, frame):
            continue
        if len(clip.pts) >= spec.max_frames:
            raise InputError(f"more than max_frames ({spec.max_frames}) frames; shorten clip_seconds or take fewer")
        clip.frames.append(pictures.rgb(frame))
        clip.pts.append(pts)
    clip.damage = decoder.damage(span.holds, None if taken.skips else number)
    decoder.forget(span.start if following is None else min(span.start, following))
    if not clip.frames.uniform:
        raise InputError("the size of the frames changes in this clip; set size and fit")
    return clip


def _between(decoder: Decoder, span: Span, following: int | None, taken: _Taken) -> Iterator[tuple[int, av.VideoFrame]]:
    """The frames of a span, without those that are skipped over."""
    kept: deque[tuple[int, av.VideoFrame]] = deque()
    at = span.start
    while (found := decoder.next(at)) is not None:
        if following is not None and found[0] >= following:
            kept.append(found)
        if not span.holds(found[0]):
            break
        yield found
        at = max(found[0] + 1, taken.due if taken.skips else 0)
    decoder.give_back(kept)


class _Taken:
    """Which of the frames of a clip are taken."""

    def __init__(self, spec: VideoSourceSpec, start: int) -> None:
        self.due = start
        """with fps: no frame before this time is taken"""
        self._spec = spec
        self._period = None if spec.fps is None else round(MICRO / spec.fps)
        self._number = -1
        self._before: NDArray[np.float32] | None = None

    @property
    def skips(self) -> bool:
        """Whether frames are sought over that are not taken."""
        return self._period is not None and self._period > SEEK_MICRO

    def takes(self, pts: int, frame: av.VideoFrame) -> bool:
        """Whether a frame is taken. Asked for each of them, in order."""
        self._number += 1
        if self._spec.every_n is not None:
            return self._number % self._spec.every_n == 0
        if self._period is not None:
            if pts < self.due:
                return False
            self.due += -(-(pts + 1 - self.due) // self._period) * self._period
            return True
        if self._spec.scenes is not None:
            small, before = brightness(frame), self._before
            self._before = small
            return before is None or float(np.abs(small - before).mean()) > self._spec.scenes
        return True
