"""An open dataset with what all pages of the viewer share: its tokenizer, samples by number, counted codes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tokenshard.errors import SpecError
from tokenshard.shards.dataset import Dataset
from tokenshard.shards.once import OnceCache
from tokenshard.shards.schema import KEY
from tokenshard.spec.tokenizer import PAGES, TokenizerSpec
from tokenshard.tokenizers.base import Tokenizer
from tokenshard.tokenizers.frames import clip_size

T = TypeVar("T")
NO_PIXELS = (PAGES, "external", "clip-codebook")
"""Kinds of tokenizers whose ids cannot be drawn."""
MOST_VALUES = 32
MOST_CHARACTERS = 4_000
"""Of a list, or of a text, that are shown of a cell."""
LABEL_NAMES = 2_000
"""Class names that are sent to the page."""
MOST_FRAMES = 10_000
ORIGINALS_KEPT = 16


class Missing(SpecError):
    """There is no such sample, code or map in the dataset."""


@dataclass(frozen=True)
class Options:
    """What the user has said beside the dataset."""

    originals: bool = False
    """show originals too; they are read where the conversion read them, which may be outside of the dataset"""
    encoder: str | None = None
    """where the weights of a transformers model are now, for search"""


@dataclass(eq=False)
class Opened:
    """One version of a dataset in the viewer. Threads share one."""

    dataset: Dataset
    options: Options = field(default_factory=Options)

    def __post_init__(self) -> None:
        self._parts: Callable[[Callable[[Opened], Any]], Any] = OnceCache(self._make, 16)
        self._original: Callable[[str], NDArray[np.uint8] | None] = OnceCache(self._read_original, ORIGINALS_KEPT)

    def part(self, make: Callable[[Opened], T]) -> T:
        """What ``make`` makes of the dataset; made once, when it is first needed."""
        found: T = self._parts(make)
        return found

    def _make(self, make: Callable[[Opened], Any]) -> Any:
        return make(self)

    @property
    def kind(self) -> str:
        return self.dataset.manifest.kind

    @cached_property
    def etag(self) -> str:
        """Names all that answers depend on beside the request."""
        suffix = "-originals" if self.options.originals else ""
        return f"{self.dataset.fingerprint[:24]}-{version('tokenshard')}{suffix}"

    @property
    def tokenizer(self) -> Tokenizer:
        """Raises SpecError where ids are those of page vectors, FormatError where its files are damaged."""
        return self.part(_tokenizer)

    @property
    def described(self) -> TokenizerSpec:
        """What the dataset says of its tokenizer, whether or not it decodes."""
        return self.part(_described)

    @property
    def decodes(self) -> bool:
        """Whether ids stand for pixels."""
        return self.described.kind not in NO_PIXELS

    @property
    def levels(self) -> int:
        return len(self.dataset.manifest.code.levels)

    def checked(self, number: int) -> int:
        """The number of a sample. Raises Missing where there is none of it."""
        count = len(self.dataset)
        if not 0 <= number < count:
            known = f"they go from 0 to {count - 1:,}" if count else "the dataset is empty"
            raise Missing(f"{self.dataset.store.root}: no sample number {number}; {known}")
        return number

    def sample(self, number: int) -> dict[str, Any]:
        """Columns of a sample, and `codes` [levels, *grid]."""
        found = self.dataset[self.checked(number)]
        codes = np.asarray(found["codes"])
        found["codes"] = codes[None] if self.levels == 1 else codes
        return found

    def original(self, key: str) -> NDArray[np.uint8] | None:
        """The decoded input of a sample, where originals are asked for and at hand."""
        return self._original(key) if self.options.originals else None

    def _read_original(self, key: str) -> NDArray[np.uint8] | None:
        from tokenshard.report.samples import originals

        return dict(originals(self.dataset, [key])).get(key)

    def summary(self) -> dict[str, Any]:
        """What the page needs to know of the dataset before it shows anything; from the manifest alone."""
        manifest = self.dataset.manifest
        columns = [column for column in manifest.columns if column.name in self.dataset.schema.names]
        return {
            "name": self.dataset.store.root.rstrip("/").rpartition("/")[2] or self.dataset.store.root,
            "location": self.dataset.store.root,
            "kind": manifest.kind,
            "version": manifest.version,
            "fingerprint": manifest.fingerprint,
            "etag": self.etag,
            "samples": len(self.dataset),
            "tokens": manifest.totals.ids,
            "bytes": manifest.totals.token_bytes,
            "raw_bytes": manifest.totals.raw_bytes,
            "rejects": manifest.totals.rejects,
            "grid": list(manifest.code.grid),
            "alphabets": [level.alphabet for level in manifest.code.levels],
            "tokenizer": {
                "kind": self.described.kind,
                "fingerprint": manifest.tokenizer.fingerprint,
                "numerics": manifest.tokenizer.numerics,
                "downsample": list(self.described.downsample),
            },
            "decodes": self.decodes,
            "originals": self.options.originals,
            "views": [
                name
                for name, there in (
                    ("samples", True),
                    ("codebook", True),
                    ("storage", True),
                    ("maps", manifest.kind == "grid"),
                    ("search", manifest.kind == "document"),
                )
                if there
            ],
            "columns": [
                {
                    "name": column.name,
                    "type": column.type,
                    "role": column.role,
                    **({"names": list(column.names[:LABEL_NAMES])} if column.names else {}),
                }
                for column in columns
            ],
            "splits": manifest.splits,
        }

    def details(self, number: int) -> dict[str, Any]:
        """A sample as the page shows it: its columns, and what its codes are."""
        found = self.sample(number)
        codes = found.pop("codes")
        roles = {column.name: column for column in self.dataset.manifest.columns}
        rows = []
        for name, value in found.items():
            column = roles[name]
            row = {"name": name, "type": column.type, "role": column.role, "value": shown(value)}
            if column.names and isinstance(value, int) and 0 <= value < len(column.names):
                row["means"] = column.names[value]
            rows.append(row)
        clip = {"clip": _clip(found, self.described.downsample)} if codes.ndim == 4 else {}
        return {
            "number": number,
            "key": found[KEY],
            **clip,
            "columns": rows,
            "codes": {"levels": len(codes), "grid": list(codes.shape[1:]), "ids": int(codes.size)},
        }


def shown(value: Any) -> Any:
    """A value of a column as JSON that is short enough to be shown."""
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, str):
        return value if len(value) <= MOST_CHARACTERS else value[:MOST_CHARACTERS] + "…"
    if isinstance(value, list | tuple):
        some = [shown(item) for item in value[:MOST_VALUES]]
        return some if len(value) <= MOST_VALUES else [*some, f"… {len(value):,} in all"]
    if isinstance(value, Mapping):
        return {str(name): shown(item) for name, item in value.items()}
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def _clip(found: Mapping[str, Any], downsample: Sequence[int]) -> dict[str, Any]:
    """Frames of a clip, the seconds at which each is shown, and how many of them a step of the token grid covers."""
    frames = clip_size(found)[0]
    pts, fps = found.get("pts"), found.get("fps") or 25.0
    times = [(time - pts[0]) / 1e6 for time in pts] if pts else [number / fps for number in range(frames)]
    return {"frames": frames, "times": times[:MOST_FRAMES], "step": downsample[0] if len(downsample) == 3 else 1}


def _tokenizer(opened: Opened) -> Tokenizer:
    from tokenshard.tokenizers.folder import load_tokenizer

    return load_tokenizer(opened.dataset.store, _folder(opened))


def _described(opened: Opened) -> TokenizerSpec:
    from tokenshard.tokenizers.folder import read_tokenizer_spec

    return read_tokenizer_spec(opened.dataset.store, _folder(opened))


def _folder(opened: Opened) -> str:
    return f"tokenizer/{opened.dataset.manifest.tokenizer.fingerprint}"
