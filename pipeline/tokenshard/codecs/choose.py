"""Which codec a code column gets: measured on a pilot sample, never assumed. Also the way from a spec to its codec."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tokenshard.codecs.base import Codec, Grids, Ids, sample_sizes
from tokenshard.codecs.blocks import check_ids
from tokenshard.codecs.context import ContextCodec
from tokenshard.codecs.copy import CopyCodec
from tokenshard.codecs.extension import fit_extension, open_extension, package_of_codec
from tokenshard.codecs.fit import Earlier
from tokenshard.codecs.grouped import Grouped, joined_grids
from tokenshard.codecs.multiset import MultisetCodec
from tokenshard.codecs.pack import PackCodec
from tokenshard.codecs.zstd import ZstdCodec
from tokenshard.errors import FormatError, SpecError
from tokenshard.extensions import CODECS, extensions
from tokenshard.spec.codec import CodecName, CodecSpec

SHORT = 64
"""Where all samples have fewer ids than this, rows are grouped."""

GROUP = 16
"""Rows that share a stream where samples are short."""

_BY_SIMPLICITY: tuple[CodecName, ...] = ("pack", "zstd", "context", "copy")
_NOT_FITTED = frozenset({"pack", "zstd"})
_WITH_MODEL: Mapping[str, Callable[[bytes], ContextCodec | CopyCodec | MultisetCodec]] = {
    "context": ContextCodec.from_model,
    "copy": CopyCodec.from_model,
    "multiset": MultisetCodec.from_model,
}
_TIE = 1.03
_HELD_OUT = 5  # every fifth sample


@dataclass(frozen=True)
class ChosenCodec:
    """A codec for one code column, and what the candidates cost on samples they were not fitted on."""

    codec: Codec
    sizes: dict[str, float]
    """Bits an id, the model file spread over all ids of the dataset."""
    given: bool = False
    """Whether the model is one that was there before: the dataset need not store it again."""

    def spec(self, column: str) -> CodecSpec:
        """The entry of this codec in a shard's footer and in the manifest."""
        model = self.codec.model_bytes()
        return CodecSpec(
            column=column,
            codec=self.codec.name,
            alphabet=self.codec.alphabet,
            model=None if model is None else hashlib.sha256(model).hexdigest(),
            group=self.codec.group,
            needs_earlier=self.codec.needs_earlier,
            package=package_of_codec(self.codec),
        )


def choose_codec(
    ids: Ids,
    grids: Grids,
    alphabet: int,
    want: str = "auto",
    expected_ids: int | None = None,
    earlier: Earlier | None = None,
    table: bytes | None = None,
) -> ChosenCodec:
    """Fit and measure codecs on a pilot block, and take the smallest; within 3 % of it, the simplest.

    Four samples of five are fitted on, the fifth is measured (all serve for both where there are fewer than five).
    Codecs without a model are measured on all: `zstd` finds the more repetitions the more ids it sees.
    ``expected_ids`` is the size of the whole dataset where it is known, so that a model file is charged to all of it;
    by default the pilot is the dataset. ``want`` names one codec instead of choosing; `multiset`, which keeps no order,
    and codecs of installed packages are only taken by name. ``earlier``: the level before of the same samples, which
    the `context` codec may use. ``table``: a model of the `context` codec that comes with the
    tokenizer; it is taken where a fitted one, with the bytes of its model, is dearer. Deterministic.
    """
    sizes = sample_sizes(grids)
    check_ids(ids, sizes, alphabet)
    held_out = np.arange(len(grids)) % _HELD_OUT == _HELD_OUT - 1
    if not held_out.any():
        held_out[:] = True
    fitted = ~held_out if not held_out.all() else held_out
    clips = grids.shape[1] == 3
    names = (_BY_SIMPLICITY if clips else _BY_SIMPLICITY[:-1]) if want == "auto" else (want,)
    group = GROUP if int(sizes.max(initial=0)) < SHORT else 1
    total = max(expected_ids or len(ids), 1)
    pilot, rest = (_Block.of(ids, grids, earlier, samples) for samples in (fitted, held_out))
    codecs = {name: _fit(name, pilot, alphabet, group, total) for name in names}
    whole = _Block(ids, grids, earlier)
    costs = {name: _measure(codec, whole if name in _NOT_FITTED else rest, total) for name, codec in codecs.items()}
    given = None if table is None or "context" not in names else _given(table, alphabet, group)
    if given is not None:
        cost = _measure(given, rest, total) - 8 * len(table or b"") / total
        if cost < costs["context"]:
            codecs["context"], costs["context"] = given, cost
    best = next(name for name in names if costs[name] <= _TIE * min(costs.values()))
    return ChosenCodec(codecs[best], costs, codecs[best] is given)


def load_codec(spec: CodecSpec, model: bytes | None) -> Codec:
    """The codec that a shard's spec names.

    Raises :class:`FormatError` when the model is missing or another one, or the package of the codec is not installed.
    """
    if spec.codec == "pack":
        return PackCodec(spec.alphabet)
    if spec.codec == "zstd":
        return ZstdCodec(spec.alphabet)
    if spec.package is not None and spec.model is None:
        return open_extension(spec, None)
    if model is None or hashlib.sha256(model).hexdigest() != spec.model:
        raise FormatError(f"column {spec.column} needs the model file {spec.model}.tsm; it is missing or damaged")
    if spec.package is not None:
        return open_extension(spec, model)
    codec = _WITH_MODEL[spec.codec](model)
    if codec.needs_earlier != spec.needs_earlier:
        raise FormatError(f"column {spec.column} and its model differ on whether the level before is needed")
    if codec.alphabet != spec.alphabet:
        raise FormatError(f"column {spec.column} has an alphabet of {spec.alphabet}, its model one of {codec.alphabet}")
    return codec if spec.group == 1 else Grouped(codec, spec.group)


class _Block(NamedTuple):
    """Some samples of a pilot."""

    ids: Ids
    grids: Grids
    earlier: Earlier | None

    @classmethod
    def of(cls, ids: Ids, grids: Grids, earlier: Earlier | None, samples: NDArray[np.bool_]) -> _Block:
        mine = np.repeat(samples, sample_sizes(grids))
        beside = None if earlier is None else Earlier(earlier.ids[mine], earlier.alphabet)
        return cls(ids[mine], grids[samples], beside)


def _fit(name: str, pilot: _Block, alphabet: int, group: int, total_ids: int) -> Codec:
    if name == "pack":
        return PackCodec(alphabet)
    if name == "zstd":
        return ZstdCodec(alphabet)
    if name == "context":
        grids = pilot.grids if group == 1 else joined_grids(pilot.grids, group)
        codec = ContextCodec.fit(pilot.ids, grids, alphabet, earlier=pilot.earlier, expected_ids=total_ids)
        return codec if group == 1 else Grouped(codec, group)
    if name == "copy":
        if pilot.grids.shape[1] != 3:
            raise SpecError("the copy codec is for clips, token grids of three axes; choose another one")
        return CopyCodec.fit(pilot.ids, pilot.grids, alphabet, total_ids)
    if name == "multiset":
        return MultisetCodec.fit(pilot.ids, pilot.grids, alphabet)
    if name in extensions(CODECS):
        return fit_extension(name, pilot.ids, pilot.grids, alphabet)
    raise SpecError(f"unknown codec {name!r}; choose auto, {', '.join([*_BY_SIMPLICITY, *extensions(CODECS)])}")


def _given(table: bytes, alphabet: int, group: int) -> Codec:
    codec = ContextCodec.from_model(table)
    if codec.alphabet != alphabet:
        raise FormatError(f"the tokenizer has tables of {codec.alphabet} ids for an alphabet of {alphabet}")
    return codec if group == 1 else Grouped(codec, group)


def _measure(codec: Codec, block: _Block, total_ids: int) -> float:
    """Bits an id of these samples, with the model file's share."""
    ids, grids, earlier = block
    beside = None if earlier is None else earlier.ids
    size = codec.parquet_bytes(ids) if isinstance(codec, ZstdCodec) else len(codec.encode(ids, grids, beside)[0])
    model = codec.model_bytes() or b""
    return 8 * (size / max(len(ids), 1) + len(model) / total_ids)
