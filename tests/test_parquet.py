"""Nothing that belongs to Python is left to Arrow's threads."""

from __future__ import annotations

import io
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shards.conftest import token_rows, write_dataset
from tokenshard.parquet import read_parquet
from tokenshard.ranged import RangedFile
from tokenshard.shards.dataset import open_dataset

READS = 300
"""Arrow's read-ahead lets go of the file on a thread of its own in one of forty reads."""


def test_a_file_is_let_go_by_the_thread_that_read_it() -> None:
    written = io.BytesIO()
    table = pa.table({name: np.arange(5_000) for name in "abc"})
    pq.write_table(table, written)
    ended = set()

    class Watched(io.BytesIO):
        def __del__(self) -> None:
            ended.add(threading.get_ident())

    for _ in range(READS):
        assert read_parquet(Watched(written.getvalue()), ["a", "c"]).num_columns == 2
    assert read_parquet(written.getvalue()).equals(table)
    assert ended == {threading.get_ident()}


def test_columns_of_a_shard_are_read_by_the_thread_that_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readers = set()
    read = RangedFile.read

    def watched(self: RangedFile, size: int | None = -1) -> bytes:
        readers.add(threading.get_ident())
        return read(self, size)

    monkeypatch.setattr(RangedFile, "read", watched)
    write_dataset(tmp_path / "tokens", [token_rows(200, side=4, alphabet=16)])
    table = open_dataset(str(tmp_path / "tokens")).reader(0).read_columns(0, ["key", "label"])
    assert table.column_names == ["key", "label"]
    assert readers == {threading.get_ident()}
