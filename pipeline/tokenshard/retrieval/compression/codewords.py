"""What training by `balanced` and `distill` changes: methods whose vectors are codewords of independent parts."""

from __future__ import annotations

from typing import Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from tokenshard.retrieval.exact import Vectors


@runtime_checkable
class Codewords(Protocol):
    """A vector is one codeword a part, each the nearest to what the vector has there."""

    codebooks: Vectors
    """[parts, K, width]"""

    def parts(self, vectors: Vectors) -> Vectors:
        """Vectors [n, d], of pages or of queries, as what codewords are compared with: [parts, n, width]."""
        ...

    def with_codebooks(self, codebooks: NDArray[np.float32]) -> Self:
        """The method with other codewords."""
        ...
