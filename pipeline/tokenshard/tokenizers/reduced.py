"""The `reduced` tokenizer: another one with fewer codes, for a lower rate after the fact.

Codes that stand for like vectors become one code (k-means on the codebook, weighted by how often each id occurs), and
the decoder gets the mean vector of each. After Mao et al. 2023 (arXiv:2307.08265), who vary the rate of a VQGAN so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tokenshard.errors import FormatError
from tokenshard.spec.tokenizer import TokenizerSpec
from tokenshard.tokenizers.base import CodebookTokenizer, Tokenizer
from tokenshard.tokenizers.clusters import cluster_codes
from tokenshard.tokenizers.derived import DerivedTokenizer, check_table


class ReducedTokenizer(DerivedTokenizer):
    """Id i of level l of the base becomes ``maps[l][i]``, which stands for ``vectors[l][maps[l][i]]``."""

    kind = "reduced"

    def __init__(
        self,
        base: CodebookTokenizer,
        maps: Sequence[NDArray[np.int32]],
        vectors: Sequence[NDArray[np.float32]],
    ) -> None:
        super().__init__(base)
        self.maps, self.vectors = tuple(maps), tuple(vectors)
        self.levels = tuple(len(codebook) for codebook in vectors)
        self._decoder = base.with_codebooks(vectors)

    @classmethod
    def of(
        cls, base: CodebookTokenizer, counts: Sequence[NDArray[np.int64]], sizes: Sequence[int], seed: int
    ) -> ReducedTokenizer:
        """At most ``sizes[l]`` codes of level l, whose ids occur ``counts[l]`` times; as many levels as are counted."""
        codebooks = base.codebooks()[: len(counts)]
        made = [cluster_codes(*one, seed) for one in zip(codebooks, counts, sizes, strict=True)]
        return cls(base, [clusters.members for clusters in made], [clusters.centroids for clusters in made])

    @classmethod
    def from_tables(cls, base: CodebookTokenizer, spec: TokenizerSpec, tables: dict[str, NDArray[Any]]) -> Self:
        codebooks, levels = base.codebooks(), spec.levels
        names = {f"{what}.{level}" for what in ("map", "codebook") for level in range(len(levels))}
        if len(levels) > len(codebooks) or tables.keys() != names:
            raise FormatError(f"tensors {sorted(tables)} beside those of the base are not {sorted(names)}")
        maps, vectors = [], []
        for level, (codebook, size) in enumerate(zip(codebooks, levels, strict=False)):
            maps.append(check_table(f"map.{level}", tables[f"map.{level}"], len(codebook), size))
            vectors.append(tables[f"codebook.{level}"])
            if vectors[-1].dtype != np.float32 or vectors[-1].shape != (size, codebook.shape[1]):
                raise FormatError(f"tensor codebook.{level} is not float32 [{size}, {codebook.shape[1]}]")
            if not np.isfinite(vectors[-1]).all():
                raise FormatError(f"tensor codebook.{level} holds values that are not finite")
        return cls(base, maps, vectors)

    def derived(self, ids: NDArray[Any]) -> NDArray[Any]:
        out = np.empty((len(ids), min(ids.shape[1], len(self.maps)), *ids.shape[2:]), self.own_dtype())
        for level in range(out.shape[1]):
            out[:, level] = self.maps[level][ids[:, level]]
        return out

    def decode(self, codes: NDArray[Any], size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
        return self._decoder.decode(codes, size)

    def codebooks(self) -> tuple[NDArray[np.float32], ...]:
        """The mean vectors [K, d] of each level."""
        return self.vectors

    def with_codebooks(self, codebooks: Sequence[NDArray[np.float32]]) -> Tokenizer:
        """The base with other codebooks."""
        return self.base.with_codebooks(codebooks)

    def tables(self) -> dict[str, NDArray[Any]]:
        maps = {f"map.{level}": table for level, table in enumerate(self.maps)}
        return maps | {f"codebook.{level}": vectors for level, vectors in enumerate(self.vectors)}
