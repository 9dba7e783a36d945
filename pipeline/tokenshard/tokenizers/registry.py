"""The kinds of tokenizers there are, and how users name them: ``patch:4x4,k=1024``.

A kind is one entry here, or an entry point of an installed package, and one class; the class is imported when it is
first needed, so a tokenizer with heavy imports costs nothing to those who use another. Option values are checked here,
before any input is read.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, cast

from tokenshard.errors import SpecError
from tokenshard.extensions import TOKENIZERS, extensions, load_extension
from tokenshard.tokenizers.base import StoredTokenizer, TrainableTokenizer
from tokenshard.tokenizers.packaged import PACKAGED


@dataclass(frozen=True)
class Kind:
    """One kind of tokenizer: where its class is, and the options of its ``fit``, each with its parser.

    The first option may be given without its name. Parsers raise ValueError with what they expect.
    """

    path: str
    options: Mapping[str, Callable[[str], Any]]
    example: str
    trainable: bool = True
    modality: str = "image"
    lent: bool = False
    """whether ``fit`` takes an encoder that the user names"""


def integer(low: int, high: int) -> Callable[[str], int]:
    """The parser of an option that is a whole number from ``low`` to ``high``."""

    def parse(text: str) -> int:
        if text.isascii() and text.isdigit() and len(text) < 10 and low <= int(text) <= high:
            return int(text)
        raise ValueError(f"a whole number from {low} to {high}")

    return parse


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if math.isfinite(number) and number > 0:
        return number
    raise ValueError("a positive number in the unit of the grid")


def _sides(high: int) -> Callable[[str], tuple[int, int]]:
    side = integer(1, high)

    def parse(text: str) -> tuple[int, int]:
        height, times, width = text.partition("x")
        try:
            return side(height), side(width if times else height)
        except ValueError:
            raise ValueError(f"HEIGHTxWIDTH in pixels, each 1 to {high}") from None

    return parse


_OWN: Mapping[str, Kind] = {
    "patch": Kind(
        path="tokenshard.tokenizers.patch:PatchTokenizer",
        options={"patch": _sides(16), "k": integer(1, 1 << 16), "components": integer(1, 64)},
        example="patch:4x4,k=1024",
    ),
    "grid": Kind(
        path="tokenshard.tokenizers.grid:GridTokenizer",
        options={
            "patch": _sides(16),
            "k": integer(1, 1 << 14),
            "codebooks": integer(1, 8),
            "step": _positive,
            "floor": _positive,
        },
        example="grid:8x8,k=256,codebooks=2",
        modality="grid",
    ),
    "conv": Kind(path="tokenshard.tokenizers.conv:ConvVQ", options={}, example="conv", trainable=False),
    "video": Kind(
        path="tokenshard.tokenizers.video:VideoVQ", options={}, example="video", trainable=False, modality="video"
    ),
    "grid-conv": Kind(
        path="tokenshard.tokenizers.grid_conv:GridVQ", options={}, example="grid-conv", trainable=False, modality="grid"
    ),
    "canonical": Kind(
        path="tokenshard.tokenizers.canonical:CanonicalTokenizer",
        options={"q": integer(1, 100), "vocabulary": integer(256, 4096)},
        example="canonical:q=25",
    ),
    "clip-codebook": Kind(
        path="tokenshard.tokenizers.clip_codebook:ClipCodebookTokenizer",
        options={"features": str, "k": integer(2, 4096), "most": integer(12, 4096)},
        example="clip-codebook:default,most=64",
        modality="clip",
        lent=True,
    ),
    "reduced": Kind(
        path="tokenshard.tokenizers.reduced:ReducedTokenizer", options={}, example="reduced", trainable=False
    ),
    "coarse-fine": Kind(
        path="tokenshard.tokenizers.coarse:CoarseFineTokenizer", options={}, example="coarse-fine", trainable=False
    ),
    "external": Kind(
        path="tokenshard.tokenizers.external:ExternalTokenizer", options={}, example="external", trainable=False
    ),
}


class _Kinds(Mapping[str, Kind]):
    """The kinds of this package and those that installed packages add, which are imported when they are asked for."""

    def __getitem__(self, name: str) -> Kind:
        if name not in self:
            raise KeyError(name)
        if name in _OWN:
            return _OWN[name]
        kind = load_extension(TOKENIZERS, name)
        if not isinstance(kind, Kind):
            raise SpecError(
                f"the entry point {name!r} of {TOKENIZERS} is no Kind but a {type(kind).__name__}; repair it"
            )
        return kind

    def __contains__(self, name: object) -> bool:
        return name in _OWN or name in extensions(TOKENIZERS)

    def __iter__(self) -> Iterator[str]:
        yield from _OWN
        yield from (name for name in extensions(TOKENIZERS) if name not in _OWN)

    def __len__(self) -> int:
        return sum(1 for _ in self)


KINDS: Mapping[str, Kind] = _Kinds()


def tokenizer_class(kind: str) -> type[StoredTokenizer]:
    """The class of a kind. Raises :class:`SpecError` when there is none of that name."""
    if kind not in KINDS:
        raise SpecError(f"unknown tokenizer kind {kind!r}; known: {', '.join(KINDS)}")
    module, _, name = KINDS[kind].path.partition(":")
    return cast(type[StoredTokenizer], getattr(importlib.import_module(module), name))


def trainable_class(kind: str) -> type[TrainableTokenizer]:
    """The class of a kind that can be fitted on the input. Raises :class:`SpecError` when it can not."""
    check_trainable(kind)
    return cast(type[TrainableTokenizer], tokenizer_class(kind))


def check_trainable(kind: str) -> None:
    """Raises :class:`SpecError` for a kind that cannot be fitted on the input."""
    if kind in KINDS and not KINDS[kind].trainable:
        saved = f"the folder of a saved one, or {' or '.join(PACKAGED)}"
        raise SpecError(f"a {kind!r} tokenizer cannot be fitted on the input; give {saved}")


def parse_tokenizer(text: str) -> tuple[str, dict[str, Any]]:
    """``kind[:value][,option=value…]`` -> kind and the options given, as ``fit`` takes them.

    ``patch:8x4,k=256`` gives ``("patch", {"patch": (8, 4), "k": 256})``. Errors are :class:`SpecError`.
    """
    kind, _, rest = text.partition(":")
    if kind not in KINDS:
        known = ", ".join(f"{name} (e.g. {entry.example})" for name, entry in KINDS.items() if entry.trainable)
        known += f"; {', '.join(PACKAGED)}"
        names = [name for name, entry in KINDS.items() if entry.trainable] + [*PACKAGED]
        near = get_close_matches(kind, names, n=1)
        meant = f" (did you mean {near[0]!r}?)" if near else ""
        raise SpecError(f"unknown tokenizer {text!r}{meant}; use one of: {known}; or the folder of a saved tokenizer")
    allowed = KINDS[kind].options
    options: dict[str, Any] = {}
    for position, item in enumerate(rest.split(",") if rest else ()):
        name, equals, value = item.partition("=")
        if not equals and position == 0:
            name, value = next(iter(allowed), item), item
        if name not in allowed or not (equals or position == 0):
            raise SpecError(f"tokenizer {text!r}: unknown option {item!r}; options of {kind}: {', '.join(allowed)}")
        if name in options:
            raise SpecError(f"tokenizer {text!r}: option {name!r} is given twice")
        try:
            options[name] = allowed[name](value)
        except ValueError as error:
            raise SpecError(f"tokenizer {text!r}: {name} must be {error}, not {value!r}") from None
    return kind, options
