"""WebDataset: tar files in which the members of a sample lie side by side.

`<key>.npy` holds the ids, `<key>.cls` the first label column (where there is one), `<key>.json` the key and all other
columns. WebDataset takes a member's name up to the first dot of its last part for the key, so dots of keys are written
as `%2E`; the json member has the key as it is.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from typing import BinaryIO, ClassVar

import numpy as np

from tokenshard.shards.export.base import SHARD_BYTES, Batch, Contents, Output, SplitWriter, byte_size, squeezed
from tokenshard.shards.export.json_values import check_json_columns, json_rows

_SPECIAL = re.compile(r"[%.\\\x00-\x1f]|^/|(?<=/)/|/$")


def member_name(key: str) -> str:
    """A key as WebDataset keeps it whole: no dots, no absolute paths, no empty parts."""
    return _SPECIAL.sub(lambda found: f"%{ord(found[0]):02X}", key)


class WebDatasetWriter(SplitWriter):
    """`<split>-000000.tar`, … of at most `shard_bytes` bytes (one sample more at most)."""

    options: ClassVar = {"shard_bytes": byte_size}

    def __init__(self, contents: Contents, output: Output, split: str) -> None:
        super().__init__(contents, output, split)
        self._limit = output.options.get("shard_bytes", SHARD_BYTES)
        self._label = contents.label
        self._files = 0
        self._file: BinaryIO | None = None
        self._archive: tarfile.TarFile | None = None

    @classmethod
    def check(cls, contents: Contents) -> None:
        check_json_columns(contents)

    def add(self, batch: Batch) -> None:
        for key, codes, row in zip(batch.keys, batch.codes, json_rows(batch), strict=True):
            label = row.pop(self._label.name) if self._label else None
            name = member_name(key)
            file = io.BytesIO()
            np.lib.format.write_array(file, np.ascontiguousarray(squeezed(self.contents, codes)), version=(1, 0))
            self._add(f"{name}.npy", file.getvalue())
            if label is not None:
                self._add(f"{name}.cls", str(label).encode())
            self._add(f"{name}.json", json.dumps({"key": key, **row}, ensure_ascii=False).encode())
            if self._file is not None and self._file.tell() >= self._limit:
                self.close()

    def _add(self, name: str, data: bytes) -> None:
        if self._archive is None:
            self._file = self.output.create()
            self._archive = tarfile.open(fileobj=self._file, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115
        info = tarfile.TarInfo(name)  # no time, no owner: equal datasets give equal bytes
        info.size = len(data)
        self._archive.addfile(info, io.BytesIO(data))
        self._archive.members.clear()  # type: ignore[attr-defined]

    def close(self) -> None:
        if self._archive is None or self._file is None:
            return
        self._archive.close()
        self.output.put(f"{self.split}-{self._files:06d}.tar", self._file)
        self._files += 1
        self._archive, self._file = None, None
