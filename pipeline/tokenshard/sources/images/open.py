"""Opens raw images in whatever form a path turns out to be. The only door of this package."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

import pyarrow as pa

from tokenshard.errors import SpecError
from tokenshard.extensions import IMAGES, load_extension
from tokenshard.parquet import open_parquet
from tokenshard.sources.images.base import ImageSource
from tokenshard.sources.images.coco import CocoSource
from tokenshard.sources.images.files import Files, find_files
from tokenshard.sources.images.folder import FolderSource, is_image_name
from tokenshard.sources.images.hf_parquet import HfParquetSource, find_image_column
from tokenshard.sources.images.idx import IDX_NAME, IdxSource
from tokenshard.sources.images.manifest import ManifestSource
from tokenshard.sources.images.webdataset import TAR_NAME, WebDatasetSource
from tokenshard.spec.images import ImageSourceSpec

FORMS: dict[str, type[ImageSource]] = {
    source.form: source
    for source in (FolderSource, ManifestSource, WebDatasetSource, HfParquetSource, CocoSource, IdxSource)
}
_ONE_FILE = frozenset({"manifest", "coco"})
_LOOKED_AT = 1_000
"""Files that the form of a folder is recognised by."""


def open_image_source(
    spec: ImageSourceSpec,
    storage_options: Mapping[str, Any] | None = None,
    state: Mapping[str, Any] | None = None,
) -> ImageSource:
    """The source of a spec. ``state``: what planning found out (on workers), or None (to plan).

    Raises SpecError when there is nothing at the path, or its form cannot be told.
    """
    files = find_files(spec.path, storage_options, None if state is None else str(state["what"]))
    if state is not None:
        form = str(state["form"])
    elif spec.form != "auto":
        form = spec.form
    else:
        form = _form_of_file(files, spec) if files.what == "file" else _form_of_many(files, spec)
    if form in _ONE_FILE and files.what != "file":
        raise SpecError(f"{spec.path}: form {form} reads one file; give the path of that file")
    found: type[ImageSource] = FORMS[form] if form in FORMS else load_extension(IMAGES, form)
    return found(spec, files, state)


def _form_of_file(files: Files, spec: ImageSourceSpec) -> str:
    (name,) = files.names
    extension = name.rpartition(".")[2].lower()
    if IDX_NAME.search(name):
        return "idx"
    if TAR_NAME.search(name):
        return "webdataset"
    if extension in {"csv", "tsv", "jsonl", "ndjson"}:
        return "manifest"
    if extension == "json":
        return "coco"
    if extension == "parquet":
        return "hf-parquet" if _holds_images(files, name, spec) else "manifest"
    if is_image_name(name, spec.extensions):
        return "folder"
    raise SpecError(f"{spec.path}: cannot tell the form of this file; set form to one of {', '.join(FORMS)}")


def _form_of_many(files: Files, spec: ImageSourceSpec) -> str:
    """By the first files there are: a folder with images is a folder of images, whatever else is in it."""
    names = [entry.name for entry in islice(files.list(), _LOOKED_AT)]
    if not any(is_image_name(name, spec.extensions) for name in names):
        for form, belongs in (
            ("webdataset", TAR_NAME.search),
            ("hf-parquet", lambda name: name.lower().endswith(".parquet")),
            ("idx", IDX_NAME.search),
        ):
            if any(belongs(name) for name in names):
                return form
    return "folder"


def _holds_images(files: Files, name: str, spec: ImageSourceSpec) -> bool:
    """Whether a Parquet file has image bytes; a damaged one is taken for one that has."""
    if spec.path_column is not None:
        return False
    try:
        with files.store.open(name) as file:
            return find_image_column(open_parquet(file).schema_arrow, spec.image_column) is not None
    except (pa.ArrowException, OSError):
        return True
