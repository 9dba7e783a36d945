"""Files form: PDF files and page images, in a folder and below, or in tar archives; one input a page.

Planning opens each PDF once, in a process apart, to count its pages. A document that cannot be opened is one reject; a
page that cannot be read is one too, and the other pages of its document are read all the same.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import pyarrow as pa

from tokenshard.errors import InputError, StoreError
from tokenshard.sources.documents.base import DocumentSource, PageContent, Read, staged
from tokenshard.sources.documents.opening import Openers, openers
from tokenshard.sources.documents.pages import SharedPdf, read_scan
from tokenshard.sources.documents.passwords import Passwords
from tokenshard.sources.documents.pdfium import PageTooLarge
from tokenshard.sources.images.base import fetch_file
from tokenshard.sources.images.folder import is_image_name, is_litter
from tokenshard.sources.images.tar import TAR_ERRORS, is_compressed, members
from tokenshard.sources.images.webdataset import TAR_NAME
from tokenshard.sources.keys import UniqueKeys, escape_name, unescape_name
from tokenshard.sources.outcome import cleaned
from tokenshard.sources.plan import Input, plan_batches, require_usable
from tokenshard.spec.documents import chosen_pages

_AHEAD = 4
"""Documents read and opened ahead at planning, on as many threads."""
_OPENING = 20.0
"""Seconds that opening a document may take at least: a process may have to start for it."""


@dataclass(frozen=True)
class _Place:
    """Where the bytes of a document lie."""

    uri: str
    name: str
    """of the document: its path, or that of its archive and its own in there"""
    offset: int | None
    size: int

    @property
    def is_pdf(self) -> bool:
        return self.name.lower().endswith(".pdf")


class DocumentFiles(DocumentSource):
    """PDF files and page images; ``key`` is ``<path below the source>#<page from 1>``."""

    form = "files"
    planned = ("document", "page", "pages", "document_sha256", "title", "metadata", "document_bytes")

    def plan(self) -> Iterator[pa.RecordBatch]:
        self._passwords = Passwords.of(self.spec, self.storage_options)
        meta = [
            *((pa.field(name, pa.string())) for name in ("document", "document_sha256", "title", "metadata")),
            *((pa.field(name, pa.int32())) for name in ("page", "pages")),
            pa.field("document_bytes", pa.int64()),
        ]
        yield from require_usable(plan_batches(self._inputs(), meta, UniqueKeys()), self.spec.path, "documents")

    # -- planning -----------------------------------------------------------------------------------------------------

    def _inputs(self) -> Iterator[Input]:
        """Pages of all documents in order; documents are opened some ahead."""
        running: deque[Future[list[Input]] | Input] = deque()
        with openers(_AHEAD, max(_OPENING, self.spec.max_seconds)) as opening, ThreadPoolExecutor(_AHEAD) as pool:
            for found in self._found():
                running.append(found if isinstance(found, Input) else pool.submit(self._pages, opening, found))
                while len(running) >= _AHEAD:
                    yield from _finished(running.popleft())
            while running:
                yield from _finished(running.popleft())

    def _found(self) -> Iterator[_Place | Input]:
        """Documents, and what stands in the place of those that can never be read."""
        unreadable: list[Input] = []

        def skipped(name: str, reason: str) -> None:
            if not is_litter(name) and self._is_document(name):
                unreadable.append(_failed(escape_name(name), f"unreadable: {reason}"))

        for entry in self.files.list(skipped):
            yield from unreadable
            unreadable.clear()
            name = escape_name(entry.name)
            if is_litter(entry.name):
                continue
            if TAR_NAME.search(entry.name):
                yield from self._archived(entry.name, name)
            elif self.files.what == "file" or self._is_document(entry.name):
                yield _Place(name, name, None, entry.size)
        yield from unreadable

    def _archived(self, archive: str, uri: str) -> Iterator[_Place | Input]:
        if is_compressed(self.store, archive):
            reason = "pages are read in any order; unpack it, or repack it without compression"
            yield _failed(uri, f"compressed archive: {reason}")
            return
        try:
            for member in members(self.store, archive, compressed=False):
                name = f"{uri}/{escape_name(member.name.removeprefix('./'))}"
                if is_litter(member.name.removeprefix("./")) or not self._is_document(member.name):
                    continue
                if member.name.startswith("/") or ".." in member.name.split("/"):
                    yield Input(name, uri, error="unsafe member name: it points outside the archive")
                elif member.sparse:
                    yield Input(name, uri, error="sparse member: cannot be read as a byte range; repack the archive")
                else:
                    yield _Place(uri, name, member.offset, member.size)
        except TAR_ERRORS as error:
            yield _failed(uri, f"damaged archive: {cleaned(str(error))}; the documents before the damage are used")

    def _is_document(self, name: str) -> bool:
        return is_image_name(name, self.spec.extensions)

    def _pages(self, opening: Openers, place: _Place) -> list[Input]:
        """Inputs of one document: its pages, or one error."""
        try:
            data = self._bytes(place)
            digest = hashlib.sha256(data).hexdigest()
            if place.is_pdf:
                return self._pages_of_pdf(opening, place, data, digest)
            return [_page_input(place, 0, 1, [0], {"document_sha256": digest, "title": None, "metadata": None})]
        except (InputError, OSError, StoreError) as error:
            if isinstance(error, StoreError) and error.transient:
                raise
            return [Input(place.name, place.uri, error=f"{type(error).__name__}: {cleaned(str(error))}")]

    def _pages_of_pdf(self, opening: Openers, place: _Place, data: bytes, digest: str) -> list[Input]:
        found = opening.open(data, self._passwords.of_file(place.name))
        if found.pages > self.spec.max_pages:
            raise PageTooLarge(f"{found.pages} pages are over max_pages ({self.spec.max_pages}); raise it")
        known = {"document_sha256": digest, "title": found.title, "metadata": found.metadata}
        chosen = chosen_pages(self.spec.pages, found.pages)
        return [_page_input(place, number, found.pages, chosen, known) for number in chosen]

    # -- reading ------------------------------------------------------------------------------------------------------

    def _reads(self, rows: Sequence[Input]) -> Iterator[Read]:
        self._passwords = Passwords.of(self.spec, self.storage_options)
        for name, same in groupby(rows, key=lambda row: str(row.meta["document"])):
            pages = list(same)
            first = pages[0]
            place = _Place(first.uri, name, first.offset, int(first.meta["document_bytes"]))
            if not place.is_pdf:
                yield from (partial(self._read_scan, place) for _ in pages)
                continue
            document = SharedPdf(partial(self._bytes, place), self._passwords.of_file(name), len(pages))
            yield from (partial(document.read, row.index or 0, self.spec) for row in pages)

    def _read_scan(self, place: _Place) -> PageContent:
        data = staged("fetch", partial(self._bytes, place))
        return staged("decode", partial(read_scan, data, self.spec))

    def _bytes(self, place: _Place) -> bytes:
        size = None if place.offset is None else place.size
        if place.size > self.spec.max_bytes:
            raise InputError(f"{place.size} bytes are over max_bytes ({self.spec.max_bytes})")
        return fetch_file(self.store, unescape_name(place.uri), place.offset, size, self.spec.max_bytes)


def _page_input(place: _Place, index: int, count: int, chosen: Sequence[int], known: Mapping[str, Any]) -> Input:
    """One page. The bytes of a document are shared out among its chosen pages."""
    share, rest = divmod(place.size, len(chosen))
    meta = {"document": place.name, "page": index + 1, "pages": count, "document_bytes": place.size, **known}
    size = share + (rest if index == chosen[0] else 0)
    return Input(f"{place.name}#{index + 1}", place.uri, place.offset, size, index, meta=meta)


def _failed(name: str, error: str) -> Input:
    return Input(name, name, error=error)


def _finished(found: Future[list[Input]] | Input) -> list[Input]:
    return [found] if isinstance(found, Input) else found.result()
