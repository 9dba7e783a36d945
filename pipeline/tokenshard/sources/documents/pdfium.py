"""PDF files through PDFium: pages, their text and their images.

PDFium is not thread-safe: whatever calls it holds :data:`LOCK`. Its own handles are kept here and closed by us, under
the lock, since a finalizer of another library could run on any thread.
"""

from __future__ import annotations

import ctypes
import math
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pypdfium2
import pypdfium2.raw as pdfium
from numpy.typing import NDArray

from tokenshard.errors import InputError

LOCK = threading.RLock()
VERSION = str(pypdfium2.PDFIUM_INFO)
Pixels = NDArray[np.uint8]

_NESTING = 8
"""Forms within forms that pictures are looked for in."""
_FAR = 1 << 24
"""Places on a page are asked for in so many steps a side."""


class PdfDamaged(InputError):
    """The file is no PDF, or so damaged that it cannot be opened."""


class PdfEncrypted(InputError):
    """The file needs a password, or another one."""


class PdfUnsupported(InputError):
    """The file is protected in a way that PDFium does not know."""


class PageDamaged(InputError):
    """One page cannot be read; others of its document may."""


class PageTooLarge(InputError):
    """A page, a picture on it, or its text is over a limit of the job."""


class PageTooSlow(InputError):
    """A page takes longer than the job allows."""


_OPENING = {
    pdfium.FPDF_ERR_PASSWORD: PdfEncrypted,
    pdfium.FPDF_ERR_SECURITY: PdfUnsupported,
}


class Pdf:
    """An open PDF file. Raises one of the errors above where it cannot be opened."""

    def __init__(self, data: bytes, password: str | None = None) -> None:
        if not data:
            raise PdfDamaged("the file is empty")
        secret = None if password is None else password.encode()
        with LOCK:
            handle = pdfium.FPDF_LoadMemDocument64(data, len(data), secret)
            if not handle:
                raise _opening_error(pdfium.FPDF_GetLastError(), password)
            if pdfium.FPDF_GetPageCount(handle) < 1:
                pdfium.FPDF_CloseDocument(handle)
                raise PdfDamaged("no page can be found in the file; it is damaged")
            form = _form(handle)
        self._handle = handle
        self._form = form
        self._finalizer = weakref.finalize(self, _close, handle, form, data)
        self._finalizer.atexit = False  # the library may be gone by then

    def __len__(self) -> int:
        with LOCK:
            return int(pdfium.FPDF_GetPageCount(self._handle))

    def close(self) -> None:
        """Free it; a second call does nothing."""
        self._finalizer()

    def metadata(self, name: str) -> str | None:
        """A field of the document information, e.g. `Title`; None where it is missing or empty."""
        with LOCK:
            size = pdfium.FPDF_GetMetaText(self._handle, name.encode(), None, 0)
            buffer = ctypes.create_string_buffer(size)
            pdfium.FPDF_GetMetaText(self._handle, name.encode(), buffer, size)
        text = buffer.raw.decode("utf-16-le", "ignore").partition("\0")[0].strip()
        return text or None

    @contextmanager
    def page(self, index: int) -> Iterator[Page]:
        """Page ``index`` (from 0), with the lock held. Raises PageDamaged where it cannot be loaded."""
        with LOCK:
            handle = pdfium.FPDF_LoadPage(self._handle, index)
            if not handle:
                raise PageDamaged(f"page {index + 1} cannot be loaded: it is missing or damaged")
            form = self._form[0] if self._form else None
            if form:
                pdfium.FORM_OnAfterLoadPage(handle, form)
            try:
                yield Page(handle, form)
            finally:
                if form:
                    pdfium.FORM_OnBeforeClosePage(handle, form)
                pdfium.FPDF_ClosePage(handle)


class Page:
    """A loaded page; only inside ``with pdf.page(…)``."""

    def __init__(self, handle: Any, form: Any) -> None:
        self._handle, self._form = handle, form
        self.width, self.height = float(pdfium.FPDF_GetPageWidthF(handle)), float(pdfium.FPDF_GetPageHeightF(handle))
        """points (1/72 inch), of the upright page"""
        self.rotation = 90 * int(pdfium.FPDFPage_GetRotation(handle))
        """degrees that the page is turned clockwise to be upright"""
        if not (0 < self.width < math.inf and 0 < self.height < math.inf):
            raise PageDamaged(f"the page is {self.width:g} x {self.height:g} points")

    def is_blank(self) -> bool:
        """Whether nothing at all is drawn on it."""
        return int(pdfium.FPDFPage_CountObjects(self._handle)) < 1

    def check_pictures(self, max_pixels: int) -> None:
        """Raises PageTooLarge where a picture of the page has more pixels: such can be megabytes out of a few bytes."""
        width, height = ctypes.c_uint(), ctypes.c_uint()
        for item in _objects(self._handle, pdfium.FPDFPage_CountObjects, pdfium.FPDFPage_GetObject):
            if pdfium.FPDFImageObj_GetImagePixelSize(item, width, height) and width.value * height.value > max_pixels:
                raise PageTooLarge(
                    f"a picture of {width.value} x {height.value} pixels is over max_pixels ({max_pixels}); raise it "
                    "if you trust the file"
                )

    def characters(self, max_chars: int) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """Code points [n] of the text layer, and where they are [n, 4]: left, top, right, bottom as fractions.

        Line ends, and spaces that a file leaves out, are among them. Raises PageTooLarge above ``max_chars``.
        """
        layer = pdfium.FPDFText_LoadPage(self._handle)
        if not layer:
            raise PageDamaged("the text layer cannot be loaded")
        try:
            count = max(0, int(pdfium.FPDFText_CountChars(layer)))
            if count > max_chars:
                raise PageTooLarge(f"{count} characters of text are over max_chars ({max_chars})")
            codes, corners = np.zeros(count, np.int32), np.zeros((count, 4))
            sides = [ctypes.c_double() for _ in range(4)]
            places = [ctypes.byref(side) for side in sides]
            for number in range(count):
                codes[number] = pdfium.FPDFText_GetUnicode(layer, number)
                pdfium.FPDFText_GetCharBox(layer, number, *places)
                corners[number] = [side.value for side in sides]  # left, right, bottom, top in page space
        finally:
            pdfium.FPDFText_ClosePage(layer)
        return codes, self._fractions(corners)

    def _fractions(self, corners: NDArray[np.float64]) -> NDArray[np.float64]:
        """[n, 4] left, right, bottom, top in page space -> left, top, right, bottom of the upright page."""
        box = pdfium.FS_RECTF()
        pdfium.FPDF_GetPageBoundingBox(self._handle, box)
        wide, high = box.right - box.left or 1.0, box.top - box.bottom or 1.0
        origin = np.array(self._place(box.left, box.bottom))
        across = (np.array(self._place(box.right, box.bottom)) - origin) / wide
        up = (np.array(self._place(box.left, box.top)) - origin) / high
        x, y = corners[:, :2] - box.left, corners[:, 2:] - box.bottom
        ends = [origin + x[:, [side]] * across + y[:, [side]] * up for side in range(2)]
        return np.concatenate([np.minimum(*ends), np.maximum(*ends)], axis=1)

    def _place(self, x: float, y: float) -> tuple[float, float]:
        right, down = ctypes.c_int(), ctypes.c_int()
        pdfium.FPDF_PageToDevice(self._handle, 0, 0, _FAR, _FAR, 0, x, y, right, down)
        return right.value / _FAR, down.value / _FAR

    def image(self, height: int, width: int, max_seconds: float) -> Pixels:
        """The page on white (uint8 [height, width, 3]), with its annotations and filled-in forms.

        Raises PageTooSlow after ``max_seconds``; PDFium looks at the clock between the objects of a page, and within
        large pictures.
        """
        pixels = np.full((height, width, 3), 255, np.uint8)
        bitmap = pdfium.FPDFBitmap_CreateEx(
            width, height, pdfium.FPDFBitmap_BGR, pixels.ctypes.data_as(ctypes.c_void_p), 3 * width
        )
        if not bitmap:
            raise PageDamaged(f"no image of {width} x {height} pixels can be made")
        where = (bitmap, self._handle, 0, 0, width, height, 0, pdfium.FPDF_ANNOT | pdfium.FPDF_REVERSE_BYTE_ORDER)
        deadline = time.monotonic() + max_seconds
        pause = pdfium.IFSDK_PAUSE(version=1)
        pause.NeedToPauseNow = type(pause.NeedToPauseNow)(lambda _: time.monotonic() > deadline)
        try:
            status = pdfium.FPDF_RenderPageBitmap_Start(*where, pause)
            pdfium.FPDF_RenderPage_Close(self._handle)
            if status == pdfium.FPDF_RENDER_TOBECONTINUED:
                raise PageTooSlow(f"drawing the page takes more than max_seconds ({max_seconds:g})")
            if status != pdfium.FPDF_RENDER_DONE:
                raise PageDamaged("the page cannot be drawn")
            if self._form:
                pdfium.FPDF_FFLDraw(self._form, *where)
        finally:
            pdfium.FPDFBitmap_Destroy(bitmap)
        return pixels


def _objects(parent: Any, count: Callable[[Any], int], get: Callable[[Any, int], Any], depth: int = 0) -> Iterator[Any]:
    """Picture objects of a page, also those inside its forms."""
    for number in range(count(parent)):
        item = get(parent, number)
        kind = pdfium.FPDFPageObj_GetType(item)
        if kind == pdfium.FPDF_PAGEOBJ_IMAGE:
            yield item
        elif kind == pdfium.FPDF_PAGEOBJ_FORM and depth < _NESTING:
            yield from _objects(item, pdfium.FPDFFormObj_CountObjects, pdfium.FPDFFormObj_GetObject, depth + 1)


def _form(document: Any) -> tuple[Any, Any] | None:
    """The environment that forms are drawn with, and its settings (kept as long); None for a file without forms."""
    if pdfium.FPDF_GetFormType(document) == pdfium.FORMTYPE_NONE:
        return None
    settings = pdfium.FPDF_FORMFILLINFO(version=2)
    form = pdfium.FPDFDOC_InitFormFillEnvironment(document, settings)
    return (form, settings) if form else None


def _close(document: Any, form: tuple[Any, Any] | None, data: bytes) -> None:
    """``data``: PDFium reads from it as long as the document is open."""
    with LOCK:
        if form is not None:
            pdfium.FPDFDOC_ExitFormFillEnvironment(form[0])
        pdfium.FPDF_CloseDocument(document)


def _opening_error(code: int, password: str | None) -> InputError:
    kind = _OPENING.get(code, PdfDamaged)
    if kind is PdfEncrypted and password is None:
        return kind("the file is encrypted; give its password with passwords_env or passwords_file")
    if kind is PdfEncrypted:
        return kind("the file is encrypted, and the password given for it does not open it")
    if kind is PdfUnsupported:
        return kind("the file is protected by a scheme that PDFium does not know; save it without protection")
    return kind("not a PDF file, or damaged beyond repair")
