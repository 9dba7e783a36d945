"""Pictures of samples as PNG: what their ids decode to, and the ids themselves as colours."""

from __future__ import annotations

import io
import math
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tokenshard.report.pictures import code_map
from tokenshard.spec.tokenizer import PAGES
from tokenshard.tokenizers.base import Tokenizer
from tokenshard.tokenizers.frames import clip_size, decode_frames
from tokenshard.viewer.opened import Missing, Opened

THUMBNAIL = 192
"""Pixels of the longer side that a thumbnail has at most. Smaller pictures stay as they are; the page enlarges them."""
LARGEST = 2_048
"""The same of a picture of its own page."""
THUMBNAILS_KEPT = 480
TOGETHER = 8
"""Thumbnails that are made from one batch."""
PIXELS_AT_ONCE = 1 << 20
"""Of the pictures that a network decodes together."""
NOTHING = 128
"""Grey level of places without an id."""
Pixels = NDArray[np.uint8]


def png(pixels: Pixels, longest: int = LARGEST) -> bytes:
    """RGB uint8 [height, width, 3] as a PNG file, reduced to ``longest`` pixels of its longer side."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if max(image.size) > longest:
        image.thumbnail((longest, longest), Image.Resampling.LANCZOS, reducing_gap=2.0)
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1 if longest == THUMBNAIL else 6)
    return file.getvalue()


def picture(opened: Opened, number: int, frame: int = 0) -> Pixels:
    """What a sample looks like: its reconstruction, a frame of it, the relief of a tile, the attention of a page.

    Ids that stand for no pixels are shown themselves. Raises TokenshardError where files are damaged.
    """
    return pictures_of(opened, [number], frame)[0]


def pictures_of(opened: Opened, numbers: Sequence[int], frame: int = 0) -> list[Pixels]:
    """:func:`picture` of several samples; those of one size are decoded together."""
    numbers = [opened.checked(number) for number in numbers]
    samples = [opened.sample(number) for number in numbers]
    if opened.kind == "grid":
        from tokenshard.viewer.maps import tile_picture

        return [tile_picture(opened, sample) for sample in samples]
    if opened.described.kind == PAGES:
        return [page_picture(opened, sample) for sample in samples]
    if not opened.decodes:
        return [ids_picture(laid_out(opened, sample, 0, frame)) for sample in samples]
    if samples[0]["codes"].ndim == 4:
        return [frames_of(opened.tokenizer, sample, frame)[0] for sample in samples]
    together: dict[Any, list[int]] = {}
    for place, sample in enumerate(samples):
        together.setdefault((sample["codes"].shape, picture_size(sample)), []).append(place)
    found: list[Any] = [None] * len(samples)
    for (_, size), places in together.items():
        pixels = math.prod(size or samples[places[0]]["codes"].shape[1:])
        step = max(1, PIXELS_AT_ONCE // max(1, pixels))
        for first in range(0, len(places), step):
            some = places[first : first + step]
            decoded = opened.tokenizer.decode(np.stack([samples[place]["codes"] for place in some]), size)
            for place, shown in zip(some, decoded, strict=True):
                found[place] = shown
    return found


def picture_size(sample: dict[str, Any]) -> tuple[int, int] | None:
    """Height and width of the input of a sample, where the dataset has them."""
    return (sample["height"], sample["width"]) if "height" in sample else None


def frames_of(tokenizer: Tokenizer, sample: dict[str, Any], frame: int) -> Pixels:
    """One frame of a clip, [1, height, width, 3]. Raises Missing where it has no such frame."""
    frames, height, width = clip_size(sample)
    if not 0 <= frame < frames:
        raise Missing(f"no frame {frame}; the clip has {frames}")
    codes = sample["codes"]
    if tokenizer.spec.modality != "video":
        return decode_frames(tokenizer, codes[:, frame : frame + 1], (1, height, width))
    through = -(-frame // tokenizer.spec.downsample[0]) + 1  # its first token covers one frame, later ones several
    return decode_frames(tokenizer, codes[:, :through], (frame + 1, height, width))[frame:]


def page_picture(opened: Opened, sample: dict[str, Any]) -> Pixels:
    """The page itself, where originals are at hand; else the attention that its patches received."""
    from tokenshard.report.pages import attention
    from tokenshard.retrieval.patches import Patches

    original = opened.original(sample["key"])
    if original is not None and original.size:
        return original
    return enlarged(attention(Patches.of(sample)), 16)


def laid_out(opened: Opened, sample: dict[str, Any], level: int, frame: int = 0) -> NDArray[np.int64]:
    """Ids of a level as a picture [rows, columns], -1 where there is none: those of a page on its patches.

    Raises Missing where there is no such level or frame.
    """
    codes = sample["codes"]
    if not 0 <= level < len(codes):
        raise Missing(f"no level {level}; the ids have {len(codes)}")
    ids = codes[level].astype(np.int64)
    if opened.described.kind == PAGES:
        from tokenshard.retrieval.patches import Patches

        places = Patches.of(sample)
        if places.grid[0] > 1:
            found = np.full(places.grid[0] * places.grid[1], -1, np.int64)
            found[places.positions] = ids
            return found.reshape(places.grid)
    if ids.ndim == 3:
        if not 0 <= frame < len(ids):
            raise Missing(f"no tokens of frame {frame}; there are {len(ids)} groups")
        ids = ids[frame]
    if ids.ndim == 1:
        side = max(1, math.ceil(math.sqrt(len(ids))))
        ids = np.pad(ids, (0, -len(ids) % side), constant_values=-1).reshape(-1, side)
    return ids if ids.size else np.full((1, 1), -1, np.int64)


def ids_picture(ids: NDArray[np.int64], order: NDArray[Any] | None = None) -> Pixels:
    """Ids [rows, columns] as colours, one pixel each. ``order``: [codes] what is shown in place of the ids."""
    there = ids >= 0
    if not there.any():
        return np.full((*ids.shape, 3), NOTHING, np.uint8)
    shown = np.where(there, ids, int(ids.max())) if order is None else order[np.where(there, ids, ids[there][0])]
    return np.where(there[..., None], code_map(shown), np.uint8(NOTHING))


def enlarged(pixels: Pixels, factor: int) -> Pixels:
    """Each pixel as a square of them."""
    return pixels.repeat(factor, 0).repeat(factor, 1)


class Thumbnails:
    """Small pictures of samples. Those of a page are decoded together, before they are asked for."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened
        self._made: OrderedDict[int, Future[bytes]] = OrderedDict()
        self._lock = Lock()
        self._worker = ThreadPoolExecutor(1, "thumbnails")

    def expect(self, numbers: Sequence[int]) -> None:
        """Begin to make those of a page."""
        with self._lock:
            new = {number: Future[bytes]() for number in numbers if number not in self._made}
            self._made |= new
            while len(self._made) > THUMBNAILS_KEPT:
                self._made.popitem(last=False)
        for first in range(0, len(new), TOGETHER):
            self._worker.submit(self._make, dict(list(new.items())[first : first + TOGETHER]))

    def __call__(self, number: int) -> bytes:
        """The PNG of one. Raises what decoding raised."""
        self._opened.checked(number)
        self.expect([number])
        with self._lock:
            future = self._made.get(number)
        return future.result() if future is not None else png(picture(self._opened, number), THUMBNAIL)

    def _make(self, wanted: dict[int, Future[bytes]]) -> None:
        try:
            found = pictures_of(self._opened, list(wanted))
        except Exception:  # one of them is bad: the others are not
            found = []
        for place, (number, future) in enumerate(wanted.items()):
            try:
                pixels = found[place] if found else picture(self._opened, number)
                future.set_result(png(pixels, THUMBNAIL))
            except Exception as error:
                with self._lock:
                    self._made.pop(number, None)
                future.set_exception(error)
