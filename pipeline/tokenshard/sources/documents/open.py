"""Opens documents in whatever form a path turns out to be. The only door of this package."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

from tokenshard.errors import SpecError
from tokenshard.sources.documents.base import DocumentSource
from tokenshard.sources.documents.corpus import LINE_NAMES, TextCorpus
from tokenshard.sources.images.files import Files, find_files
from tokenshard.sources.images.folder import is_image_name
from tokenshard.sources.images.webdataset import TAR_NAME
from tokenshard.spec.documents import DocumentSourceSpec

_LOOKED_AT = 1_000
"""Files that the form of a folder is recognised by."""


def open_document_source(
    spec: DocumentSourceSpec,
    storage_options: Mapping[str, Any] | None = None,
    state: Mapping[str, Any] | None = None,
) -> DocumentSource:
    """The source of a spec. ``state``: what planning found out (on workers), or None (to plan).

    Raises SpecError when there is nothing at the path, or PDF files are to be read without pypdfium2.
    """
    files = find_files(spec.path, storage_options, None if state is None else str(state["what"]))
    form = str(state["form"]) if state is not None else spec.form if spec.form != "auto" else _form(files, spec)
    if form == "corpus":
        return TextCorpus(spec, files, storage_options)
    try:
        from tokenshard.sources.documents.files import DocumentFiles
    except ModuleNotFoundError as error:
        raise SpecError(f"{spec.path}: reading PDF files needs pip install 'tokenshard[documents]'") from error
    return DocumentFiles(spec, files, storage_options)


def _form(files: Files, spec: DocumentSourceSpec) -> str:
    """By the first files there are: a folder with documents holds documents, whatever else is in it."""
    names = files.names if files.what == "file" else [entry.name for entry in islice(files.list(), _LOOKED_AT)]
    if any(is_image_name(name, spec.extensions) or TAR_NAME.search(name) for name in names):
        return "files"
    return "corpus" if any(name.lower().endswith(LINE_NAMES) for name in names) else "files"
