"""Corpus form: text documents as JSON lines in the BEIR layout (`_id`, `title`, `text`), one input a line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from threading import Lock
from typing import Any, BinaryIO

import pyarrow as pa

from tokenshard.errors import InputError
from tokenshard.sources.documents.base import DocumentSource, PageContent, Read, staged
from tokenshard.sources.documents.words import plain_text
from tokenshard.sources.images.base import fetch_file
from tokenshard.sources.images.tables import buffered
from tokenshard.sources.keys import UniqueKeys, escape_name, unescape_name
from tokenshard.sources.plan import Input, plan_batches, require_usable

CORPUS_NAME = "corpus.jsonl"
LINE_NAMES = (".jsonl", ".ndjson")
_BLOCK = 8 << 20
"""Bytes of neighbouring lines that are fetched together."""
_LONGEST_ID = 4096
_BOM = b"\xef\xbb\xbf"


class TextCorpus(DocumentSource):
    """Documents of text; ``key`` is their `_id`. A line that is none, or repeats an id, is a reject named by its place.

    In a folder with `corpus.jsonl` files only those are read: queries lie beside them.
    """

    form = "corpus"
    planned = ("document",)

    def plan(self) -> Iterator[pa.RecordBatch]:
        meta = [pa.field("document", pa.string())]
        rows = (row for name in self._names() for row in self._lines(name))
        yield from require_usable(plan_batches(rows, meta, UniqueKeys()), self.spec.path, "documents")

    def _names(self) -> list[str]:
        names = [entry.name for entry in self.files.list() if entry.name.lower().endswith(LINE_NAMES)]
        corpora = [name for name in names if name.rpartition("/")[2] == CORPUS_NAME]
        return corpora or names

    def _lines(self, name: str) -> Iterator[Input]:
        uri, offset = escape_name(name), 0
        with buffered(self.store, name) as file:
            for number, (line, size) in enumerate(_limited_lines(file, self.spec.max_bytes), 1):
                if line.strip(b" \t\r\n" + _BOM) or size > len(line):
                    yield self._input(uri, number, offset, line, size)
                offset += size

    def _input(self, uri: str, number: int, offset: int, line: bytes, size: int) -> Input:
        try:
            if size > len(line):
                raise InputError(f"a line of {size} bytes is over max_bytes ({self.spec.max_bytes})")
            document = _parsed(line, self.spec.max_chars)
        except InputError as error:
            return Input(f"{uri}:{number}", uri, error=f"BadLine: {error}")
        return Input(document["_id"], uri, offset, size, number - 1, meta={"document": document["_id"]})

    def _reads(self, rows: Sequence[Input]) -> Iterator[Read]:
        for block in _blocks(rows):
            start, end = block[0].offset or 0, (block[-1].offset or 0) + (block[-1].bytes or 0)
            name = unescape_name(block[0].uri)
            lines = _Once(partial(fetch_file, self.store, name, start, end - start, max(end - start, 1)))
            for row in block:
                first = (row.offset or 0) - start
                yield partial(self._read, lines, first, first + (row.bytes or 0))

    def _read(self, lines: _Once, first: int, last: int) -> PageContent:
        data = staged("fetch", lines.get)
        document = staged("decode", lambda: _parsed(data[first:last], self.spec.max_chars))
        other = document["metadata"]
        columns = {
            "title": document["title"] or None,
            "metadata": json.dumps(other, ensure_ascii=False, sort_keys=True) if other else None,
            "needs_ocr": False,
            "text": document["whole"],
        }
        return PageContent(plain_text(document["whole"]), columns)


class _Once:
    """Bytes that several threads share; fetched when the first of them asks."""

    def __init__(self, fetch: Callable[[], bytes]) -> None:
        self._fetch, self._lock = fetch, Lock()
        self._data: bytes | None = None

    def get(self) -> bytes:
        with self._lock:
            if self._data is None:
                self._data = self._fetch()
            return self._data


def _parsed(line: bytes, max_chars: int) -> dict[str, Any]:
    """`_id`, `title` and `metadata` of a line, and `whole`: its text with the title before it, unless it begins so.

    Raises InputError that says what is wrong with the line.
    """
    try:
        row = json.loads(line.removeprefix(_BOM).decode())
    except UnicodeDecodeError as error:
        raise InputError("text is not UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise InputError("not JSON") from error
    if not isinstance(row, dict):
        raise InputError("not a JSON object")
    key, title, text = row.get("_id"), row.get("title") or "", row.get("text")
    if isinstance(key, bool) or not isinstance(key, str | int) or not 0 < len(str(key)) <= _LONGEST_ID:
        raise InputError("no _id, or none that is a text or a whole number")
    if not isinstance(text, str) or not isinstance(title, str):
        raise InputError("no text" if text is None else "title or text is no text")
    whole = text if text.startswith(title) else f"{title} {text}"
    if not whole.strip():
        raise InputError("title and text are empty")
    if len(whole) > max_chars:
        raise InputError(f"{len(whole)} characters of text are over max_chars ({max_chars})")
    if not _is_encodable(str(key)) or not _is_encodable(whole):
        raise InputError("a lone half of a surrogate pair is no text")
    return {"_id": str(key), "title": title, "metadata": row.get("metadata"), "whole": whole}


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _limited_lines(file: BinaryIO, most: int) -> Iterator[tuple[bytes, int]]:
    """Lines with their bytes; of one that is longer than ``most`` just the beginning."""
    while line := file.readline(most + 1):
        size, rest = len(line), line
        while len(rest) > most and not rest.endswith(b"\n") and (rest := file.readline(most + 1)):
            size += len(rest)
        yield (line if size == len(line) and size <= most else line[:most]), size


def _blocks(rows: Sequence[Input]) -> Iterator[list[Input]]:
    """Neighbouring lines of a file, some at a time."""
    block: list[Input] = []
    for row in rows:
        start = block[0].offset or 0 if block else 0
        ends = (row.offset or 0) + (row.bytes or 0)
        if block and (row.uri != block[0].uri or not start <= (row.offset or 0) or ends - start > _BLOCK):
            yield block
            block = []
        block.append(row)
    if block:
        yield block
