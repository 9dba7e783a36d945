"""One page, of a PDF or a picture of one: its text, its image and its columns."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock

import numpy as np
from PIL import Image

from tokenshard.sources.documents.base import PageContent, staged
from tokenshard.sources.documents.pdfium import PageTooLarge, Pdf
from tokenshard.sources.documents.words import page_text, plain_text
from tokenshard.sources.images.decode import decode_image
from tokenshard.spec.documents import DocumentSourceSpec
from tokenshard.spec.images import ImageSourceSpec

_POINTS = 72.0
"""Of an inch."""


class SharedPdf:
    """A PDF file that ``uses`` pages are read from, on any threads: opened for the first, closed after the last."""

    def __init__(self, fetch: Callable[[], bytes], password: str | None, uses: int) -> None:
        self._fetch, self._password, self._left = fetch, password, uses
        self._lock = Lock()
        self._pdf: Pdf | None = None

    def read(self, index: int, spec: DocumentSourceSpec) -> PageContent:
        """Page ``index`` (from 0). Raises ReadError."""
        try:
            pdf = self._opened()
            return staged("decode", lambda: read_page(pdf, index, spec))
        finally:
            with self._lock:
                self._left -= 1
                if not self._left and self._pdf is not None:
                    self._pdf.close()

    def _opened(self) -> Pdf:
        with self._lock:
            if self._pdf is None:
                data = staged("fetch", self._fetch)
                self._pdf = staged("decode", lambda: Pdf(data, self._password))
            return self._pdf


def read_page(pdf: Pdf, index: int, spec: DocumentSourceSpec) -> PageContent:
    """Text of a page, and its image where the spec has pages drawn. Raises one of PDFium's errors."""
    with pdf.page(index) as page:
        page.check_pictures(spec.max_pixels)
        text = page_text(*page.characters(spec.max_chars))
        columns = {
            "page_width": page.width,
            "page_height": page.height,
            "page_rotation": page.rotation,
            "needs_ocr": not text.text and not page.is_blank(),
            "text": text.text,
        }
        if not spec.render:
            return PageContent(text, columns)
        height, width = _pixels(page.height, page.width, spec)
        return PageContent(text, columns, page.image(height, width, spec.max_seconds))


def read_scan(data: bytes, spec: DocumentSourceSpec) -> PageContent:
    """A page that is an image file. It has no text; its image is made smaller where it is over `page_pixels`."""
    image = decode_image(data, ImageSourceSpec(path=spec.path, max_pixels=spec.max_pixels))
    height, width = image.shape[:2]
    columns = {
        "page_width": float(width),
        "page_height": float(height),
        "page_rotation": 0,
        "needs_ocr": True,
        "text": "",
    }
    if not spec.render:
        return PageContent(plain_text(""), columns)
    if spec.dpi is None and height * width > spec.page_pixels:
        rows, across = _pixels(height, width, spec)
        image = np.array(Image.fromarray(image).resize((across, rows), Image.Resampling.LANCZOS, reducing_gap=3))
    return PageContent(plain_text(""), columns, image)


def _pixels(height: float, width: float, spec: DocumentSourceSpec) -> tuple[int, int]:
    """Pixels of the image of a page of that size in points; as large as `page_pixels` allows, or by `dpi`."""
    scale = (spec.page_pixels / (height * width)) ** 0.5 if spec.dpi is None else spec.dpi / _POINTS
    rows, across = max(1, int(height * scale)), max(1, int(width * scale))
    if rows * across > spec.max_pixels:
        raise PageTooLarge(
            f"{across} x {rows} pixels at this resolution are over max_pixels ({spec.max_pixels}); lower dpi"
        )
    return rows, across
