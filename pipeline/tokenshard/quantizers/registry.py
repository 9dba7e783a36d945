"""The quantizers there are, by name. A new one is a file of its own and a line here."""

from __future__ import annotations

import importlib
from typing import Any, cast

from tokenshard.errors import SpecError
from tokenshard.quantizers.base import Quantizer

QUANTIZERS = {
    "vq": "tokenshard.quantizers.vq:VQ",
    "simvq": "tokenshard.quantizers.simvq:SimVQ",
    "rvq": "tokenshard.quantizers.rvq:RVQ",
    "pq": "tokenshard.quantizers.pq:PQ",
    "opq": "tokenshard.quantizers.pq:OPQ",
    "fsq": "tokenshard.quantizers.fsq:FSQ",
    "lfq": "tokenshard.quantizers.binary:LFQ",
    "bsq": "tokenshard.quantizers.binary:BSQ",
    "lookup": "tokenshard.quantizers.lookup:Lookup",
    "logits": "tokenshard.quantizers.logits:Logits",
}


def make_quantizer(name: str, **options: Any) -> Quantizer:
    """The quantizer of that name. Raises :class:`SpecError` on an unknown name, option or value."""
    if name not in QUANTIZERS:
        raise SpecError(f"unknown quantizer {name!r}; known: {', '.join(QUANTIZERS)}")
    module, _, cls = QUANTIZERS[name].partition(":")
    try:
        return cast(Quantizer, getattr(importlib.import_module(module), cls)(**options))
    except TypeError as error:
        raise SpecError(f"quantizer {name}: {error}") from error
