"""Pictures that show what a tokenizer keeps: original, reconstruction and codes in one line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

SMALLEST_SIDE = 192
LARGEST_SIDE = 512
"""Images are shown with their longer side in this range: small ones enlarged by a whole factor, large ones reduced."""
MARGIN = 24
GAP = 12
HEADING_SIZE = 15
CAPTION_SIZE = 14
BACKGROUND = (255, 255, 255)
INK = (33, 37, 41)
CAPTION_INK = (95, 102, 110)
EMPTY = (240, 241, 243)
RAMP = ("#26184a", "#3c4d8a", "#2a788e", "#35aa7a", "#96d04b", "#fae650")
"""Colours from the lowest to the highest id shown."""
_RAMP = np.array([[int(colour[place : place + 2], 16) for place in (1, 3, 5)] for colour in RAMP])


class PictureRow(NamedTuple):
    """One sample: images uint8 [height, width, 3] (the original may be gone), caption, ids [rows, columns]."""

    original: NDArray[np.uint8] | None
    reconstruction: NDArray[np.uint8]
    caption: str
    codes: NDArray[Any] | None = None


HEADINGS = ("original", "reconstruction", "codes")


def reconstruction_grid(
    rows: Sequence[PictureRow | tuple[Any, ...]], headings: tuple[str, str, str] = HEADINGS
) -> Image.Image:
    """One line of pictures a sample: original | reconstruction | codes, with the caption below.

    Plain tuples in the order of :class:`PictureRow` will do. The first and the last column are left out when no sample
    has anything to show there. Raises ValueError without rows.
    """
    if not rows:
        raise ValueError("a reconstruction grid needs at least one row")
    samples = [PictureRow(*row) for row in rows]
    lines = [_line(sample) for sample in samples]
    shown = [c for c in range(3) if any(line[c] is not None for line in lines)]
    names = [headings[c] for c in shown]
    heading_font, caption_font = ImageFont.load_default(HEADING_SIZE), ImageFont.load_default(CAPTION_SIZE)

    cell_width = max(image.width for line in lines for image in line if image is not None)
    heights = [max(image.height for image in line if image is not None) for line in lines]
    heading_height, caption_height = HEADING_SIZE + GAP, CAPTION_SIZE + 2 * GAP
    width = 2 * MARGIN + len(shown) * cell_width + (len(shown) - 1) * GAP
    canvas = Image.new(
        "RGB", (width, 2 * MARGIN - GAP + heading_height + sum(heights) + len(lines) * caption_height), BACKGROUND
    )
    draw = ImageDraw.Draw(canvas)
    for n, heading in enumerate(names):
        draw.text((MARGIN + n * (cell_width + GAP), MARGIN), heading, INK, heading_font, anchor="la")
    top = MARGIN + heading_height
    for sample, line, height in zip(samples, lines, heights, strict=True):
        for n, column in enumerate(shown):
            left, image = MARGIN + n * (cell_width + GAP), line[column]
            if image is None:
                draw.rectangle((left, top, left + line[1].width - 1, top + line[1].height - 1), fill=EMPTY)
            else:
                canvas.paste(image, (left, top))
        caption = _fitted(sample.caption, caption_font, width - 2 * MARGIN)
        draw.text((MARGIN, top + height + GAP // 2), caption, CAPTION_INK, caption_font, anchor="la")
        top += height + caption_height
    return canvas


def code_map(codes: NDArray[Any]) -> NDArray[np.uint8]:
    """Ids [rows, columns] as colours uint8 [rows, columns, 3], dark for the lowest id shown and light for the highest.

    Where neighbouring ids stand for similar content, as in a `patch` codebook, the picture is recognizable.
    """
    ids = codes.astype(np.float64)
    position = (ids - ids.min()) / max(1.0, float(np.ptp(ids))) * (len(_RAMP) - 1)
    channels = [np.interp(position, np.arange(len(_RAMP)), channel) for channel in _RAMP.T]
    return np.stack(channels, axis=-1).astype(np.uint8)


def _line(sample: PictureRow) -> tuple[Image.Image | None, Image.Image, Image.Image | None]:
    reconstruction = _scaled(sample.reconstruction)
    original = None if sample.original is None else _scaled(sample.original)
    codes = None
    if sample.codes is not None:
        codes = Image.fromarray(code_map(sample.codes)).resize(reconstruction.size, Image.Resampling.NEAREST)
    return original, reconstruction, codes


def _scaled(pixels: NDArray[np.uint8]) -> Image.Image:
    image = Image.fromarray(pixels)
    longer = max(image.size)
    if longer > LARGEST_SIDE:
        size = [max(1, round(side * LARGEST_SIDE / longer)) for side in image.size]
        return image.resize((size[0], size[1]), Image.Resampling.LANCZOS)
    factor = max(1, -(-SMALLEST_SIDE // longer))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _fitted(text: str, font: Any, width: int) -> str:
    """The text, or its end after an ellipsis where it is too wide: the end of a key tells more than its beginning."""
    line = " ".join(text.split())
    if font.getlength(line) <= width:
        return line
    while line and font.getlength("…" + line) > width:
        line = line[1:]
    return "…" + line
