"""Opens ready vectors of pages in whatever form a path turns out to hold them. The only door of this package."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

from tokenshard.errors import SpecError
from tokenshard.shards.manifest import list_versions
from tokenshard.sources.images.files import find_files
from tokenshard.sources.vectors.arrays import ARRAY_NAMES, VectorArrays
from tokenshard.sources.vectors.base import VectorFiles
from tokenshard.sources.vectors.dataset import PageDatasetSource
from tokenshard.sources.vectors.tables import TABLE_NAMES, VectorTables
from tokenshard.spec.documents import VectorSourceSpec

_LOOKED_AT = 1_000
"""Files that the form of a folder is recognised by."""


def open_vector_source(
    spec: VectorSourceSpec, storage: Mapping[str, Any] | None = None, state: Mapping[str, Any] | None = None
) -> VectorFiles | PageDatasetSource:
    """The source of a spec. ``state``: what planning found out (on workers), or None (to plan).

    Raises SpecError when there are no vectors at the path.
    """
    form = str(state["form"]) if state is not None else spec.form if spec.form != "auto" else _form(spec, storage)
    if form == "dataset":
        return PageDatasetSource(spec, storage or {}, state)
    return (VectorArrays if form == "arrays" else VectorTables)(spec, storage, state)


def _form(spec: VectorSourceSpec, storage: Mapping[str, Any] | None) -> str:
    files = find_files(spec.path, storage)
    if files.what == "folder" and list_versions(files.store):
        return "dataset"
    names = [entry.name.lower() for entry in islice(files.list(), _LOOKED_AT)]
    if any(name.endswith(ARRAY_NAMES) for name in names):
        return "arrays"
    if any(name.endswith(TABLE_NAMES) for name in names):
        return "tables"
    known = ", ".join((*ARRAY_NAMES, *TABLE_NAMES))
    raise SpecError(f"{spec.path}: no vectors found; they are in {known} files, or in a dataset of pages")
