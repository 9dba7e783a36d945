"""Decoded frames -> upright RGB pixels, the same on every machine.

FFmpeg's bit-exact scaler converts with the matrix and range that the file states; where it states no matrix, that is
BT.709 from 720 rows on and BT.601 below. Rotation is applied and pixels are made square.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np
from av.filter import Graph
from numpy.typing import NDArray
from PIL import Image

from tokenshard.sources.images.decode import fitted
from tokenshard.spec.videos import VideoSourceSpec

_FLAGS = "bicubic+accurate_rnd+bitexact+full_chroma_int+full_chroma_inp"
_UNSPECIFIED = 2
"""AVCOL_SPC_UNSPECIFIED"""
_HD_ROWS = 720
_SMALL = 32
_FRAMES = 32
"""Room for frames at first; memory that is not written to is not taken."""


class FrameStack:
    """Frames of one size, copied once into one array that grows with them: large clips cost little else."""

    def __init__(self) -> None:
        self._held: NDArray[np.uint8] = np.empty((0, 0, 0, 3), np.uint8)
        self._count = 0
        self.uniform = True
        """whether all of them had the size of the first"""

    def append(self, pixels: NDArray[np.uint8]) -> None:
        """Add a frame uint8 [height, width, 3]."""
        if not self._count:
            self._held = np.empty((_FRAMES, *pixels.shape), np.uint8)
        if pixels.shape != self._held.shape[1:]:
            self.uniform = False
            return
        if self._count == len(self._held):
            grown = np.empty((2 * self._count, *pixels.shape), np.uint8)
            grown[: self._count] = self._held
            self._held = grown
        self._held[self._count] = pixels
        self._count += 1

    def array(self) -> NDArray[np.uint8]:
        """uint8 [frames, height, width, 3]."""
        return self._held[: self._count]


class Pictures:
    """Frames of one stream as pixels; filters are built once a kind of frame."""

    def __init__(self, spec: VideoSourceSpec, aspect: Fraction) -> None:
        self._spec, self._aspect = spec, aspect
        self._graphs: dict[tuple[int, int, str, int], Graph] = {}

    def rgb(self, frame: av.VideoFrame) -> NDArray[np.uint8]:
        """uint8 [height, width, 3], in the size of the spec; perhaps a view of memory that goes with the next frame."""
        key = (frame.width, frame.height, frame.format.name, int(frame.colorspace))
        if key not in self._graphs:
            width, height = _square(frame.width, frame.height, self._aspect)
            formats = ("gbrap", "rgba") if _has_alpha(frame) else ("gbrp", "rgb24")
            self._graphs[key] = _graph(frame, width, height, formats)
        self._graphs[key].vpush(frame)
        made = self._graphs[key].vpull()
        turns = round((frame.rotation or 0) / 90) % 4
        if not turns and self._spec.height_width is None and made.format.name == "rgb24":
            plane = made.planes[0]
            rows: NDArray[np.uint8] = np.frombuffer(memoryview(plane), np.uint8).reshape(made.height, plane.line_size)
            return rows[:, : 3 * made.width].reshape(made.height, made.width, 3)
        pixels = made.to_ndarray()
        image = Image.fromarray(np.ascontiguousarray(np.rot90(pixels, turns)))
        if image.mode == "RGBA":
            behind = Image.new("RGBA", image.size, (*self._spec.background, 255))
            image = Image.alpha_composite(behind, image).convert("RGB")
        return fitted(image, self._spec)


def brightness(frame: av.VideoFrame) -> NDArray[np.float32]:
    """A small grey version of a frame, float32 [32, 32] in [0, 1]."""
    graph = _graph(frame, _SMALL, _SMALL, ("gray",), "area+accurate_rnd+bitexact")
    graph.vpush(frame)
    small: NDArray[np.float32] = (graph.vpull().to_ndarray() / 255).astype(np.float32)
    return small


def _graph(frame: av.VideoFrame, width: int, height: int, formats: Sequence[str], flags: str = _FLAGS) -> Graph:
    """A filter that scales and converts to the first format, then to the others.

    FFmpeg converts to planes of colours two to three times as fast as to packed pixels, with the same bits.
    """
    graph = Graph()
    graph.threads = 1
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1, 1000)
    )
    matrix = ""
    if frame.colorspace == _UNSPECIFIED:
        matrix = ":in_color_matrix=" + ("bt709" if frame.height >= _HD_ROWS else "bt601")
    nodes = [source, graph.add("scale", f"{width}:{height}:flags={flags}:out_range=full{matrix}")]
    for number, pixels in enumerate(formats):
        nodes += [graph.add("scale", f"flags={flags}")] if number else []
        nodes.append(graph.add("format", pixels))
    graph.link_nodes(*nodes, graph.add("buffersink")).configure()
    return graph


def _square(width: int, height: int, aspect: Fraction) -> tuple[int, int]:
    """Size with square pixels: the side that is too short grows."""
    if aspect <= 0 or aspect == 1 or not Fraction(1, 8) <= aspect <= 8:
        return width, height
    return (round(width * aspect), height) if aspect > 1 else (width, round(height / aspect))


def _has_alpha(frame: av.VideoFrame) -> bool:
    return any(component.is_alpha for component in frame.format.components)
