"""How rare tokens are: inverse document frequency among a sample of the pages, stored with the dataset."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenshard.errors import FormatError


@dataclass(frozen=True)
class Rarity:
    """``of_token`` float32 [vocabulary]: log of the pages over those with the token, both and one more."""

    of_token: NDArray[np.float32]

    @classmethod
    def fit(cls, pages: Iterable[NDArray[np.int64]], vocabulary: int) -> Rarity:
        """From the tokens [n] of some pages. A token that none of them has is as rare as can be."""
        count, seen = 0, np.zeros(vocabulary, np.int64)
        for tokens in pages:
            seen[np.unique(tokens)] += 1
            count += 1
        return cls(np.log((count + 1) / (seen + 1)).astype(np.float32))

    @classmethod
    def from_tensors(cls, tensors: dict[str, NDArray[Any]], vocabulary: int) -> Rarity | None:
        """None where they have none. Raises FormatError unless it is of that vocabulary."""
        found = tensors.get("rarity")
        if found is None:
            return None
        if found.dtype != np.float32 or found.shape != (vocabulary,) or not np.isfinite(found).all():
            raise FormatError(f"tensor rarity of the page encoder is not float32 [{vocabulary}] of finite values")
        return cls(found)

    def tensors(self) -> dict[str, NDArray[Any]]:
        return {"rarity": self.of_token}

    def __call__(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Of tokens [n], in any order."""
        return self.of_token[tokens]
