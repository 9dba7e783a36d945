"""The quantizers there are, by name. A new one is a file of its own and a line here."""

from __future__ import annotations

import importlib
from typing import Any, cast

from tokenshard.errors import SpecError
from tokenshard.quantizers.base import Quantizer

QUANTIZERS = {
    "vq": "tokenshard.quantizers.vq:VQ",
    "simvq": "tokenshard.quantizers.simvq:SimVQ",
    "vqbridge": "tokenshard.quantizers.vqbridge:VQBridge",
    "rvq": "tokenshard.quantizers.rvq:RVQ",
    "pq": "tokenshard.quantizers.pq:PQ",
    "opq": "tokenshard.quantizers.pq:OPQ",
    "fsq": "tokenshard.quantizers.fsq:FSQ",
    "lfq": "tokenshard.quantizers.binary:LFQ",
    "bsq": "tokenshard.quantizers.binary:BSQ",
}
"""Those that can be trained."""
STORED = {
    "lookup": "tokenshard.quantizers.lookup:Lookup",
    "logits": "tokenshard.quantizers.logits:Logits",
}
"""Those that trained ones are stored as, here or by other programs."""


def make_quantizer(name: str, **options: Any) -> Quantizer:
    """The quantizer of that name. Raises :class:`SpecError` on an unknown name, option or value."""
    known = QUANTIZERS | STORED
    if name not in known:
        raise SpecError(f"unknown quantizer {name!r}; known: {', '.join(known)}")
    module, _, cls = known[name].partition(":")
    try:
        return cast(Quantizer, getattr(importlib.import_module(module), cls)(**options))
    except TypeError as error:
        raise SpecError(f"quantizer {name}: {error}") from error


def trainable_quantizer(name: str, **options: Any) -> Quantizer:
    """As :func:`make_quantizer` for those that can be trained; :class:`SpecError` for the others."""
    if name in STORED:
        raise SpecError(f"quantizer {name!r} is what trained ones are stored as; train one of {', '.join(QUANTIZERS)}")
    return make_quantizer(name, **options)
