"""The layouts there are, and which one a checkpoint has. A new one is a file of its own and a line here."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from tokenshard.errors import FormatError
from tokenshard.tokenizers.checkpoints import diffusers, llamagen, maskgit, taming
from tokenshard.tokenizers.checkpoints.layout import Layout, Settings


class Entry(NamedTuple):
    """A layout, and what tells it from the others."""

    layout: Layout
    has: tuple[str, ...]
    """regular expressions of beginnings of names; all its checkpoints have one of each"""
    lacks: str
    """regular expression of the beginning of a name that none has"""
    settings: Callable[[Mapping[str, Any]], Settings] | None
    """reads the document beside a checkpoint"""
    documents: tuple[str, ...] = ()
    """file names of that document, `*` being that of the checkpoint without its ending"""


_NOTHING = r"$^"
LAYOUTS: Mapping[str, Entry] = {
    "taming": Entry(
        taming.LAYOUT,
        (r"encoder\.down\.\d+\.block\.", r"encoder\.conv_in\.bias$"),
        _NOTHING,
        taming.settings,
        ("*.yaml", "config.yaml", "model.yaml"),
    ),
    "llamagen": Entry(llamagen.LAYOUT, (r"encoder\.conv_blocks\.",), _NOTHING, None),
    "diffusers": Entry(diffusers.LAYOUT, (r"encoder\.down_blocks\.",), _NOTHING, diffusers.settings, ("config.json",)),
    "maskgit": Entry(
        maskgit.LAYOUT,
        (r"encoder\.down\.\d+\.block\.",),
        r"encoder\.conv_in\.bias$",
        maskgit.settings,
        ("*.json", "config.json"),
    ),
}


def layout_of(names: Collection[str]) -> Entry:
    """The layout of a checkpoint with these names. Raises :class:`FormatError` where none fits."""
    for entry in LAYOUTS.values():
        if all(_any(pattern, names) for pattern in entry.has) and not _any(entry.lacks, names):
            return entry
    shown = ", ".join(sorted(names)[:5])
    raise FormatError(
        f"the tensors have the names of none of {', '.join(LAYOUTS)} (there are {len(names)}, e.g. {shown})"
    )


def _any(pattern: str, names: Collection[str]) -> bool:
    return any(re.match(pattern, name) for name in names)
