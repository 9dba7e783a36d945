"""Characters of a page -> its text, with the place of every word."""

from __future__ import annotations

import re
import unicodedata

import numpy as np
from numpy.typing import NDArray

from tokenshard.sources.base import TextLayer

_HYPHEN = 0x02
"""What PDFium makes of a hyphen at the end of a line, in the middle of a word."""
_FAR = 2.0
"""Heights of a letter between two of them that do not belong to one word."""
_PRESENTATION = re.compile("[\ufb00-\ufdff\ufe70-\ufefc]")
"""Ligatures, and Arabic and Hebrew letters in the form that their place in a word gives them."""


def page_text(codes: NDArray[np.int32], places: NDArray[np.float64]) -> TextLayer:
    """Text layer of characters [n] and their boxes [n, 4] (left, top, right, bottom as fractions of the page).

    A word parted by a hyphen at the end of a line is one word, placed where it begins. Words that lie outside the page
    are left out: nobody sees them.
    """
    text: list[str] = []
    spans: list[tuple[int, int]] = []
    boxes: list[NDArray[np.float64]] = []
    length = 0
    for first, last in _words(codes, places):
        word = _characters(codes[first:last])
        box = _box(codes[first:last], places[first:last])
        if not word or not _is_visible(box):
            continue
        if text:
            text.append("\n" if _breaks_line(codes, first) else " ")
            length += 1
        text.append(word)
        spans.append((length, length + len(word)))
        boxes.append(box)
        length += len(word)
    return TextLayer(
        "".join(text),
        np.array(spans, np.int32).reshape(-1, 2),
        np.array(boxes, np.float32).reshape(-1, 4).clip(0, 1),
    )


def plain_text(text: str) -> TextLayer:
    """Text that was never on a page."""
    return TextLayer(text, np.zeros((0, 2), np.int32), None)


def _words(codes: NDArray[np.int32], places: NDArray[np.float64]) -> list[tuple[int, int]]:
    """Ranges of characters that stand together: without space between them, and on one line.

    PDFium does not always see that a line ends where the next word begins right below.
    """
    words: list[tuple[int, int]] = []
    first: int | None = None
    jumps = _jumps(codes, places)
    for number, code in enumerate(codes.tolist()):
        space = _is_space(code)
        if first is not None and (space or jumps[number]):
            words.append((first, number))
            first = None
        if first is None and not space:
            first = number
    if first is not None:
        words.append((first, len(codes)))
    return words


def _jumps(codes: NDArray[np.int32], places: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether each character lies far above or below the one before it, which is no hyphen at the end of a line."""
    heights = places[:, 3] - places[:, 1]
    gaps = np.maximum(places[1:, 1] - places[:-1, 3], places[:-1, 1] - places[1:, 3])
    far = (gaps > _FAR * np.maximum(heights[1:], heights[:-1])) & (heights[1:] > 0) & (heights[:-1] > 0)
    parted = (codes[:-1] == _HYPHEN) | (codes[1:] == _HYPHEN)
    return np.concatenate([np.zeros(min(1, len(codes)), np.bool_), far & ~parted])


def _is_space(code: int) -> bool:
    return (code <= 0x20 and code != _HYPHEN) or code in (0x7F, 0xFFFE, 0xFFFF) or (code > 0x7F and chr(code).isspace())


def _characters(codes: NDArray[np.int32]) -> str:
    """Letters as they are read: presentation forms become the letters they stand for."""
    units = b"".join(
        int(code).to_bytes(2, "little") if code <= 0xFFFF else chr(code).encode("utf-16-le", "ignore")
        for code in codes.tolist()
        if code != _HYPHEN
    )
    text = units.decode("utf-16-le", "ignore")
    return _PRESENTATION.sub(lambda found: unicodedata.normalize("NFKC", found[0]), text).replace(" ", "")


def _box(codes: NDArray[np.int32], places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Around the characters up to a hyphen at the end of a line."""
    parted = np.flatnonzero(codes[1:] == _HYPHEN)
    part = places[: parted[0] + 1] if len(parted) else places
    return np.concatenate([part[:, :2].min(0), part[:, 2:].max(0)])


def _is_visible(box: NDArray[np.float64]) -> bool:
    middle = (box[:2] + box[2:]) / 2
    return bool((middle >= 0).all() and (middle < 1).all())


def _breaks_line(codes: NDArray[np.int32], first: int) -> bool:
    return first > 0 and int(codes[first - 1]) in (0x0A, 0x0D)
