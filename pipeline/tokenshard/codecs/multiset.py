"""The `multiset` codec: ids of samples whose order means nothing, sorted; about log2(n!)/n bits less for each of n ids.

The alphabet is a tree of halves: ids from a to b are split at (a + b) // 2. A sample is coded as the number of its ids
in the left part of each node, from the root down; each node has a law of that number: a binomial one, or a
beta-binomial one for nodes whose ids tend to come together. With similar ids side by side these laws say more than
independent ids would allow. Streams and model: `schemas/shard-format-streams.md`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tokenshard.codecs.base import Bytes, Grids, Ids, Lengths, RandomAccess, sample_sizes
from tokenshard.codecs.blocks import check_ids, check_lengths, ids_buffer, read_only
from tokenshard.codecs.model_file import open_model, pack_model, require, unpacked
from tokenshard.errors import FormatError, InputError
from tokenshard.spec.base import StoredDocument
from tokenshard.spec.codec import MAX_ALPHABET

MAGIC = b"TSMULTI\0"
VERSION = 1
MAX_IDS = 1 << 24
"""Ids of a sample, at most."""

TOTAL = 4096
"""Sum of the frequencies of all counts of a node."""

_SHARES = (6, 12, 24, 48, 96, 160, 256, 384, 544, 736, 960, 1216, 1504, 1792)
SHARES = (*_SHARES, 2048, *(4096 - share for share in reversed(_SHARES)))
"""Expected shares of the left part of a node, in 4096ths."""

WEIGHTS = (None, 64, 32, 16, 8, 4, 2, 1)
"""How evenly ids are spread: the sum of the parameters of a beta-binomial law, or None for a binomial one."""

LAWS = len(SHARES) * len(WEIGHTS)
"""Law ``i`` has share ``i % 29`` and weight ``i // 29``."""
_CHUNK = 58


class MultisetHeader(StoredDocument):
    """The JSON header of a model file."""

    alphabet: int = Field(ge=1, le=MAX_ALPHABET)


class MultisetCodec(RandomAccess):
    """Codec with a law for each node, ``laws`` uint8 [alphabet] (entry 0 is not used and 0)."""

    name: ClassVar[Literal["multiset"]] = "multiset"
    layout: ClassVar[Literal["binary"]] = "binary"
    group: ClassVar[int] = 1
    needs_earlier: ClassVar[bool] = False

    def __init__(self, laws: NDArray[np.uint8], data: bytes | None = None) -> None:
        require(1 <= len(laws) <= MAX_ALPHABET and laws[0] == 0, "an alphabet out of bounds")
        require(int(laws.max()) < LAWS, "a law that does not exist")
        self.alphabet, self.laws, self._data = len(laws), read_only(laws), data

    @classmethod
    def fit(cls, ids: Ids, grids: Grids, alphabet: int) -> MultisetCodec:
        """The cheapest law of each node for the samples of a pilot. Equal pilots give equal models."""
        sizes = _checked_sizes(ids, grids, alphabet)
        from tokenshard.codecs import multiset_kernels

        bits = np.log2(TOTAL / law_frequencies()).astype(np.float32)
        best, least = np.zeros(alphabet, np.uint8), np.full(alphabet, np.inf, np.float32)
        for first in range(0, LAWS, _CHUNK):
            part = np.ascontiguousarray(bits[first : first + _CHUNK])
            # As if one more id had been seen, half in the left part and half in the right.
            costs = np.tile(part[:, :2].sum(1) / 2, (alphabet, 1))
            multiset_kernels.observe(read_only(ids), sizes, alphabet, part, costs)
            cheapest = costs.min(1)
            best = np.where(cheapest < least, first + costs.argmin(1), best).astype(np.uint8)
            least = np.minimum(cheapest, least)
        best[0] = 0
        return cls(best)

    @classmethod
    def from_model(cls, data: bytes) -> MultisetCodec:
        """The codec of a `.tsm` file. Raises :class:`FormatError` when the file is damaged."""
        header, frame = open_model(data, MAGIC, VERSION, MultisetHeader)
        return cls(np.frombuffer(unpacked(frame, header.alphabet), np.uint8), data)

    def __reduce__(self) -> tuple[object, ...]:
        return (MultisetCodec.from_model, (self.model_bytes(),))

    def model_bytes(self) -> bytes:
        if self._data is None:  # those it was read from are kept: another zstd may compress to other bytes
            header = MultisetHeader(alphabet=self.alphabet)
            self._data = pack_model(MAGIC, VERSION, header, self.laws.tobytes())
        return self._data

    def encode(self, ids: Ids, grids: Grids, earlier: Ids | None = None) -> tuple[Bytes, Lengths]:
        """As :meth:`Codec.encode`; raises InputError also where the ids of a sample are not sorted."""
        sizes = _checked_sizes(ids, grids, self.alphabet)
        num_words = np.zeros(len(sizes), np.int64)
        if self.alphabet == 1 or len(ids) == 0:
            return np.zeros(0, np.uint8), num_words.astype(np.int32)
        from tokenshard.codecs import multiset_kernels

        depth = (self.alphabet - 1).bit_length()
        nodes = np.minimum(sizes * depth, self.alphabet)
        steps = np.empty((3 * int(nodes.max()), 2), np.int64)
        words = np.empty(int((3 * nodes + 2).sum()), np.uint16)  # each step adds at most 12 bits
        used = multiset_kernels.encode(
            read_only(ids), sizes, self.alphabet, self.laws, law_ends(), steps, words, num_words
        )
        return words[:used].astype("<u2", copy=False).view(np.uint8), (2 * num_words).astype(np.int32)

    def decode(
        self, data: Bytes, lengths: Lengths, grids: Grids, out: Ids | None = None, earlier: Ids | None = None
    ) -> Ids:
        sizes = sample_sizes(grids)
        firsts = check_lengths(data, lengths, grids)
        if (lengths % 2).any():
            raise FormatError("a stream of the multiset codec has an odd number of bytes; the shard is damaged")
        ids = ids_buffer(out, int(sizes.sum()), self.alphabet)
        if self.alphabet == 1:
            if len(data):
                raise FormatError("streams of an alphabet of one id are empty; the shard is damaged")
            ids.fill(0)
            return ids
        from tokenshard.codecs import multiset_kernels

        words = read_only(np.frombuffer(data.tobytes(), "<u2").astype(np.uint16, copy=False))
        places = np.append(firsts, len(data)) // 2
        damaged = np.zeros(len(sizes), np.bool_)
        multiset_kernels.decode(words, places, sizes, self.alphabet, self.laws, law_ends(), ids, damaged)
        if damaged.any():
            raise FormatError(
                f"{int(damaged.sum())} of {len(damaged)} streams are damaged, the first is that of sample "
                f"{int(damaged.argmax())} of its block; restore the shard or convert it again"
            )
        return ids

    def open_block(self, data: Bytes, lengths: Lengths, grids: Grids) -> _OpenBlock:
        return _OpenBlock(self, data, lengths, grids, check_lengths(data, lengths, grids))


@dataclass(frozen=True)
class _OpenBlock:
    codec: MultisetCodec
    data: Bytes
    lengths: Lengths
    grids: Grids
    firsts: NDArray[np.int64]

    def sample(self, row: int, earlier: Ids | None = None) -> Ids:
        first, mine = self.firsts[row], slice(row, row + 1)
        return self.codec.decode(self.data[first : first + self.lengths[row]], self.lengths[mine], self.grids[mine])


def _checked_sizes(ids: Ids, grids: Grids, alphabet: int) -> NDArray[np.int64]:
    """Ids of each sample. Raises InputError unless all are sorted, inside the alphabet and not too many."""
    sizes = sample_sizes(grids)
    check_ids(ids, sizes, alphabet)
    if sizes.max(initial=0) > MAX_IDS:
        raise InputError(f"a sample of {sizes.max()} ids; the multiset codec takes at most {MAX_IDS}")
    falls = np.flatnonzero(ids[1:] < ids[:-1]) + 1
    if not np.isin(falls, np.cumsum(sizes)).all():
        raise InputError("the multiset codec keeps no order: the ids of each sample must be sorted")
    return sizes


@cache
def law_frequencies() -> NDArray[np.int64]:
    """[LAWS, ROW]: of each count, for 1 to 31 ids. Plain arithmetic in double precision, the same on any machine."""
    return np.array([_law(SHARES[i % len(SHARES)], WEIGHTS[i // len(SHARES)]) for i in range(LAWS)], np.int64)


@cache
def law_ends() -> NDArray[np.uint16]:
    """[LAWS, ROW]: where the interval of each count ends in the 4096 slots."""
    from tokenshard.codecs.multiset_kernels import BUCKETS

    parts = np.split(law_frequencies(), [(ids - 1) * (ids + 2) // 2 for ids in range(2, BUCKETS)], axis=1)
    return np.concatenate([np.cumsum(part, 1) for part in parts], 1).astype(np.uint16)


def _law(share: int, weight: int | None) -> list[int]:
    from tokenshard.codecs.multiset_kernels import BUCKETS

    p = share / TOTAL
    frequencies: list[int] = []
    for ids in range(1, BUCKETS):
        terms = [1.0]
        for count in range(ids):
            ratio = (ids - count) / (count + 1)
            if weight is None:
                ratio = ratio * p / (1 - p)
            else:
                ratio = ratio * (p * weight + count) / ((1 - p) * weight + (ids - count - 1))
            terms.append(terms[-1] * ratio)
        total = 0.0
        for term in terms:
            total += term
        own = [1 + int(term / total * (TOTAL - ids - 1)) for term in terms]
        own[own.index(max(own))] += TOTAL - sum(own)
        frequencies += own
    return frequencies
