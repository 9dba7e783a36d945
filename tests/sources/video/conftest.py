"""Small real videos, encoded here by FFmpeg."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

av = pytest.importorskip("av", reason="videos need PyAV: pip install 'tokenshard[video]'")


def numbered(number: int, height: int = 48, width: int = 64) -> NDArray[np.uint8]:
    """A frame whose grey level tells its number (below 32)."""
    frame = np.full((height, width, 3), 8 * number, np.uint8)
    frame[: height // 2, : width // 2] = 128
    return frame


def number_of(frame: NDArray[np.uint8]) -> int:
    """The number of a decoded frame."""
    return round(float(frame[-8:, -8:].mean()) / 8)


def write_video(
    path: Path, frames: Sequence[NDArray[np.uint8]], times: Sequence[float] | None = None, **options: Any
) -> Path:
    """H.264 in the container of the name; ``times``: seconds of each frame, by default 10 a second."""
    times = times if times is not None else [number / 10 for number in range(len(frames))]
    base = Fraction(1, 1000)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(options.pop("codec", "libx264"), rate=10)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = stream.time_base = base
        stream.options = {"crf": "4", "preset": "ultrafast", "g": "10", **options}
        for time, pixels in zip(times, frames, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = round(time * 1000), base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.fixture
def video(tmp_path: Path) -> Callable[..., Path]:
    """Writes numbered frames to a file below ``tmp_path``; returns its path."""

    def write(name: str = "a.mp4", count: int = 30, times: Sequence[float] | None = None, **options: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return write_video(path, [numbered(number) for number in range(count)], times, **options)

    return write
