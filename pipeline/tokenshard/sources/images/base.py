"""What all image forms share: the columns that planning found, and reading planned rows into thunks.

A form subclasses :class:`ImageSource` with its ``plan()`` and, where an input is not simply a file or a byte range,
with ``_opened()``.
"""

from __future__ import annotations

import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import pyarrow as pa
from numpy.typing import NDArray

from tokenshard.errors import InputError, SpecError
from tokenshard.sources.base import SourceColumn, Thunk
from tokenshard.sources.images.decode import decode_image
from tokenshard.sources.images.files import Files
from tokenshard.sources.keys import unescape_name
from tokenshard.sources.outcome import Decode, Fetch, outcome, planned_reject
from tokenshard.sources.plan import Input, planned_inputs
from tokenshard.spec.images import ImageSourceSpec
from tokenshard.store import Store

Opened = tuple[Fetch, Decode]
"""How one input is fetched, and how its bytes are decoded."""


class ImageSource(ABC):
    """Raw images in one form. ``state``: what :meth:`state` returned where the source was planned."""

    form: ClassVar[str]

    def __init__(self, spec: ImageSourceSpec, files: Files, state: Mapping[str, Any] | None = None) -> None:
        self.spec = spec
        self.files = files
        self.store = files.store
        self._columns: tuple[SourceColumn, ...] = ()
        self._names: list[str] = list((state or {}).get("columns", []))
        self._classes: dict[str, list[str] | None] = dict((state or {}).get("classes", {}))

    @abstractmethod
    def plan(self) -> Iterator[pa.RecordBatch]: ...

    def columns(self) -> tuple[SourceColumn, ...]:
        return self._columns

    def state(self) -> dict[str, Any]:
        return {"form": self.form, "what": self.files.what, "columns": self._names, "classes": self._classes}

    def read(self, inputs: pa.Table) -> Iterator[Thunk]:
        labels = self.label_values()
        rows = list(planned_inputs(inputs, self._names))
        opened = self._opened([row for row in rows if row.error is None])
        for row in rows:
            if row.error is not None:
                yield partial(planned_reject, row.key, row.uri, row.error)
                continue
            fetch, decode = next(opened)
            columns = {name: labels[name](value) if name in labels else value for name, value in row.meta.items()}
            yield partial(outcome, row.key, row.uri, fetch, decode, columns)

    def label_values(self) -> dict[str, Callable[[str | None], int | None]]:
        """By label column that is planned as text: the value of a text."""
        return {name: _label_values(names) for name, names in self._classes.items()}

    def _opened(self, rows: Sequence[Input]) -> Iterator[Opened]:
        """How to fetch and to decode each row. Lazy: containers are read while their rows are asked for."""
        for row in rows:
            yield partial(self._fetch, row), self._decode

    def _in_sequence(self, opened: Iterator[Opened], count: int) -> Iterator[Opened]:
        """``count`` inputs of a container read front to back; where that fails, the rest of them fail alike."""
        failure: Exception | None = None
        for _ in range(count):
            if failure is None:
                try:
                    yield next(opened)
                    continue
                except StopIteration:
                    failure = InputError("the file ends before this input")
                except Exception as error:
                    failure = error
            yield partial(fail, failure), self._decode

    def _fetch(self, row: Input) -> bytes:
        store, name = self.place(row.uri)
        return fetch_file(store, name, row.offset, row.bytes, self.spec.max_bytes)

    def _decode(self, data: bytes) -> NDArray[Any]:
        return decode_image(data, self.spec)

    def place(self, uri: str) -> tuple[Store, str]:
        """The store a planned uri is in, and its name there."""
        return self.store, unescape_name(uri)

    def deliver(self, columns: Sequence[SourceColumn], text_labels: Collection[str] = ()) -> None:
        """Fix what samples carry, when planning is complete.

        ``text_labels`` are planned as text and read as numbers: the place in the names, or, without names, the number
        the text says.
        """
        self._columns = tuple(columns)
        self._names = [column.name for column in columns]
        self._classes = {
            column.name: None if column.names is None else list(column.names)
            for column in columns
            if column.name in text_labels and column.role == "label"
        }

    def option_error(self, what: str) -> SpecError:
        return SpecError(f"{self.spec.path}: {what}")


def _label_values(names: Sequence[str] | None) -> Callable[[str | None], int | None]:
    if names is None:
        return lambda text: None if text is None else int(text)
    return {text: number for number, text in enumerate(names)}.get  # type: ignore[return-value]


def fail(error: Exception) -> bytes:
    """A fetch that failed."""
    raise error


def fetch_file(store: Store, name: str, offset: int | None, size: int | None, max_bytes: int) -> bytes:
    """The bytes of a file, or of the range ``[offset, offset + size)`` of it, unless they are over ``max_bytes``."""
    if store.is_local and not stat.S_ISREG(os.stat(store.url(name)).st_mode):  # opening a FIFO would wait for ever
        raise InputError("not a regular file")
    if (size or 0) > max_bytes:
        raise InputError(f"{size} bytes are over max_bytes ({max_bytes})")
    expected = size if offset is not None else None
    data = store.read(name, offset or 0, max_bytes + 1 if expected is None else expected)
    if len(data) > max_bytes:
        raise InputError(f"more than max_bytes ({max_bytes}) bytes")
    if expected is not None and len(data) != expected:
        raise InputError(f"the file ends {expected - len(data)} bytes too early")
    return data
