"""Reconstructed clips as MP4 files that players and browsers show."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenshard.errors import SpecError
from tokenshard.report.samples import sample_numbers
from tokenshard.scratch import scratch_folder
from tokenshard.shards.dataset import Dataset
from tokenshard.store import Store
from tokenshard.tokenizers.base import Tokenizer
from tokenshard.tokenizers.folder import load_tokenizer
from tokenshard.tokenizers.frames import clip_size, decode_frames

TIME_BASE = Fraction(1, 90_000)
CRF = "16"
"""Of H.264: what it loses is far below what tokens lose."""


def write_movies(dataset: Dataset, keys: list[str], count: int, folder: str) -> list[str]:
    """Write clips with these keys (none: ``count`` evenly spaced ones) to ``folder``; a line of text for each.

    Frames have their own time stamps, from the start of the clip. Raises SpecError for datasets that hold no clips, and
    where PyAV is not installed.
    """
    if len(dataset.manifest.code.grid) != 3:
        raise SpecError(f"{dataset.store.root}: holds no clips; mp4 is for datasets of `convert video`")
    tokenizer, store, lines = load_tokenizer(dataset.store, _tokenizer_of(dataset)), Store(folder), []
    for number in sample_numbers(dataset, keys, count):
        sample = dataset[number]
        frames, data = sample_movie(tokenizer, sample)
        name = f"{sample['key'].replace('#', '-')}.mp4"
        store.put(name, data)
        lines.append(f"{name}  {frames} frames, {len(data):,} bytes")
    return lines


def sample_movie(tokenizer: Tokenizer, sample: Mapping[str, Any]) -> tuple[int, bytes]:
    """Frames of a clip of a dataset, and the MP4 file of its reconstruction, in the time of its time stamps."""
    codes = np.asarray(sample["codes"])
    frames = decode_frames(tokenizer, codes[None] if codes.ndim == 3 else codes, clip_size(sample))
    pts = [time - sample["pts"][0] for time in sample["pts"]] if sample.get("pts") else None
    return len(frames), movie(frames, pts, sample.get("fps") or 25.0)


def movie(frames: NDArray[np.uint8], pts: list[int] | None = None, fps: float = 25.0) -> bytes:
    """RGB frames uint8 [frames, height, width, 3] as an MP4 file (H.264, 4:2:0); ``pts``: microseconds of each.

    Odd sides lose their last row or column: 4:2:0 has none.
    """
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise SpecError("mp4 needs PyAV; install it with: pip install 'tokenshard[video]'") from error
    height, width = (side - side % 2 for side in frames.shape[1:3])
    if not height or not width:
        raise SpecError("frames of less than two rows or columns cannot be written as mp4")
    times = pts if pts is not None else [round(number * 1e6 / fps) for number in range(len(frames))]
    with scratch_folder() as scratch:
        path = Path(scratch, "clip.mp4")  # faststart reads the file again
        _encode(path, frames[:, :height, :width], times, fps)
        return path.read_bytes()


def _encode(path: Path, frames: NDArray[np.uint8], times: list[int], fps: float) -> None:
    import av

    with av.open(path, "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream: Any = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        stream.codec_context.time_base = stream.time_base = TIME_BASE
        stream.options = {"crf": CRF, "preset": "medium"}
        stream.codec_context.thread_count = 1
        for time, pixels in zip(times, frames, strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = round(time * TIME_BASE.denominator / 1e6), TIME_BASE
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _tokenizer_of(dataset: Dataset) -> str:
    return f"tokenizer/{dataset.manifest.tokenizer.fingerprint}"
