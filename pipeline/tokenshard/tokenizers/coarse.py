"""Coarse and fine ids: the cluster a code is in, and which of the cluster it is. Two small ids restore the one exactly.

After Guo et al. 2025 (arXiv:2503.16194): a model predicts the coarse ids first, then all fine ones at once. Clusters
are those of k-means on the codebook alone, so they do not depend on the data.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tokenshard.codecs.base import id_dtype
from tokenshard.errors import FormatError, SpecError
from tokenshard.spec.tokenizer import TokenizerSpec
from tokenshard.tokenizers.base import CodebookTokenizer
from tokenshard.tokenizers.clusters import cluster_codes
from tokenshard.tokenizers.derived import DerivedTokenizer, check_table


@dataclass(frozen=True)
class CoarseFine:
    """An invertible view of ids below K. ``clusters`` [K]: the coarse id of each; every coarse id occurs.

    The fine id of an id is its rank among those of its cluster, in ascending order.
    """

    clusters: NDArray[np.int32]

    @classmethod
    def of(cls, codebook: NDArray[np.floating], coarse: int, seed: int = 0) -> CoarseFine:
        """``coarse`` clusters (fewer where codes are equal) of the vectors [K, d] of a codebook.

        Raises SpecError unless 1 <= coarse < K.
        """
        if not 1 <= coarse < len(codebook):
            raise SpecError(f"{coarse} coarse ids of {len(codebook)} ids; give a number from 1 to {len(codebook) - 1}")
        return cls(cluster_codes(codebook, np.ones(len(codebook)), coarse, seed).members)

    @property
    def alphabets(self) -> tuple[int, int]:
        """Coarse ids, and fine ids of the largest cluster."""
        return len(self.sizes), int(self.sizes.max())

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """[coarse]: ids of each cluster."""
        return np.bincount(self.clusters)

    @cached_property
    def _order(self) -> NDArray[np.intp]:
        """The ids, cluster by cluster."""
        return np.argsort(self.clusters, kind="stable")

    @property
    def _starts(self) -> NDArray[np.int64]:
        """[coarse]: where each cluster begins in this order."""
        return np.cumsum(self.sizes) - self.sizes

    @cached_property
    def ranks(self) -> NDArray[np.int32]:
        """[K]: the fine id of each id."""
        ranks = np.empty(len(self.clusters), np.int32)
        ranks[self._order] = np.arange(len(ranks)) - np.repeat(self._starts, self.sizes)
        return ranks

    def split(self, ids: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Coarse and fine ids of ids of any shape."""
        coarse, fine = self.alphabets
        return self.clusters[ids].astype(id_dtype(coarse)), self.ranks[ids].astype(id_dtype(fine))

    def join(self, coarse: NDArray[Any], fine: NDArray[Any]) -> NDArray[Any]:
        """The ids again. Raises FormatError where a cluster has no code of that rank."""
        for what, ids, size in zip(("coarse", "fine"), (coarse, fine), self.alphabets, strict=True):
            if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < size:
                raise FormatError(f"{what} ids {ids.min()} to {ids.max()} do not fit an alphabet of {size}")
        if (fine >= self.sizes[coarse]).any():
            raise FormatError("a fine id is not below the number of ids of its cluster")
        joined: NDArray[Any] = self._order[self._starts[coarse] + fine].astype(id_dtype(len(self.clusters)))
        return joined


class CoarseFineTokenizer(DerivedTokenizer):
    """Another tokenizer whose first level is kept as two: coarse ids, then fine ids. The others follow.

    Coarse ids alone decode too: to the mean vector of each cluster.
    """

    kind = "coarse-fine"

    def __init__(self, base: CodebookTokenizer, view: CoarseFine) -> None:
        super().__init__(base)
        self.view = view
        first = base.codebooks()[0]
        sums = np.zeros((view.alphabets[0], first.shape[1]))
        np.add.at(sums, view.clusters, first)
        means = sums / view.sizes[:, None]
        self._preview = base.with_codebooks([means.astype(np.float32)])
        self.levels = (*view.alphabets, *base.spec.levels[1:])

    @classmethod
    def of(cls, base: CodebookTokenizer, coarse: int, seed: int = 0) -> CoarseFineTokenizer:
        """The first level of the base in ``coarse`` clusters."""
        return cls(base, CoarseFine.of(base.codebooks()[0], coarse, seed))

    @classmethod
    def from_tables(cls, base: CodebookTokenizer, spec: TokenizerSpec, tables: dict[str, NDArray[Any]]) -> Self:
        if tables.keys() != {"clusters"}:
            raise FormatError(f"tensors {sorted(tables)} beside those of the base are not ['clusters']")
        clusters = check_table("clusters", tables["clusters"], base.spec.levels[0], spec.levels[0])
        if len(np.unique(clusters)) != spec.levels[0]:
            raise FormatError(f"tensor clusters does not have {spec.levels[0]} clusters")
        return cls(base, CoarseFine(clusters))

    def derived(self, ids: NDArray[Any]) -> NDArray[Any]:
        coarse, fine = self.view.split(ids[:, 0])
        levels = [coarse[:, None], fine[:, None], ids[:, 1:]]
        return np.concatenate([level.astype(self.own_dtype()) for level in levels], axis=1)

    def restored(self, codes: NDArray[Any]) -> NDArray[Any]:
        """Ids [B, levels, *grid] of the base of own ids with at least the first two levels."""
        levels = [self.view.join(codes[:, 0], codes[:, 1])[:, None], codes[:, 2:]]
        return np.concatenate([level.astype(id_dtype(max(self.base.spec.levels))) for level in levels], axis=1)

    def decode(self, codes: NDArray[Any], size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
        if codes.shape[1] == 1:
            return self._preview.decode(codes, size)
        return self.base.decode(self.restored(codes), size)

    def tables(self) -> dict[str, NDArray[Any]]:
        return {"clusters": self.view.clusters}
