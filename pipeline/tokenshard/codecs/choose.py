"""Which codec a code column gets: measured on a pilot sample, never assumed. Also the way from a spec to its codec."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tokenshard.codecs.base import Codec, Grids, Ids, sample_sizes
from tokenshard.codecs.blocks import check_ids
from tokenshard.codecs.context import ContextCodec
from tokenshard.codecs.grouped import Grouped
from tokenshard.codecs.pack import PackCodec
from tokenshard.codecs.zstd import ZstdCodec
from tokenshard.errors import FormatError, SpecError
from tokenshard.spec.codec import CodecName, CodecSpec

SHORT = 64
"""Where all samples have fewer ids than this, rows are grouped."""

GROUP = 16
"""Rows that share a stream where samples are short."""

_BY_SIMPLICITY: tuple[CodecName, ...] = ("pack", "zstd", "context")
_TIE = 1.03
_HELD_OUT = 5  # every fifth sample


@dataclass(frozen=True)
class ChosenCodec:
    """A codec for one code column, and what the candidates cost on samples they were not fitted on."""

    codec: Codec
    sizes: dict[CodecName, float]
    """Bits an id, the model file spread over all ids of the dataset."""

    def spec(self, column: str) -> CodecSpec:
        """The entry of this codec in a shard's footer and in the manifest."""
        model = self.codec.model_bytes()
        return CodecSpec(
            column=column,
            codec=self.codec.name,
            alphabet=self.codec.alphabet,
            model=None if model is None else hashlib.sha256(model).hexdigest(),
            group=self.codec.group,
        )


def choose_codec(
    ids: Ids,
    grids: Grids,
    alphabet: int,
    want: Literal["auto"] | CodecName = "auto",
    expected_ids: int | None = None,
) -> ChosenCodec:
    """Fit and measure codecs on a pilot block, and take the smallest; within 3 % of it, the simplest.

    Four samples of five are fitted on, the fifth is measured (all serve for both where there are fewer than five).
    ``expected_ids`` is the size of the whole dataset where it is known, so that a model file is charged to all of it;
    by default the pilot is the dataset. ``want`` names one codec instead of choosing. Deterministic.
    """
    sizes = sample_sizes(grids)
    check_ids(ids, sizes, alphabet)
    held_out = np.arange(len(grids)) % _HELD_OUT == _HELD_OUT - 1
    if not held_out.any():
        held_out[:] = True
    fitted = ~held_out if not held_out.all() else held_out
    names = _BY_SIMPLICITY if want == "auto" else (want,)
    pilot = ids[np.repeat(fitted, sizes)], grids[fitted]
    codecs = {name: _fit(name, *pilot, alphabet, short=int(sizes.max(initial=0)) < SHORT) for name in names}
    rest = ids[np.repeat(held_out, sizes)], grids[held_out]
    total = max(expected_ids or len(ids), 1)
    costs = {name: _measure(codec, *rest, total) for name, codec in codecs.items()}
    best = next(name for name in names if costs[name] <= _TIE * min(costs.values()))
    return ChosenCodec(codecs[best], costs)


def load_codec(spec: CodecSpec, model: bytes | None) -> Codec:
    """The codec that a shard's spec names. Raises :class:`FormatError` when the model is missing or another one."""
    if spec.codec == "pack":
        return PackCodec(spec.alphabet)
    if spec.codec == "zstd":
        return ZstdCodec(spec.alphabet)
    if model is None or hashlib.sha256(model).hexdigest() != spec.model:
        raise FormatError(
            f"column {spec.column} needs the model file models/{spec.model}.tsm; it is missing or damaged"
        )
    codec = ContextCodec.from_model(model)
    if codec.alphabet != spec.alphabet:
        raise FormatError(f"column {spec.column} has an alphabet of {spec.alphabet}, its model one of {codec.alphabet}")
    return codec if spec.group == 1 else Grouped(codec, spec.group)


def _fit(name: CodecName, ids: Ids, grids: Grids, alphabet: int, short: bool) -> Codec:
    if name == "pack":
        return PackCodec(alphabet)
    if name == "zstd":
        return ZstdCodec(alphabet)
    if name == "context":
        codec = ContextCodec.fit(ids, grids, alphabet)
        return Grouped(codec, GROUP) if short else codec
    raise SpecError(f"unknown codec {name!r}; choose auto, {', '.join(_BY_SIMPLICITY)}")


def _measure(codec: Codec, ids: Ids, grids: Grids, total_ids: int) -> float:
    """Bits an id of these samples, with the model file's share."""
    size = codec.parquet_bytes(ids) if isinstance(codec, ZstdCodec) else len(codec.encode(ids, grids)[0])
    model = codec.model_bytes() or b""
    return 8 * (size / max(len(ids), 1) + len(model) / total_ids)
