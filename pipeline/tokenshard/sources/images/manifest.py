"""Manifest form: a CSV, TSV, JSON-lines or Parquet table with one image path a row; all other columns are carried."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator

import pyarrow as pa

from tokenshard.errors import InputError
from tokenshard.sources.images.base import ImageSource
from tokenshard.sources.images.columns import CarriedColumns, is_text, label_column
from tokenshard.sources.images.tables import open_table
from tokenshard.sources.keys import UniqueKeys, escape_name, unescape_name
from tokenshard.sources.plan import DUPLICATE, plan_schema, require_usable
from tokenshard.store import Store

PATH_COLUMNS = (
    *("path", "file_path", "filepath", "file_name", "filename", "file"),
    *("image_path", "image", "img", "url", "uri"),
)


class ManifestSource(ImageSource):
    """Rows of a table the user wrote. Paths are URLs, absolute, or relative to the table's folder (``..`` allowed).

    The key is the column `key`, or the path.
    """

    form = "manifest"

    def plan(self) -> Iterator[pa.RecordBatch]:
        (name,) = (entry.name for entry in self.files.list())
        table = open_table(self.store, name)
        path_column = self._path_column(table.schema)
        label = label_column(self.spec.labels, table.schema, self.spec.path)
        carried = CarriedColumns(table.schema, {path_column, "key"}, label)
        planned = planned_table(table.batches(), path_column, escape_name(name), carried)
        yield from require_usable(planned, self.spec.path, self.spec.what)
        self.deliver(carried.columns(), carried.text_labels)

    def _path_column(self, schema: pa.Schema) -> str:
        wanted = (self.spec.path_column,) if self.spec.path_column else PATH_COLUMNS
        for name in wanted:
            if name in schema.names and is_text(schema.field(name).type):
                return name
        raise self.option_error(
            f"no text column with image paths ({', '.join(wanted)}); it has {', '.join(schema.names)}; set path_column"
        )

    def place(self, uri: str) -> tuple[Store, str]:
        root, name = locate(self.store.root, unescape_name(uri))
        return (self.store if root == self.store.root else Store(root, self.store.options)), name


def planned_table(
    batches: Iterator[pa.RecordBatch], path_column: str, table_name: str, carried: CarriedColumns
) -> Iterator[pa.RecordBatch]:
    """Plan batches of a table with image paths; a row without a path is named after the table and the row."""
    keys, first_row = UniqueKeys(), 0
    schema = plan_schema(carried.fields)
    for batch in batches:
        rows = [f"{table_name}:{first_row + row}" for row in range(batch.num_rows)]
        paths = batch.column(path_column).cast(pa.string()).to_pylist()
        uris = [_uri(path) if path else row for path, row in zip(paths, rows, strict=True)]
        own = batch.column("key").cast(pa.string()).to_pylist() if "key" in batch.schema.names else uris
        unique, repeated = keys.assign([key or uri for key, uri in zip(own, uris, strict=True)])
        errors = [
            DUPLICATE if again else None if path else "no path in this row"
            for path, again in zip(paths, repeated, strict=True)
        ]
        nothing = pa.nulls(batch.num_rows, pa.int64())
        base = [pa.array(unique), pa.array(uris), nothing, nothing, nothing, pa.array(errors, pa.string())]
        yield pa.RecordBatch.from_arrays([*base, *carried.arrays(batch)], schema=schema)
        first_row += batch.num_rows


def _uri(path: str) -> str:
    return escape_name(path if "://" in path else posixpath.normpath(path))


def locate(root: str, uri: str) -> tuple[str, str]:
    """(store root, name) of a URL, an absolute path, or a path relative to ``root`` that may leave it by ``..``."""
    uri = uri.removeprefix("file://")
    if "://" in uri:
        protocol, _, rest = uri.partition("://")
        host, _, name = rest.partition("/")
        return f"{protocol}://{host}", name
    if uri.startswith("/"):
        return "/", uri.lstrip("/")
    protocol, separator, folder = root.rpartition("://")
    uri = posixpath.normpath(uri)
    while uri.startswith("../"):
        folder = folder.rstrip("/")
        if not folder or (separator and "/" not in folder):
            raise InputError("the path leaves the storage of the manifest")
        folder, uri = folder.rpartition("/")[0], uri[3:]
    return f"{protocol}{separator}{folder}" or "/", uri
