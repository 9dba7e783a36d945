"""Parquet read by the thread that asks for it.

Arrow's own read-ahead (``pre_buffer``) and its threads hold Python files and buffers in tasks whose last reference may
go on one of Arrow's threads. Where the interpreter ends just then, that thread waits for a lock that is never given,
and the process aborts ("terminate called without an active exception"). Readers here fetch ahead by themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq


def open_parquet(
    file: BinaryIO | pa.BufferReader, metadata: pq.FileMetaData | None = None, buffer_size: int = 0
) -> pq.ParquetFile:
    """A Parquet file whose pages are checked against their CRCs; read it with ``use_threads=False``.

    A column chunk is one read, or with a ``buffer_size`` in bytes reads of that size, so that files of any size can be
    gone through once.
    """
    return pq.ParquetFile(
        file, metadata=metadata, buffer_size=buffer_size, page_checksum_verification=True, pre_buffer=False
    )


def read_parquet(file: BinaryIO | bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """The named columns (None: all) of a file or of the bytes of one. Raises pa.ArrowException where it is damaged."""
    source = pa.BufferReader(file) if isinstance(file, bytes) else file
    return open_parquet(source).read(None if columns is None else list(columns), use_threads=False)
