"""Which formats there are for page vectors, and their export. A new format is a file of its own and a line here."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from tokenshard.errors import SpecError
from tokenshard.retrieval.export.pages import ExportedPages, PageWriter
from tokenshard.scratch import scratch_folder
from tokenshard.shards.dataset import Dataset
from tokenshard.shards.export.base import DEFAULT_SPLIT, Output
from tokenshard.shards.export.registry import Exported, unfinished_named
from tokenshard.store import Store

PAGE_EXPORTERS = {
    name: f"tokenshard.retrieval.export.{module}"
    for name, module in {
        "qdrant": "qdrant:QdrantWriter",
        "vespa": "vespa:VespaWriter",
        "vectors": "arrow:VectorsWriter",
        "lance": "arrow:LanceWriter",
        "fast-plaid": "fast_plaid:FastPlaidWriter",
    }.items()
}


def export_pages(
    dataset: Dataset,
    destination: str | os.PathLike[str] | Store,
    format: str,
    *,
    columns: Sequence[str] | None = None,
    storage: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    progress: Callable[[int], None] = lambda pages: None,
) -> Exported:
    """Write the page vectors of a dataset to an empty folder or URL, a row group at a time.

    ``columns``: what goes along with each page (None: all that describe it); ``options``: `shard_bytes`, of formats
    with several files. Raises SpecError for what the format cannot hold.
    """
    store = destination if isinstance(destination, Store) else Store(destination, storage)
    if next(iter(store.list()), None) is not None:
        raise SpecError(f"{store.root}: is not empty; choose another destination, or empty it first")
    pages = ExportedPages(dataset, None if columns is None else tuple(columns))
    module, _, name = PAGE_EXPORTERS[format].partition(":")
    done = 0
    with unfinished_named(store), scratch_folder() as scratch:
        output = Output(store, Path(scratch), options=dict(options or {}))
        writer = cast("type[PageWriter]", getattr(import_module(module), name))(pages, output)
        for batch in pages.batches():
            writer.add(batch)
            done += len(batch)
            progress(len(batch))
        writer.close()
    store.clean_temporary()
    return Exported(format, store.root, done, {DEFAULT_SPLIT: done}, output.files, output.size)
