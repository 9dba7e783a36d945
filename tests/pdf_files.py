"""PDF files for tests, written object by object: text at known places, scans, pages that are broken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Word:
    """A word whose first letter begins at (x, y) points from the lower left corner."""

    text: str
    x: float
    y: float


def pdf(
    pages: Sequence[bytes | Sequence[Word]],
    size: tuple[float, float] = (612, 792),
    rotate: int = 0,
    title: str | None = None,
) -> bytes:
    """A file with a page for each content stream or list of words, in 10 point Helvetica."""
    contents = [page if isinstance(page, bytes) else _text(page) for page in pages]
    kids = " ".join(f"{4 + 2 * number} 0 R" for number in range(len(contents)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(contents)} >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for number, content in enumerate(contents):
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {size[0]} {size[1]}] /Rotate {rotate} "
            f"/Resources << /Font << /F1 3 0 R >> >> /Contents {5 + 2 * number} 0 R >>".encode()
        )
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content))
    if title is not None:
        objects.append(f"<< /Title ({title}) /Author (Nobody) >>".encode())
    return assembled(objects, information=len(objects) if title is not None else None)


def scan(width: int, height: int) -> bytes:
    """A page with nothing but a picture of as many black and white pixels."""
    data = bytes(-(-width // 8)) * height
    return b"q 612 0 0 792 0 0 cm\nBI /W %d /H %d /BPC 1 /CS /G ID " % (width, height) + data + b"\nEI\nQ"


def assembled(objects: Sequence[bytes], information: int | None = None) -> bytes:
    """A file of numbered objects, the first its catalogue."""
    data, places = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        places.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    info = b"" if information is None else b" /Info %d 0 R" % information
    trailer = b"trailer\n<< /Size %d /Root 1 0 R%s >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, info, len(data))
    return data + b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1) + table + trailer


def _text(words: Sequence[Word]) -> bytes:
    shown = (f"BT /F1 10 Tf {word.x} {word.y} Td ({word.text}) Tj ET" for word in words)
    return "\n".join(shown).encode()
