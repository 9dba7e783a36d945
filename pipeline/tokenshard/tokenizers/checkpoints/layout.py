"""What a checkpoint layout is: names of tensors and how they are called here.

Here, the tensors of a network are named as in :mod:`tokenshard.tokenizers.vqgan_network` (levels of the decoder in the
order they are computed in), and those of its quantizer `codebook`, `logits.weight` and `logits.bias`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tokenshard.tokenizers.conv_network import Pixels

Search = Literal["nearest", "cosine", "dot"]
"""How a code is chosen: least distance, least angle, or largest dot product."""


@dataclass(frozen=True)
class Settings:
    """What the document beside a checkpoint says that its tensors cannot."""

    search: Search | None = None
    groups: int | None = None
    shown: Mapping[str, Any] = field(default_factory=dict)
    """facts that the tensors show as well, by name: `codes`, `dim`, `stem`, `channels`, `blocks`"""


@dataclass(frozen=True)
class Layout:
    """A way of naming the tensors of a VQGAN network."""

    name: str
    architecture: Literal["vqgan", "maskgit"]
    renames: Mapping[str, str]
    """regular expression of the beginning of a name -> what is put in its place; tried in order, the first is taken"""
    leaves: Mapping[str, str]
    """parts of names that are called otherwise here, wherever they stand"""
    unused: str
    """regular expression of the beginning of names that encoding and decoding do not need"""
    finest_first: bool
    """whether level 0 of the decoder is that of the image"""
    search: Search
    pixels: Pixels = "signed"

    def renamed(self, names: Iterable[str]) -> tuple[dict[str, str], list[str]]:
        """Name here -> name there, and the names that belong to nothing. Unused ones are left out."""
        found: dict[str, str] = {}
        unknown: list[str] = []
        for name in names:
            if re.match(self.unused, name):
                continue
            here = self._name(name)
            if here is None or here in found:
                unknown.append(name)
            else:
                found[here] = name
        return _in_order_of_computation(found) if self.finest_first else found, unknown

    def _name(self, name: str) -> str | None:
        for pattern, replacement in self.renames.items():
            match = re.match(pattern, name)
            if match:
                rest = name[match.end() :]
                for theirs, ours in self.leaves.items():
                    rest = re.sub(rf"(?:(?<=\.)|^){theirs}(?=\.)", ours, rest)
                return match.expand(replacement) + rest
        return None


_LEVEL = re.compile(r"decoder\.levels\.(\d+)\.")


def _in_order_of_computation(names: Mapping[str, str]) -> dict[str, str]:
    """Names with the levels of the decoder counted from the other end."""
    last = max((int(match[1]) for name in names if (match := _LEVEL.match(name))), default=0)
    return {
        _LEVEL.sub(lambda match: f"decoder.levels.{last - int(match[1])}.", name): there
        for name, there in names.items()
    }


def quantizer_renames() -> dict[str, str]:
    """How most layouts name the parts between encoder and decoder."""
    return {
        r"quant_conv\.": "encoder.project.",
        r"post_quant_conv\.": "decoder.project.",
        r"quantize\.embedding\.weight$": "codebook",
    }
