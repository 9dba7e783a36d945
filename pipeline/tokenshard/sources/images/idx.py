"""IDX form (MNIST): grey images as records of one file, labels in a file beside it; either may be gzip-compressed.

Layout: u32 big-endian magic 0x00000803 (unsigned bytes, 3 dims), count, height, width, then the pixels; labels have
magic 0x00000801 and count. Source: http://yann.lecun.com/exdb/mnist/.
"""

from __future__ import annotations

import gzip
import io
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import BinaryIO, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tokenshard.sources.base import SourceColumn
from tokenshard.sources.images.base import ImageSource, Opened
from tokenshard.sources.images.decode import decode_grey
from tokenshard.sources.images.tables import buffered
from tokenshard.sources.keys import escape_name, unescape_name
from tokenshard.sources.outcome import cleaned
from tokenshard.sources.plan import Input, plan_batches, require_usable
from tokenshard.store import Store

IDX_NAME = re.compile(r"[-.]idx3-ubyte(\.gz)?$")
_IMAGES, _LABELS = 0x803, 0x801
_ERRORS = (OSError, EOFError, zlib.error, struct.error, ValueError)


class IdxSource(ImageSource):
    """Records of IDX files. ``key`` is the file name and the record's number."""

    form = "idx"

    def plan(self) -> Iterator[pa.RecordBatch]:
        if self.spec.labels not in {"auto", "none"}:
            raise self.option_error(f"labels: {self.spec.labels} is no choice for IDX files; use auto or none")
        named = self.files.what == "file"
        names = [entry.name for entry in self.files.list() if named or IDX_NAME.search(entry.name)]
        labels = {name: self._labels(name) for name in names}
        inputs = (row for name in names for row in self._inputs(name, labels[name]))
        yield from require_usable(plan_batches(inputs, [pa.field("label", pa.int64())]), self.spec.path)
        labelled = any(values is not None for values in labels.values())
        self.deliver([SourceColumn("label", pa.int64(), "label")] if labelled else [])

    def _inputs(self, name: str, labels: NDArray[np.uint8] | None) -> Iterator[Input]:
        uri = escape_name(name)
        try:
            with open_idx(self.store, name) as file:
                count, height, width = _header(file)
                if not 0 < height * width <= self.spec.max_pixels:
                    yield Input(uri, uri, error=f"impossible size: images of {height} x {width} pixels")
                    return
                for record in range(count):
                    if len(file.read(height * width)) < height * width:
                        raise EOFError(f"it ends in record {record} of {count}")
                    label = None if labels is None or record >= len(labels) else int(labels[record])
                    yield Input(f"{uri}/{record:08d}", uri, None, height * width, record, meta={"label": label})
        except _ERRORS as error:
            yield Input(uri, uri, error=f"damaged IDX file: {cleaned(str(error))}; the records before are used")

    def _labels(self, name: str) -> NDArray[np.uint8] | None:
        """Labels of an images file (uint8 [count]): from the file with `labels` and `idx1` in its name."""
        beside = name.replace("images", "labels").replace("idx3", "idx1")
        plain = beside.removesuffix(".gz")
        found = next((n for n in (beside, plain, f"{plain}.gz") if n != name and self.store.exists(n)), None)
        if found is None or self.spec.labels == "none":
            return None
        try:
            with open_idx(self.store, found) as file:
                magic, count = struct.unpack(">II", file.read(8))
                values = np.frombuffer(file.read(min(count, self.spec.max_bytes)), np.uint8)
                if magic != _LABELS or len(values) != count:
                    raise ValueError(f"{len(values)} of {count} labels, magic {magic:#x}")
                return values
        except _ERRORS as error:
            raise self.option_error(
                f"labels file {found} is damaged ({error}); repair it or set labels: none"
            ) from error

    def _opened(self, rows: Sequence[Input]) -> Iterator[Opened]:
        for uri, same in groupby(rows, key=lambda row: row.uri):
            group = list(same)
            yield from self._in_sequence(self._records(uri, group), len(group))

    def _records(self, uri: str, rows: Sequence[Input]) -> Iterator[Opened]:
        with open_idx(self.store, unescape_name(uri)) as file:
            _, height, width = _header(file)
            start = file.tell()
            for row in rows:
                file.seek(start + (row.index or 0) * height * width)
                record = file.read(height * width)
                yield partial(bytes, record), partial(decode_grey, height=height, width=width, spec=self.spec)


def open_idx(store: Store, name: str) -> BinaryIO:
    """An IDX file for reading front to back, decompressed where it is gzip."""
    file = buffered(store, name)
    if file.peek(2)[:2] != b"\x1f\x8b":
        return file
    return cast(BinaryIO, io.BufferedReader(gzip.GzipFile(fileobj=file), 1 << 16))


def _header(file: BinaryIO) -> tuple[int, int, int]:
    """Count, height and width of the images."""
    magic, count, height, width = struct.unpack(">IIII", file.read(16))
    if magic != _IMAGES:
        raise ValueError(f"magic {magic:#x} instead of {_IMAGES:#x}: not images of unsigned bytes")
    return count, height, width
