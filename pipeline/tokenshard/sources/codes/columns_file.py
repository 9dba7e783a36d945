"""Keys and columns that lie beside files of ids alone: `<split>.columns.parquet`, a row a sample, in their order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from tokenshard.errors import FormatError
from tokenshard.parquet import open_parquet
from tokenshard.shards.schema import KEY
from tokenshard.sources.images.tables import streamed_parquet
from tokenshard.sources.plan import BATCH
from tokenshard.store import Store


class ColumnsFile:
    """Reads one. Raises FormatError where it is damaged or has another number of rows than there are samples."""

    def __init__(self, store: Store, name: str, samples: int) -> None:
        self._store, self._name = store, name
        try:
            with store.open(name) as file:
                parquet = open_parquet(file)
                schema, rows = parquet.schema_arrow, parquet.metadata.num_rows
        except (pa.ArrowException, OSError, ValueError) as error:
            raise self._damaged(f"unreadable Parquet file ({error})") from error
        if rows != samples or KEY not in schema.names:
            raise self._damaged(f"{rows} rows with the columns {', '.join(schema.names)} for {samples} samples")
        self.fields = [field for field in schema.remove_metadata() if field.name != KEY]

    def rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """(key, columns) of each sample."""
        try:
            with self._store.open(self._name) as file:
                for batch in streamed_parquet(file).iter_batches(BATCH, use_threads=False):
                    keys = batch.column(KEY).to_pylist()
                    columns = batch.drop_columns([KEY])
                    rows = columns.to_pylist() if columns.num_columns else [{} for _ in keys]
                    yield from zip(keys, rows, strict=True)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise self._damaged(f"unreadable Parquet file ({error})") from error

    def _damaged(self, what: str) -> FormatError:
        return FormatError(f"{self._store.url(self._name)}: {what}; restore the file from a copy, or remove it")


def no_columns(uri: str, samples: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Keys of samples that have none: the file and the number."""
    return ((f"{uri}/{number:08d}", {}) for number in range(samples))
