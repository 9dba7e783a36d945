"""Video files opened with PyAV (FFmpeg), and what can be said of one before its frames are decoded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, BinaryIO, NamedTuple, cast

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from tokenshard.errors import InputError

FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,mpeg,mpegts,mpegvideo,ogg,flv,asf,yuv4mpegpipe,ivf,h264,hevc,av1"
)
"""Containers that are read. Left out are playlists and the like, which name other files."""

TAIL_SECONDS = 2.0
"""How far before its end a file is looked at, to see whether the end is there."""

MICRO = 1_000_000


@dataclass(frozen=True)
class Video:
    """What the container says, and how far its packets go. Times in seconds, on the clock of the time stamps."""

    start: float
    last: float
    """time of the last frame"""
    missing: str | None
    """why they end before the container says they do"""
    fps: float | None
    codec: str
    audio: dict[str, Any]
    """codec, rate (Hz) and seconds of the first audio stream; empty without one"""


def open_video(file: BinaryIO) -> InputContainer:
    """An opened container. Raises InputError where it is none."""
    options = {"format_whitelist": FORMATS, "protocol_whitelist": "none"}
    try:
        return cast(InputContainer, av.open(file, container_options=options, metadata_errors="ignore"))
    except (av.FFmpegError, OSError, ValueError) as error:
        raise InputError(f"not a video in a known container, or its header is damaged ({_said(error)})") from error


def video_stream(container: InputContainer, number: int) -> VideoStream:
    """One of the video streams; pictures attached to a sound file are none. Raises InputError where it is missing."""
    streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if number >= len(streams):
        kinds = ", ".join(sorted({str(stream.type) for stream in container.streams})) or "none"
        raise InputError(f"no video stream {number}; it has {len(streams)} of them (streams: {kinds})")
    return streams[number]


def describe(file: BinaryIO, number: int) -> Video:
    """What is known of a video stream without decoding it. Raises InputError where there is nothing to decode."""
    with open_video(file) as container:
        stream = video_stream(container, number)
        start = _seconds(stream.start_time, stream.time_base)
        start = start if start is not None else (container.start_time or 0) / MICRO
        said = _seconds(stream.duration, stream.time_base)
        states_stream = said is not None
        if said is None and container.duration is not None:
            said = container.duration / MICRO
        rate, audio = stream.average_rate or stream.guessed_rate, _audio(container)
        codec = stream.codec_context.codec.canonical_name if stream.codec_context is not None else "unknown"
        found = None if said is None else _tail_end(container, stream, start + said - TAIL_SECONDS)
    if found is None:
        file.seek(0)
        with open_video(file) as container:
            found = _ends(container, video_stream(container, number))
    if found is None:
        raise InputError("its video stream has no data")
    missing, reached = None, found.end if states_stream else found.all  # such a container may be as long as its sound
    if said is not None and reached < start + said - max(0.5, 2 / float(rate) if rate else 0.0):
        missing = f"the file ends at {reached - start:.2f} s of {said:.2f} s"
    return Video(start, found.last, missing, float(rate) if rate else None, codec, audio)


def packets(container: InputContainer, *streams: Any) -> Iterator[av.Packet[Any]]:
    """Packets up to the end of the file, or to where it is damaged."""
    with contextlib.suppress(av.FFmpegError):
        for packet in container.demux(*streams):
            if packet.pts is not None or packet.dts is not None:
                yield packet


class _Ends(NamedTuple):
    """Where packets end, in seconds."""

    last: float
    """start of the last frame of the stream"""
    end: float
    """end of the stream"""
    all: float
    """end of all streams"""


def _tail_end(container: InputContainer, stream: VideoStream, tail: float) -> _Ends | None:
    """As :func:`_ends`, by a look at the packets from ``tail`` on; None where the end is not there."""
    with contextlib.suppress(av.FFmpegError):
        container.seek(int(max(0.0, tail) * MICRO))
        found = _ends(container, stream)
        return found if found is not None and found.end >= tail else None
    return None


def _ends(container: InputContainer, stream: VideoStream) -> _Ends | None:
    """Where the packets from here on end; None where there are none of the stream."""
    last, end, all_end = None, 0.0, 0.0
    for packet in packets(container):
        time = packet.pts if packet.pts is not None else packet.dts
        begins, ends = (_seconds((time or 0) + more, packet.time_base) or 0.0 for more in (0, packet.duration or 0))
        all_end = max(all_end, ends)
        if packet.stream_index == stream.index:
            last, end = max(last or 0.0, begins), max(end, ends)
    return None if last is None else _Ends(last, end, all_end)


def _audio(container: InputContainer) -> dict[str, Any]:
    if not container.streams.audio:
        return {}
    stream = container.streams.audio[0]
    context = stream.codec_context
    seconds = _seconds(stream.duration, stream.time_base)
    name = context.name if context is not None else "unknown"
    return {"audio_codec": name, "audio_rate": getattr(context, "rate", None) or None, "audio_seconds": seconds}


def _seconds(time: int | None, base: Fraction | None) -> float | None:
    return None if time is None or base is None else float(time * base)


def _said(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or type(error).__name__)
