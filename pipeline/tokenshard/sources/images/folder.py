"""Folder form: every image file in a folder and below, a glob's matches, or one image. Labels from folder names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import islice

import pyarrow as pa

from tokenshard.sources.base import SourceColumn
from tokenshard.sources.images.base import ImageSource
from tokenshard.sources.images.columns import ClassNames
from tokenshard.sources.keys import escape_name
from tokenshard.sources.plan import Input, plan_batches, require_usable
from tokenshard.store import Entry

SPLITS = frozenset({"train", "val", "valid", "validation", "test", "dev"})
_CHUNK = 1_000
_LITTER = re.compile(r"(?:^|/)(?:\.|(?:Thumbs\.db|__MACOSX)(?:/|$))")
_MAGIC = (
    *(b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    *(b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51", b"qoif", b"\0\0\1\0", b"DDS "),
)
_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"hevc", b"mif1", b"msf1")


class FolderSource(ImageSource):
    """Image files, one input each; ``key`` is the path below the source folder.

    A file is an image by its extension, or, without any extension, by its first bytes. Hidden files and the litter of
    operating systems are skipped; images that can never be read (dangling links, FIFOs, …) are planned as rejects.
    """

    form = "folder"

    def plan(self) -> Iterator[pa.RecordBatch]:
        if self.spec.labels not in {"auto", "none", "folder"}:
            raise self.option_error(f"labels: {self.spec.labels} is no choice for a folder; use auto, none or folder")
        self._layout = layout = _Layout()
        meta = [pa.field("label", pa.string()), pa.field("split", pa.string())]
        yield from require_usable(plan_batches(map(layout.saw, self._inputs()), meta), self.spec.path, self.spec.what)
        self.end_plan()

    def end_plan(self) -> None:
        self.deliver(self._layout.columns(self.spec.labels), text_labels=("label",))

    def _inputs(self) -> Iterator[Input]:
        found = self._found()
        with ThreadPoolExecutor(16) as pool:
            while chunk := list(islice(found, _CHUNK)):
                nameless = [item for item in chunk if isinstance(item, Entry) and _has_no_extension(item.name)]
                sniffed = dict(zip(nameless, pool.map(self._looks_like_image, nameless), strict=True))
                for item in chunk:
                    if isinstance(item, Input):
                        yield item
                    elif self.files.what == "file" or sniffed.get(item, self._is_image(item.name)):
                        name = escape_name(item.name)
                        yield Input(name, name, bytes=item.size)

    def _found(self) -> Iterator[Entry | Input]:
        """Listed files, and where they would have been listed, those that cannot be read."""
        unreadable: list[Input] = []

        def skipped(name: str, reason: str) -> None:
            if not is_litter(name) and (self._is_image(name) or _is_folder(self.store.url(name))):
                unreadable.append(Input(escape_name(name), escape_name(name), error=f"unreadable: {reason}"))

        for entry in self.files.list(skipped):
            yield from unreadable
            unreadable.clear()
            if not is_litter(entry.name):
                yield entry
        yield from unreadable

    def _is_image(self, name: str) -> bool:
        return is_image_name(name, self.spec.extensions)

    def _looks_like_image(self, entry: Entry) -> bool:
        head = self.store.read(entry.name, 0, 16) if entry.size else b""
        riff = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
        return head.startswith(_MAGIC) or riff or (head[4:8] == b"ftyp" and head[8:12] in _BRANDS)


class _Layout:
    """What the folders mean. An image folder is ``[split/]class/…/image`` where all images agree on that."""

    def __init__(self) -> None:
        self._classes = ClassNames()
        self._depth = 1 << 30
        self._all_in_splits = True

    def saw(self, row: Input) -> Input:
        if row.error is not None:
            return row
        folders = row.uri.split("/")[:-1]
        self._depth = min(self._depth, len(folders))
        label = folders[-1] if folders else None
        split = folders[0] if folders and folders[0] in SPLITS else None
        self._all_in_splits &= split is not None
        self._classes.add([label])
        return Input(row.key, row.uri, bytes=row.bytes, meta={"label": label, "split": split})

    def columns(self, labels: str) -> list[SourceColumn]:
        columns = [SourceColumn("split", pa.string(), "metadata")] if self._all_in_splits else []
        labelled = self._depth >= (2 if self._all_in_splits else 1) and not self._classes.too_many
        if labels == "folder" or (labels == "auto" and labelled):
            columns.insert(0, self._classes.column("label"))
        return columns


def is_image_name(name: str, extensions: tuple[str, ...]) -> bool:
    """Whether a file name ends in one of the extensions, in any case."""
    base, dot, extension = name.rpartition("/")[2].rpartition(".")
    return bool(base and dot) and extension.lower() in plain_extensions(extensions)


@cache
def plain_extensions(extensions: tuple[str, ...]) -> frozenset[str]:
    """Extensions in lower case and without a dot."""
    return frozenset(extension.lower().removeprefix(".") for extension in extensions)


def is_litter(name: str) -> bool:
    """Hidden files and folders, and what operating systems and archivers leave behind."""
    return _LITTER.search(name) is not None


def _has_no_extension(name: str) -> bool:
    return "." not in name.rpartition("/")[2]


def _is_folder(path: str) -> bool:
    return os.path.isdir(path) and not os.path.islink(path)
