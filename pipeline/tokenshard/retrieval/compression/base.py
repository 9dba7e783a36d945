"""The contract of page compression: the vectors of many pages ⇄ ids and byte streams, and MaxSim straight on these.

Stands between encoders, which make vectors, and shards, whose columns it fills: ids go to the code columns, each stream
to a binary column of its name, one run of bytes a page. A method is one class in one file, fitted on a sample and from
then on immutable; the registry knows them by name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from tokenshard.codecs.base import Ids
from tokenshard.errors import FormatError, SpecError
from tokenshard.retrieval.exact import Multivectors, Vectors

Config = dict[str, Any]
"""JSON-able."""
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Streams:
    """One run of bytes a page, back to back: ``data`` uint8 [bytes], ``offsets`` int64 [P + 1]."""

    data: NDArray[np.uint8]
    offsets: NDArray[np.int64]

    @classmethod
    def of(cls, pages: list[bytes]) -> Streams:
        offsets = np.zeros(len(pages) + 1, np.int64)
        np.cumsum([len(page) for page in pages], out=offsets[1:])
        return cls(np.frombuffer(b"".join(pages), np.uint8), offsets)

    @classmethod
    def rows(cls, rows: NDArray[Any], offsets: NDArray[np.int64]) -> Streams:
        """A fixed number of bytes a vector: ``rows`` [N, …] of any little-endian dtype."""
        data = np.ascontiguousarray(rows)
        width = int(np.prod(data.shape[1:], dtype=np.int64)) * data.itemsize
        return cls(data.reshape(-1).view(np.uint8), offsets * width)

    def as_rows(self, name: str, dtype: Any, shape: tuple[int, ...], offsets: NDArray[np.int64]) -> NDArray[Any]:
        """Inverse of :meth:`rows`: [N, *shape]. Raises FormatError where the bytes of a page do not fit its vectors."""
        width = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        if not np.array_equal(self.offsets, offsets * width) or len(self.data) != self.offsets[-1]:
            raise FormatError(f"the stream {name} does not have {width} bytes a vector; the shard is damaged")
        rows: NDArray[Any] = np.ascontiguousarray(self.data).view(dtype).reshape(int(offsets[-1]), *shape)
        return rows

    def __getitem__(self, page: int) -> bytes:
        return self.data[self.offsets[page] : self.offsets[page + 1]].tobytes()

    def __len__(self) -> int:
        return len(self.offsets) - 1


@dataclass(frozen=True)
class Encoded:
    """The codes of some pages."""

    offsets: NDArray[np.int64]
    """[P + 1]: page p has the vectors ``offsets[p]:offsets[p + 1]``"""
    ids: Ids | None = None
    """[levels, N], of a method that has alphabets"""
    streams: Mapping[str, Streams] = field(default_factory=dict)
    order: NDArray[np.int64] | None = None
    """[N]: the row of the pages' vectors that each code stands for, where encoding changed the order within pages.
    It is not needed to decode or to score."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Vectors of each page [P]."""
        return np.diff(self.offsets)


class Scorer(ABC):
    """Codes of pages laid out in memory so that queries are scored on them. Threads may share one."""

    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Memory that the codes take."""

    @abstractmethod
    def prepare(self, query: Vectors) -> Any:
        """Look-up tables of one query float32 [m, d], m at least 1."""

    @abstractmethod
    def score(self, prepared: Any, pages: NDArray[np.int64], out: Vectors) -> None:
        """Write MaxSim with each of ``pages`` (none empty) to ``out``; without the interpreter's lock where it can."""

    def scores(
        self, query: Vectors, pages: NDArray[np.int64] | None = None, threads: int = 1, prepared: Any = None
    ) -> Vectors:
        """MaxSim float32 [P] of a query [m, d] with all pages, or with those given by number.

        ``prepared``: tables of the query that another scorer of the same compressor made. A page without vectors
        scores -inf, a query without them 0, as in :func:`~tokenshard.retrieval.exact.maxsim`.
        """
        chosen = np.arange(len(self)) if pages is None else np.asarray(pages, np.int64)
        if len(chosen) and not 0 <= chosen.min() <= chosen.max() < len(self):
            raise IndexError(f"pages {chosen.min()} to {chosen.max()} of {len(self)}")
        out = np.full(len(chosen), -np.inf, np.float32)
        if not len(query):
            out[:] = 0
            return out
        if prepared is None:
            prepared = self.prepare(np.ascontiguousarray(query, np.float32))
        lengths = self.offsets[chosen + 1] - self.offsets[chosen]
        full = np.flatnonzero(lengths)
        ends = np.searchsorted(np.cumsum(lengths[full]), np.arange(1, threads) / threads * lengths.sum())
        found = [np.empty(len(part), np.float32) for part in np.split(full, ends)]
        parts = [part for part in zip(np.split(full, ends), found, strict=True) if len(part[0])]
        if len(parts) <= 1:
            for part, into in parts:
                self.score(prepared, chosen[part], into)
        else:
            with ThreadPoolExecutor(len(parts)) as pool:
                list(pool.map(lambda part: self.score(prepared, chosen[part[0]], part[1]), parts))
        for part, into in parts:
            out[part] = into
        return out


class Compressor(ABC):
    """A fitted method. Equal vectors give equal codes, whatever pages are beside them and whatever the machine.

    ``dimensions``: d of the vectors. ``alphabets``: number of ids at each level, none for a method without ids.
    """

    name: ClassVar[str]
    streams: ClassVar[tuple[str, ...]] = ()
    """Names of the streams, each a binary column."""
    order_free: ClassVar[bool] = False
    """Whether a page is coded as a multiset: ids of the only level are sorted within a page (codec `multiset`)."""
    variable_rate: ClassVar[bool] = False
    """Whether vectors unlike the sample take more bytes, which tells of them."""
    learned: ClassVar[bool] = False
    """Whether vectors unlike the sample lose precision, as by a codebook of a fixed rate; pages tell their error."""
    dimensions: int
    alphabets: tuple[int, ...] = ()
    centroids: Vectors | None = None
    """[K, d], of a method whose ids are those of the nearest of these."""

    @property
    def levels(self) -> tuple[int, ...]:
        """Alphabets of the code columns that a shard has: of a method without ids one of a single id, in no bytes."""
        return self.alphabets or (1,)

    @classmethod
    @abstractmethod
    def parse(cls, arguments: tuple[str, ...]) -> Config:
        """Options of :meth:`fit` from the arguments of a codec string. Raises SpecError."""

    @classmethod
    @abstractmethod
    def fit(cls, sample: Multivectors, seed: int, options: Config) -> Self:
        """Train on the vectors of whole pages. Equal samples and seeds give equal states.

        ``options``: those of :meth:`parse`, and ``expected``, the vectors of the whole corpus, where it is known.
        """

    @abstractmethod
    def encode(self, pages: Multivectors) -> Encoded:
        """Codes of pages. Raises InputError where vectors have another dimension or are not finite."""

    @abstractmethod
    def decode(self, encoded: Encoded) -> Multivectors:
        """What the codes stand for, in their order. Raises FormatError on damaged ones."""

    @abstractmethod
    def open(self, encoded: Encoded) -> Scorer:
        """Lay codes out for scoring. Raises FormatError on damaged ones."""

    @abstractmethod
    def config(self) -> Config:
        """What is not in :meth:`arrays`."""

    @abstractmethod
    def arrays(self) -> Arrays:
        """The trained arrays."""

    @classmethod
    @abstractmethod
    def from_state(cls, config: Config, arrays: Arrays) -> Self:
        """Inverse of :meth:`config` and :meth:`arrays`. Raises FormatError, KeyError, TypeError or ValueError on what
        does not fit together; :func:`~tokenshard.retrieval.compression.state.load` makes one error of these."""

    def similarities(self, query: Vectors, encoded: Encoded) -> Vectors:
        """[m, N]: of each query vector and each code, for heat maps."""
        return np.asarray(query @ self.decode(encoded).vectors.T, np.float32)


def numbers(
    name: str, arguments: tuple[str, ...], kinds: Mapping[str, type[int] | type[float]], required: int
) -> Config:
    """Arguments of a codec string as numbers, by the names of ``kinds`` in order. Raises SpecError."""
    if not required <= len(arguments) <= len(kinds):
        raise SpecError(f"codec {name} takes {required} to {len(kinds)} arguments ({', '.join(kinds)})")
    values: Config = {}
    for (key, kind), text in zip(kinds.items(), arguments, strict=False):
        try:
            values[key] = kind(text)
        except ValueError:
            raise SpecError(f"codec {name}: {key} must be a number, not {text!r}") from None
    return values
