"""JSON records that are written one after the other to numbered files of limited size."""

from __future__ import annotations

from typing import BinaryIO

import numpy as np

from tokenshard.retrieval.exact import Vectors
from tokenshard.shards.export.base import Output


class JsonFiles:
    """Files ``<name>-00000<suffix>`` that begin with ``before``, have ``between`` records, and end with ``after``.

    A file ends before the record that would take it over ``limit`` bytes.
    """

    def __init__(
        self,
        output: Output,
        name: str,
        suffix: str,
        limit: int,
        before: str = "",
        between: str = "\n",
        after: str = "\n",
    ) -> None:
        self._output, self._name, self._suffix, self._limit = output, name, suffix, limit
        self._before, self._between, self._after = before.encode(), between.encode(), after.encode()
        self._file: BinaryIO | None = None
        self._files = self._held = 0

    def add(self, record: str) -> None:
        data = record.encode()
        if self._file is not None and self._held + len(data) > self._limit:
            self.close()
        if self._file is None:
            self._file, self._held = self._output.create(), 0
            self._file.write(self._before)
        else:
            self._file.write(self._between)
        self._file.write(data)
        self._held += len(data)

    def close(self) -> None:
        if self._file is None:
            return
        self._file.write(self._after)
        self._output.put(f"{self._name}-{self._files:05d}{self._suffix}", self._file)
        self._file, self._files = None, self._files + 1


def json_vectors(vectors: Vectors) -> str:
    """[n, d] in half precision, as JSON: five digits, which give every half back."""
    rows = vectors.astype(np.float16).astype(np.float64)
    return "[" + ",".join("[" + ",".join([f"{x:.5g}" for x in row]) + "]" for row in rows.tolist()) + "]"
