"""COCO form: a JSON file with ``images`` and ``annotations``, and a folder with the images.

The JSON file is read whole, as its join of images and annotations needs (COCO 2017: 450 MB of JSON). Image fields are
carried under their own names, annotations as their number and as JSON text.
"""

from __future__ import annotations

import json
import posixpath
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from tokenshard.errors import InputError
from tokenshard.sources.images.base import ImageSource
from tokenshard.sources.images.columns import CarriedColumns, label_column
from tokenshard.sources.images.files import Files
from tokenshard.sources.images.manifest import locate, planned_table
from tokenshard.sources.images.tables import common_type, json_array
from tokenshard.sources.keys import escape_name, unescape_name
from tokenshard.sources.plan import BATCH, require_usable
from tokenshard.spec.images import ImageSourceSpec
from tokenshard.store import Store

_LOOKED_FOR = 10
"""Images that the image folder is recognised by."""


class CocoSource(ImageSource):
    """Entries of ``images``. ``key`` and ``uri`` are `file_name`, below the image folder."""

    form = "coco"

    def __init__(self, spec: ImageSourceSpec, files: Files, state: Mapping[str, Any] | None = None) -> None:
        super().__init__(spec, files, state)
        self._root: str | None = spec.image_root or (state or {}).get("image_root")

    def state(self) -> dict[str, Any]:
        return {**super().state(), "image_root": None if self.spec.image_root else self._root}

    def plan(self) -> Iterator[pa.RecordBatch]:
        (name,) = (entry.name for entry in self.files.list())
        document = self._document(name)
        if self._root is None:
            self._root = self._find_root(name, [str(image["file_name"]) for image in document["images"][:_LOOKED_FOR]])
        table = _table(document["images"], document.get("annotations"))
        label = None if self.spec.labels == "auto" else label_column(self.spec.labels, table.schema, self.spec.path)
        carried = CarriedColumns(table.schema, {"file_name", "key"}, label)
        batches = table.to_batches(max_chunksize=BATCH)
        planned = planned_table(iter(batches), "file_name", escape_name(name), carried)
        yield from require_usable(planned, self.spec.path)
        self.deliver(carried.columns(), carried.text_labels)

    def _document(self, name: str) -> dict[str, Any]:
        size = self.store.size(name)
        if size > self.spec.max_bytes:
            raise self.option_error(f"JSON of {size} bytes is over max_bytes ({self.spec.max_bytes})")
        try:
            document: dict[str, Any] = json.loads(self.store.read(name))
        except ValueError as error:
            raise self.option_error(f"not JSON: {error}") from error
        images = document.get("images") if isinstance(document, dict) else None
        if not isinstance(images, list) or not all(isinstance(i, dict) and i.get("file_name") for i in images):
            raise self.option_error("not a COCO file: it has no list `images` of objects with a `file_name`")
        return document

    def _find_root(self, json_name: str, names: Sequence[str]) -> str:
        """The image folder, relative to the JSON file's: it or a folder in it, else where COCO puts it beside."""
        for entry in self.store.list():
            for name in names:
                if f"/{entry.name}".endswith(f"/{name}"):
                    return entry.name.removesuffix(name).rstrip("/")
        split = json_name.rpartition(".")[0].rpartition("_")[2]
        for folder in (f"../{split}", f"../images/{split}", "../images", ".."):
            if any(self._exists(posixpath.join(folder, name)) for name in names):
                return folder
        raise self.option_error(f"cannot find the folder with {', '.join(names[:1]) or 'the images'}; set image_root")

    def _exists(self, path: str) -> bool:
        try:
            root, name = locate(self.store.root, path)
        except InputError:
            return False
        return Store(root, self.store.options).exists(name)

    def place(self, uri: str) -> tuple[Store, str]:
        name = unescape_name(uri)
        if "://" in name or name.startswith(("/", "../")):
            raise InputError("file_name leaves the image folder")
        root, name = locate(self.store.root, posixpath.join(self._root or "", name))
        return (self.store if root == self.store.root else Store(root, self.store.options)), name


def _table(images: list[dict[str, Any]], annotations: list[dict[str, Any]] | None) -> pa.Table:
    columns = {title: [image.get(title) for image in images] for title in dict.fromkeys(k for i in images for k in i)}
    if annotations is not None:
        of_image = defaultdict(list)
        for annotation in annotations:
            of_image[annotation.get("image_id")].append(annotation)
        found = [of_image.get(image.get("id"), []) for image in images]
        columns["num_annotations"] = [len(each) for each in found]
        columns["annotations"] = [json.dumps(each, separators=(",", ":")) for each in found]
    types = {title: common_type(pa.null(), values) for title, values in columns.items()}
    types = {title: pa.string() if kind == pa.null() else kind for title, kind in types.items()}
    return pa.table({title: json_array(values, types[title]) for title, values in columns.items()})
