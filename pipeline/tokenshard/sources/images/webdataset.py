"""WebDataset form: tar archives in which the files of a sample lie side by side and share a name up to its first dot.

An uncompressed archive is scanned once at planning; any worker then reads just the bytes of an image. A compressed one
is read through by each unit that has inputs of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby

import pyarrow as pa

from tokenshard.errors import InputError
from tokenshard.sources.base import SourceColumn
from tokenshard.sources.images.base import ImageSource, Opened, fail
from tokenshard.sources.images.columns import ClassNames
from tokenshard.sources.images.folder import plain_extensions
from tokenshard.sources.images.tar import TAR_ERRORS, Member, is_compressed, members
from tokenshard.sources.keys import UniqueKeys, escape_name, unescape_name
from tokenshard.sources.outcome import cleaned
from tokenshard.sources.plan import DUPLICATE, Input, plan_batches, require_usable
from tokenshard.store import Entry

TAR_NAME = re.compile(r"\.(tar|tgz|tar\.gz)$", re.IGNORECASE)
TEXT_MEMBERS = ("json", "txt", "caption")
"""Members carried as columns of text, as they are."""
MAX_TEXT = 1 << 20
"""Bytes of such a member."""
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")


class WebDatasetSource(ImageSource):
    """Samples of tar archives.

    ``key`` as in WebDataset: the member name up to the first dot of its last part; with the archive's name before it
    where an earlier archive has that key too.
    """

    form = "webdataset"

    def plan(self) -> Iterator[pa.RecordBatch]:
        if self.spec.labels == "folder":
            raise self.option_error(
                "labels: folder is no choice for tar archives; use auto, none or a member, e.g. cls"
            )
        found = _Found()
        meta = [pa.field(name, pa.string()) for name in ("label", *TEXT_MEMBERS)]
        inputs = (found.saw(row) for entry in self._archives() for row in self._inputs(entry))
        yield from require_usable(
            plan_batches(inputs, meta, UniqueKeys(), contained=True), self.spec.path, self.spec.what
        )
        self.deliver(found.columns(), text_labels=("label",))

    def _archives(self) -> Iterator[Entry]:
        named = self.files.what == "file"
        return (entry for entry in self.files.list() if named or TAR_NAME.search(entry.name))

    def _inputs(self, entry: Entry) -> Iterator[Input]:
        """Samples of one archive; for a damaged one those before the damage, and one error in the archive's name."""
        uri, empty = escape_name(entry.name), True
        compressed, seen = is_compressed(self.store, entry.name), set[str]()
        try:
            for key, group in _groups(members(self.store, entry.name, compressed), self._text_members()):
                empty = False
                row = self._input(uri, key, group, compressed)
                yield replace(row, error=DUPLICATE) if key in seen else row
                seen.add(key)
            if empty:
                yield Input(uri, uri, error="empty archive: no samples in it")
        except TAR_ERRORS as error:
            yield Input(
                uri, uri, error=f"damaged archive: {cleaned(str(error))}; the samples before the damage are used"
            )

    def _text_members(self) -> dict[str, str]:
        """Extension -> column of the members that are read at planning."""
        texts = {name: name for name in TEXT_MEMBERS}
        if self.spec.labels != "none":
            texts["cls" if self.spec.labels == "auto" else self.spec.labels] = "label"
        return texts

    def _input(self, uri: str, key: str, group: _Group, compressed: bool) -> Input:
        image, error = self._image(group), group.error
        if key.startswith("/") or ".." in key.split("/"):
            error = "unsafe member name: it points outside the archive"
        elif image is None:
            error = f"no image among the members {', '.join(sorted(group.members))}"
        elif image.sparse:
            error = "sparse member: cannot be read as a byte range; repack the archive"
        name = escape_name(key)
        if error is not None or image is None:
            return Input(name, uri, error=error)
        offset, index = (None, image.index) if compressed else (image.offset, None)
        return Input(name, uri, offset, image.size, index, meta=dict(group.texts))

    def _image(self, group: _Group) -> Member | None:
        """The sample's picture: `jpg` before `mask.png`, else the first."""
        if self.spec.image_column is not None:
            return group.members.get(self.spec.image_column)
        known = plain_extensions(self.spec.extensions)
        pictures = [name for name in group.members if name.rpartition(".")[2] in known]
        return group.members[min(pictures, key=lambda name: "." in name)] if pictures else None

    def _opened(self, rows: Sequence[Input]) -> Iterator[Opened]:
        for (uri, whole), same in groupby(rows, key=lambda row: (row.uri, row.offset is None)):
            group = list(same)
            if whole:
                yield from self._in_sequence(self._streamed(uri, group), len(group))
            else:
                yield from super()._opened(group)

    def _streamed(self, uri: str, rows: Sequence[Input]) -> Iterator[Opened]:
        stream = members(self.store, unescape_name(uri), compressed=True)
        for row in rows:
            member = next((member for member in stream if member.index == row.index), None)
            if member is None:
                return
            if member.size > self.spec.max_bytes:
                too_large = InputError(f"{member.size} bytes are over max_bytes ({self.spec.max_bytes})")
                yield partial(fail, too_large), self._decode
            else:
                yield partial(bytes, member.read()), self._decode


class _Group:
    """Neighbouring members with one key."""

    def __init__(self) -> None:
        self.members: dict[str, Member] = {}
        self.texts: dict[str, str] = {}
        self.error: str | None = None

    def add(self, extension: str, member: Member, column: str | None) -> None:
        self.members[extension] = member
        if column is None:
            return
        if member.size > MAX_TEXT:
            self.error = f"member too large: {extension} has {member.size} bytes, {MAX_TEXT} are allowed"
            return
        try:
            self.texts[column] = member.read().decode()
        except UnicodeDecodeError:
            self.error = f"not text: the member {extension} is not UTF-8"


def _groups(stream: Iterator[Member], texts: dict[str, str]) -> Iterator[tuple[str, _Group]]:
    """Samples of an archive. A member that its sample already has begins another sample (with the same key)."""
    current, group = "", _Group()
    for member in stream:
        folder, slash, base = member.name.removeprefix("./").rpartition("/")
        stem, dot, extension = base.partition(".")
        if not stem or not dot:
            continue
        key, extension = folder + slash + stem, extension.lower()
        if group.members and (key != current or extension in group.members):
            yield current, group
            group = _Group()
        current = key
        group.add(extension, member, texts.get(extension))
    if group.members:
        yield current, group


class _Found:
    """Which columns the samples have. Labels that are all integers are values, others names."""

    def __init__(self) -> None:
        self._classes = ClassNames()
        self._integers = True
        self._present: set[str] = set()

    def saw(self, row: Input) -> Input:
        self._present.update(row.meta)
        if (label := row.meta.get("label")) is not None:
            row.meta["label"] = label = label.strip()
            self._integers &= _INTEGER.fullmatch(label) is not None
            self._classes.add([label])
        return row

    def columns(self) -> list[SourceColumn]:
        columns = [SourceColumn(name, pa.string(), "metadata") for name in TEXT_MEMBERS if name in self._present]
        if "label" in self._present:
            number = SourceColumn("label", pa.int64(), "label")
            columns.insert(0, number if self._integers else self._classes.column("label"))
        return columns
