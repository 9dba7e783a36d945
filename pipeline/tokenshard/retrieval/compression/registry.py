"""The methods there are, by name, and the codec string that chooses one. A new one is a file and a line here.

A codec string is a method with its arguments, as ``ofec:0.16`` or ``pq16``; digits that end a name are its first
argument. Before it may stand reductions, from left to right: ``pool:2|ofec:0.16``, ``prune:attention,0.6|hpc:256``,
and what is trained beyond the plain codebook: ``distill|pq16``.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from typing import cast

import numpy as np

from tokenshard.errors import SpecError
from tokenshard.retrieval.compression.base import Compressor, Config
from tokenshard.retrieval.compression.reduction import Labels, Prune, Reduction, Source, parse_reduction
from tokenshard.retrieval.compression.training import TRAININGS, check_training, trained
from tokenshard.retrieval.exact import Multivectors, Vectors

METHODS = {
    "ofec": "tokenshard.retrieval.compression.ofec:Ofec",
    "plaid": "tokenshard.retrieval.compression.plaid:Plaid",
    "pq": "tokenshard.retrieval.compression.pq:Pq",
    "opq": "tokenshard.retrieval.compression.pq:Opq",
    "rq": "tokenshard.retrieval.compression.pq:Rq",
    "rabitq": "tokenshard.retrieval.compression.rotated:RaBitQ",
    "caq": "tokenshard.retrieval.compression.rotated:Caq",
    "saq": "tokenshard.retrieval.compression.saq:Saq",
    "pvq": "tokenshard.retrieval.compression.pvq:Pvq",
    "lvq": "tokenshard.retrieval.compression.lvq:Lvq",
    "leanvec": "tokenshard.retrieval.compression.lvq:LeanVec",
    "int": "tokenshard.retrieval.compression.scalar:Int",
    "bits": "tokenshard.retrieval.compression.bits:Bits",
    "hpc": "tokenshard.retrieval.compression.hpc:Hpc",
    "fp16": "tokenshard.retrieval.compression.fp16:Fp16",
}
WRAPPERS = {"querymap": "tokenshard.retrieval.compression.query_map:QueryMap"}
"""What training puts around a method."""
DEFAULT = "ofec:0.16"


@dataclass(frozen=True)
class Method:
    """A method with its arguments, and what comes before it."""

    text: str
    reductions: tuple[Reduction, ...]
    compressor: type[Compressor]
    options: Config
    trainings: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Method:
        """Raises SpecError on an unknown method or wrong arguments."""
        *before, last = text.split("|")
        name, _, rest = last.strip().partition(":")
        arguments = tuple(part.strip() for part in rest.split(",")) if rest else ()
        if name not in METHODS:
            letters, digits = cast(re.Match[str], re.fullmatch(r"(.*?)(\d*)", name)).groups()
            if letters in METHODS and digits:
                name, arguments = letters, (digits, *arguments)
        if name not in METHODS:
            raise SpecError(f"unknown codec {name!r} of page vectors; known: {', '.join(METHODS)}")
        found = method(name)
        words = [part.strip() for part in before]
        trainings = tuple(word for word in words if word in TRAININGS)
        for training in trainings:
            check_training(training, found)
        reductions = tuple(parse_reduction(word) for word in words if word not in TRAININGS)
        if len(_saliencies(reductions)) > 1:
            raise SpecError(f"{text}: prune by attention or by idf, not by both")
        return cls(text.strip(), reductions, found, found.parse(arguments), trainings)

    @property
    def saliency(self) -> Source | None:
        """What pages are pruned by that has to come with them; None where nothing has to."""
        return next(iter(_saliencies(self.reductions)), None)

    def reduce(self, pages: Multivectors, saliency: Vectors | None = None) -> tuple[Multivectors, Labels]:
        """Apply all reductions to pages, with the saliency of each vector [N] that they are pruned by.

        Raises InputError where one needs saliency and there is none.
        """
        labels = np.arange(len(pages.vectors))
        for reduction in self.reductions:
            pages, own = reduction.apply(pages, saliency)
            # The saliency of what was put together is that of its most salient part.
            if saliency is not None:
                merged = np.full(len(pages.vectors), -np.inf, np.float32)
                np.maximum.at(merged, own[own >= 0], saliency[own >= 0])
                saliency = merged
            labels = np.where(labels >= 0, own[labels], -1)
        return pages, labels

    def fit(self, sample: Multivectors, seed: int = 0, expected: int | None = None) -> Compressor:
        """Train on the vectors of whole pages. ``expected``: vectors of the whole corpus, where they are a sample.

        Raises SpecError where a training beyond the plain codebook does not rank better than that.
        """
        options = self.options if expected is None else {**self.options, "expected": expected}
        plain = self.compressor.fit(sample, seed, options)
        return trained(self.trainings, plain, sample, seed) if self.trainings else plain


def _saliencies(reductions: tuple[Reduction, ...]) -> set[Source]:
    return {step.by for step in reductions if isinstance(step, Prune) and step.by != "random"}


def method(name: str) -> type[Compressor]:
    """The class of that name. Raises SpecError on an unknown one."""
    known = METHODS | WRAPPERS
    if name not in known:
        raise SpecError(f"unknown codec {name!r} of page vectors; known: {', '.join(METHODS)}")
    module, _, cls = known[name].partition(":")
    return cast(type[Compressor], getattr(importlib.import_module(module), cls))
