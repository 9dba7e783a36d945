"""What may be trained beyond the plain codebook, by the words before a codec: `balanced|pq16`, `querymap|ofec:0.16`.

Each starts from the plain method, and is refused unless it ranks better than that on held-out pseudo-queries.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import cast

from tokenshard.errors import SpecError
from tokenshard.retrieval.compression.base import Compressor
from tokenshard.retrieval.compression.codewords import Codewords
from tokenshard.retrieval.compression.held_out import Lessons
from tokenshard.retrieval.exact import Multivectors

Training = Callable[[Compressor, Multivectors, Lessons, int], Compressor]
TRAININGS = {
    "balanced": "tokenshard.retrieval.compression.balanced:balanced",
    "distill": "tokenshard.retrieval.compression.distillation:distill",
    "querymap": "tokenshard.retrieval.compression.distillation:query_map",
}
OF_CODEWORDS = frozenset({"balanced", "distill"})
"""Trainings that move codewords."""


def check_training(name: str, method: type[Compressor]) -> None:
    """Raises SpecError where a method has no codewords to train."""
    if name in OF_CODEWORDS and not hasattr(method, "with_codebooks"):
        raise SpecError(f"{name} trains the codewords of hpc, pq and opq; {method.name} has none, leave it out")


def trained(names: tuple[str, ...], plain: Compressor, sample: Multivectors, seed: int) -> Compressor:
    """The method after the trainings of these names, in order. Raises SpecError where one of them does not help."""
    lessons = Lessons.of(sample, seed)
    for name in names:
        if name in OF_CODEWORDS and not isinstance(plain, Codewords):
            raise SpecError(f"{name} must stand right before the codec whose codewords it trains")
        module, _, function = TRAININGS[name].partition(":")
        training = cast(Training, getattr(import_module(module), function))
        plain = lessons.accepted(name, training(plain, sample, lessons, seed), plain)
    return plain
