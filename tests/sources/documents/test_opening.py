"""Opening PDF files in a process apart: nothing that happens to it happens to the job."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from threading import Timer

import pytest

from pdf_files import Word, pdf
from tokenshard.sources.documents.opening import Opener, PdfCrashes, PdfHangs
from tokenshard.sources.documents.pdfium import PdfDamaged

FILE = pdf([[Word("one", 72, 72)], []], title="Title")


@pytest.fixture
def opener() -> Iterator[Opener]:
    made = Opener(max_seconds=30)
    yield made
    made.close()


def process_of(opener: Opener) -> int:
    assert opener.process is not None
    return opener.process.pid


def test_one_process_opens_file_after_file(opener: Opener) -> None:
    assert (opener.open(FILE, None).pages, opener.open(FILE, "unneeded").title) == (2, "Title")
    first = process_of(opener)
    with pytest.raises(PdfDamaged, match="not a PDF file"):
        opener.open(b"text", None)
    assert opener.open(FILE, None).metadata == '{"author": "Nobody"}'
    assert process_of(opener) == first


def test_a_file_that_kills_the_process_is_bad_and_the_next_is_opened(opener: Opener) -> None:
    opener.open(FILE, None)
    first = process_of(opener)
    os.kill(first, signal.SIGSTOP)
    Timer(0.2, os.kill, (first, signal.SIGKILL)).start()
    with pytest.raises(PdfCrashes):
        opener.open(FILE * 1000, None)  # more than a pipe holds
    assert opener.open(FILE, None).pages == 2


def test_a_file_that_hangs_is_bad_and_the_next_is_opened() -> None:
    opener = Opener(max_seconds=30)
    opener.open(FILE, None)
    opener._max_seconds = 0.3
    os.kill(process_of(opener), signal.SIGSTOP)
    with pytest.raises(PdfHangs, match=r"max_seconds \(0.3\)"):
        opener.open(FILE, None)
    opener._max_seconds = 30
    assert opener.open(FILE, None).pages == 2
    opener.close()
