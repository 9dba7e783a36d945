"""The contract of a first stage: it is built from codes, part by part, and estimates MaxSim of pages for a query."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from tokenshard.retrieval.compression.base import Compressor, Encoded
from tokenshard.retrieval.exact import Vectors

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Numbered:
    """The codes of some pages, and what they are called: ``pages`` int64 [P], ascending, within a part."""

    encoded: Encoded
    pages: NDArray[np.int64]
    rows: tuple[NDArray[np.int64], ...] = ()
    """of each page, the row of patches that each of its vectors belongs to, see :func:`patch_rows`; none where that is
    not known"""


@dataclass(frozen=True)
class Part:
    """What was built of some shards, and the number in the dataset of each of its pages (-1: no longer there)."""

    arrays: Mapping[str, NDArray[Any]]
    entries: int
    numbers: NDArray[np.int64]


ROW = 32
"""Patches of a row at most, as a page of ColPali has them; longer rows, such as mere text is, are cut."""


def patch_rows(places: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    """Rows [n] of patches, given by number, of a grid that is ``width`` patches wide."""
    row, column = np.divmod(places, max(1, width))
    rows: NDArray[np.int64] = row * -(-max(1, width) // ROW) + column // ROW
    return rows


class FirstStage(ABC):
    """An index in memory. Threads may share one."""

    name: ClassVar[str]

    @classmethod
    @abstractmethod
    def build(cls, compressor: Compressor, centroids: Vectors | None, pages: Iterable[Numbered]) -> tuple[Arrays, int]:
        """The arrays of a part, and the number of its entries."""

    @classmethod
    @abstractmethod
    def open(cls, compressor: Compressor, centroids: Vectors | None, parts: Sequence[Part], count: int) -> Self:
        """An index of the pages of all parts, of ``count`` in the dataset. Raises FormatError, KeyError, TypeError or
        ValueError where a part does not fit together."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Memory that it takes."""

    @abstractmethod
    def estimates(self, query: Vectors, probes: int, threads: int = 1) -> Vectors:
        """float32 [P]: the larger, the likelier a page has a large MaxSim with a query [m, d], m at least 1; -inf for
        pages it did not come across. ``probes``: how many neighbours of each query vector it looks at."""
