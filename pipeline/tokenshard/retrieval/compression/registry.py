"""The methods there are, by name, and the codec string that chooses one. A new one is a file and a line here.

A codec string is a method with its arguments, as ``ofec:0.16`` or ``pq16``; digits that end a name are its first
argument.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from typing import cast

from tokenshard.errors import SpecError
from tokenshard.retrieval.compression.base import Compressor, Config
from tokenshard.retrieval.exact import Multivectors

METHODS = {
    "ofec": "tokenshard.retrieval.compression.ofec:Ofec",
    "hpc": "tokenshard.retrieval.compression.hpc:Hpc",
    "fp16": "tokenshard.retrieval.compression.fp16:Fp16",
}
DEFAULT = "ofec:0.16"


@dataclass(frozen=True)
class Method:
    """A method with its arguments."""

    text: str
    compressor: type[Compressor]
    options: Config

    @classmethod
    def parse(cls, text: str) -> Method:
        """Raises SpecError on an unknown method or wrong arguments."""
        name, _, rest = text.strip().partition(":")
        arguments = tuple(part.strip() for part in rest.split(",")) if rest else ()
        if name not in METHODS:
            letters, digits = cast(re.Match[str], re.fullmatch(r"(.*?)(\d*)", name)).groups()
            if letters in METHODS and digits:
                name, arguments = letters, (digits, *arguments)
        found = method(name)
        return cls(text.strip(), found, found.parse(arguments))

    def fit(self, sample: Multivectors, seed: int = 0, expected: int | None = None) -> Compressor:
        """Train on the vectors of whole pages. ``expected``: vectors of the whole corpus, where they are a sample."""
        options = self.options if expected is None else {**self.options, "expected": expected}
        return self.compressor.fit(sample, seed, options)


def method(name: str) -> type[Compressor]:
    """The class of that name. Raises SpecError on an unknown one."""
    if name not in METHODS:
        raise SpecError(f"unknown codec {name!r} of page vectors; known: {', '.join(METHODS)}")
    module, _, cls = METHODS[name].partition(":")
    return cast(type[Compressor], getattr(importlib.import_module(module), cls))
