"""The frames of a video stream in the order they are shown, with seeks over what nobody asks for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from typing import Any, BinaryIO

import av

from tokenshard.errors import InputError
from tokenshard.sources.video.container import MICRO, open_video, packets, video_stream
from tokenshard.spec.videos import VideoSourceSpec

SEEK_MICRO = 2 * MICRO
"""A gap that is longer is sought over, not decoded through."""
HIDDEN_FRAMES = frozenset({"vp8", "vp9", "av1"})
"""Codecs with packets that show no frame: their packets say nothing of the number of frames."""

Frame = tuple[int, av.VideoFrame]
"""Presentation time stamp in microseconds, and the frame."""


class Decoder:
    """Frames of one stream, on one thread: the same frames on every machine."""

    def __init__(self, file: BinaryIO, spec: VideoSourceSpec) -> None:
        file.seek(0)
        self._container = open_video(file)
        self._stream = video_stream(self._container, spec.stream)
        context = self._stream.codec_context
        context.thread_count = 1
        if spec.keyframes:
            context.skip_frame = "NONKEY"
        self.aspect: Fraction = context.sample_aspect_ratio or Fraction(1)
        """width of a pixel / its height"""
        self._counts_packets = not spec.keyframes and context.codec.canonical_name not in HIDDEN_FRAMES
        self._max_pixels = spec.max_pixels
        self._tick = (self._stream.time_base or Fraction(1, MICRO)) * MICRO
        """microseconds of one time stamp"""
        self._decoded = self._decode()
        self._ahead: deque[Frame] = deque()
        self._position: int | None = None
        self._packets: list[int] = []
        self._errors: list[tuple[int, str]] = []

    def close(self) -> None:
        self._container.close()

    def next(self, at_least: int) -> Frame | None:
        """The next frame that is shown at that time or later; None at the end."""
        while self._ahead:
            found = self._ahead.popleft()
            if found[0] >= at_least:
                return found
        if at_least - (at_least if self._position is None else self._position) > SEEK_MICRO:
            self._seek(at_least)
        for found in self._decoded:
            self._position = found[0]
            if found[0] >= at_least:
                return found
        return None

    def give_back(self, frames: Iterable[Frame]) -> None:
        """Frames that come next once more."""
        self._ahead.extendleft(reversed(list(frames)))

    def damage(self, inside: Callable[[int], bool], shown: int | None) -> str | None:
        """What is wrong among the frames at some times, of which ``shown`` were shown (None: not known)."""
        expected = sum(map(inside, self._packets)) if self._counts_packets and shown is not None else 0
        if shown is not None and expected > shown:
            return f"{expected - shown} of {expected} frames are missing"
        return next((text for pts, text in self._errors if inside(pts)), None)

    def forget(self, before: int) -> None:
        """What is known of frames before that time will not be asked for again."""
        self._packets = [pts for pts in self._packets if pts >= before]
        self._errors = [error for error in self._errors if error[0] >= before]

    def _seek(self, pts: int) -> None:
        try:
            self._container.seek(pts)  # to the key frame before it
        except av.FFmpegError:
            return  # decoded through instead
        self._decoded = self._decode()

    def _decode(self) -> Iterator[Frame]:
        for packet in packets(self._container, self._stream):
            if packet.pts is not None and packet.size and not packet.is_discard:
                self._packets.append(self._micro(packet.pts))
            yield from self._frames_of(packet)
        yield from self._frames_of(None)

    def _frames_of(self, packet: av.Packet[Any] | None) -> Iterator[Frame]:
        try:
            frames = self._stream.codec_context.decode(packet)
        except av.FFmpegError as error:
            place = self._position or 0
            if packet is not None and packet.pts is not None:
                place = self._micro(packet.pts)
            self._errors.append((place, f"a frame cannot be decoded ({error.strerror})"))
            return
        for frame in frames:
            if frame.width * frame.height > self._max_pixels:
                raise InputError(
                    f"frames of {frame.width} x {frame.height} pixels are over max_pixels ({self._max_pixels})"
                )
            pts = frame.pts if frame.pts is not None else frame.dts
            if pts is None:
                self._errors.append((self._position or 0, "a frame has no time stamp"))
                continue
            if frame.is_corrupt:
                self._errors.append((self._micro(pts), "a frame is damaged"))
            yield self._micro(pts), frame

    def _micro(self, pts: int) -> int:
        """As `round` of the fraction, which takes ten times as long, a few times a frame."""
        whole, rest = divmod(pts * self._tick.numerator, self._tick.denominator)
        return whole + (2 * rest + whole % 2 > self._tick.denominator)
