"""Short samples share a stream: 16 rows of a few ids each would otherwise pay 3 bytes of coder state apiece."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from tokenshard.codecs.base import Bytes, Codec, Grids, Ids, Lengths, sample_sizes
from tokenshard.errors import FormatError


@dataclass(frozen=True)
class Grouped:
    """Codes every ``group`` rows as one sample of ``codec``; the stream belongs to the first row of the group.

    The rows of a group are joined along their first axis where their other sides agree, else as one flat run.
    """

    codec: Codec
    group: int

    @property
    def name(self) -> str:
        return self.codec.name

    @property
    def alphabet(self) -> int:
        return self.codec.alphabet

    @property
    def layout(self) -> Literal["binary", "list"]:
        return self.codec.layout

    @property
    def needs_earlier(self) -> bool:
        return self.codec.needs_earlier

    def encode(self, ids: Ids, grids: Grids, earlier: Ids | None = None) -> tuple[Bytes, Lengths]:
        data, group_lengths = self.codec.encode(ids, joined_grids(grids, self.group), earlier)
        lengths = np.zeros(len(grids), np.int32)
        lengths[:: self.group] = group_lengths
        return data, lengths

    def decode(
        self, data: Bytes, lengths: Lengths, grids: Grids, out: Ids | None = None, earlier: Ids | None = None
    ) -> Ids:
        group_lengths = lengths[:: self.group]
        if np.count_nonzero(lengths) != np.count_nonzero(group_lengths):
            raise FormatError(f"a stream begins inside a group of {self.group} rows; the shard is damaged")
        return self.codec.decode(data, group_lengths, joined_grids(grids, self.group), out, earlier)

    def model_bytes(self) -> bytes | None:
        return self.codec.model_bytes()


def joined_grids(grids: Grids, group: int) -> Grids:
    """The grids of groups of rows, each coded as one sample."""
    firsts = np.arange(0, len(grids), group)
    if len(firsts) == 0:
        return grids
    joined = grids[firsts]
    joined[:, 0] = np.add.reduceat(grids[:, 0], firsts)
    agrees = (grids[:, 1:] == grids[firsts, 1:].repeat(group, axis=0)[: len(grids)]).all(axis=1)
    ragged = ~np.logical_and.reduceat(agrees, firsts)
    joined[ragged] = 1
    joined[ragged, -1] = np.add.reduceat(sample_sizes(grids), firsts)[ragged]
    return joined
