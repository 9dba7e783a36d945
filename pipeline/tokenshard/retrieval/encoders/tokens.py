"""Text encoders: the words of a page become tokens, and the state of each token a vector with a place on the page.

What ColBERT (Khattab and Zaharia, 2020) does for passages, for pages: tokens keep the patch of their word, so that a
hit can be shown, and text encoders and vision models fill the same kind of grid.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from tokenizers import Encoding, Tokenizer
from tokenshard.errors import InputError, SpecError
from tokenshard.retrieval.encoders.base import PageVectors, Query, Vectors
from tokenshard.retrieval.encoders.rarity import Rarity
from tokenshard.retrieval.encoders.reduction import Reduction
from tokenshard.sources.base import Sample, TextLayer
from tokenshard.spec.documents import EncoderSpec
from tokenshard.tokenizers.weights import weights_sha256, weights_to_bytes

GRID = 32
"""Patches a side of a page, as ColPali has them."""
OVERLAP = 64
"""Tokens that neighbouring windows of a long page share; each takes its states from where it is farther inside."""

States = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Of a sequence of tokens: states [n, D] of the last layer, and the attention received there [n]."""


@dataclass(frozen=True)
class _Window:
    """A sequence of tokens: ids with the special ones around, and which of them count."""

    ids: list[int]
    first: int
    last: int


@dataclass(frozen=True)
class _Places:
    """The tokens of a page and where they are: ``patches`` [n, 2] of the grid."""

    patches: NDArray[np.int32]
    grid: tuple[int, int]
    tokens: NDArray[np.int64]
    """[n]: numbers in the vocabulary"""


class TokenEncoder(ABC):
    """Token states of a text encoder, reduced to ``dimensions`` (None: as wide as they are, mean removed).

    Sequences of equal length run together, so that there is no padding; on CPUs each runs by itself, which makes the
    states of a page independent of the others to the last bit.
    """

    name: ClassVar[str]

    def __init__(self, spec: EncoderSpec, tokenizer: Tokenizer, width: int, longest: int, batch: int) -> None:
        self._spec, self._tokenizer = spec, tokenizer
        self._width, self._longest, self._batch = width, longest, batch
        self._reduction: Reduction | None = None
        self._rarity: Rarity | None = None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        empty = tokenizer.encode("")
        self._before, self._after = _special_around(tokenizer.encode("a"), empty.ids)

    @abstractmethod
    def _states(self, ids: NDArray[np.int64]) -> list[States]:
        """States of sequences of equal length [B, n]."""
        ...

    @property
    def spec(self) -> EncoderSpec:
        return self._spec

    def fitted(self, pages: Sequence[Sample]) -> Self:
        states = [states for _, (states, _) in self.page_states(pages) if len(states)]
        if not states:
            raise InputError("no page of the sample has text; --encoder patch-dct encodes page images")
        return self.with_reduction(self.reduction_of(states))

    def reduction_of(self, states: Sequence[NDArray[np.float32]]) -> Reduction:
        """The reduction that fits the states [n, D] of some pages."""
        return Reduction.fit(states, self._spec.dimensions)

    def counting(self, pages: Sequence[Sample]) -> Self:
        seen = (self._page(page)[0].tokens for page in pages)
        return self._with(self._fitted_reduction, Rarity.fit(seen, self._vocabulary))

    @property
    def _vocabulary(self) -> int:
        """Numbers of tokens are below this; added ones need not follow on the others."""
        return max(self._tokenizer.get_vocab().values()) + 1

    def tensors(self) -> dict[str, NDArray[Any]]:
        return self._fitted_reduction.tensors() | (self._rarity.tensors() if self._rarity is not None else {})

    def with_tensors(self, tensors: dict[str, NDArray[Any]]) -> Self:
        reduction = Reduction.from_tensors(tensors, self._width, self._spec.dimensions)
        return self._with(reduction, Rarity.from_tensors(tensors, self._vocabulary))

    def with_reduction(self, reduction: Reduction) -> Self:
        """The encoder with that reduction of its states."""
        return self._with(reduction, self._rarity)

    def _with(self, reduction: Reduction, rarity: Rarity | None) -> Self:
        other = copy.copy(self)
        other._reduction, other._rarity = reduction, rarity
        fitted = weights_sha256(weights_to_bytes(other.tensors()))
        other._spec = self._spec.model_copy(update={"fitted_sha256": fitted})
        return other

    @property
    def _fitted_reduction(self) -> Reduction:
        if self._reduction is None:
            raise SpecError(f"the encoder {self._spec.name} has not been fitted to pages yet")
        return self._reduction

    # -- pages --------------------------------------------------------------------------------------------------------

    def encode_pages(self, pages: Sequence[Sample]) -> list[PageVectors]:
        return [self._vectors(*found) for found in self.page_states(pages)]

    def page_states(self, pages: Sequence[Sample]) -> list[tuple[_Places, States]]:
        """Where the tokens of each page are, and the states behind their vectors."""
        prepared = [self._page(page) for page in pages]
        ran = iter(self._run([window for _, windows in prepared for window in windows]))
        found = []
        for places, windows in prepared:
            parts = [_inner(next(ran), window) for window in windows]
            states = np.concatenate([np.zeros((0, self._width), np.float32), *(part[0] for part in parts)])
            received = np.concatenate([np.zeros(0, np.float32), *(part[1] for part in parts)])
            found.append((places, (states, received)))
        return found

    def _vectors(self, places: _Places, states: States) -> PageVectors:
        rarity = None if self._rarity is None else self._rarity(places.tokens)
        return PageVectors(
            self._fitted_reduction(states[0]), places.patches, places.grid, saliency=states[1], rarity=rarity
        )

    def _page(self, page: Sample) -> tuple[_Places, list[_Window]]:
        """Where the tokens of a page are, and the sequences they are in."""
        if page.text is None:
            raise InputError("the page has no text layer; this encoder reads text")
        encoded = self._tokenizer.encode(page.text.text, add_special_tokens=False)
        around = len(self._before) + len(self._after)
        most = None if self._spec.max_tokens is None else max(1, self._spec.max_tokens - around)
        ids, offsets = encoded.ids[:most], np.array(encoded.offsets[:most], np.int64).reshape(-1, 2)
        return _Places(*_patches(page.text, offsets), np.array(ids, np.int64)), list(self._windows(ids))

    def _windows(self, ids: list[int]) -> Iterator[_Window]:
        """Sequences as long as the network takes, with an overlap of which each gives the inner half."""
        lead = len(self._before)
        room = self._longest - lead - len(self._after)
        overlap = min(OVERLAP, room // 4)
        start = 0
        while start < len(ids):
            end = min(start + room, len(ids))
            first = overlap // 2 if start else 0
            last = end - start - (overlap - overlap // 2 if end < len(ids) else 0)
            yield _Window([*self._before, *ids[start:end], *self._after], lead + first, lead + last)
            if end == len(ids):
                return
            start = end - overlap

    def _run(self, windows: Sequence[_Window]) -> list[States]:
        """States of all sequences, in order; those of equal length together."""
        by_length: dict[int, list[int]] = {}
        for place, window in enumerate(windows):
            by_length.setdefault(len(window.ids), []).append(place)
        found: dict[int, States] = {}
        for places in by_length.values():
            for start in range(0, len(places), self._batch):
                some = places[start : start + self._batch]
                states = self._states(np.array([windows[place].ids for place in some], np.int64))
                found.update(zip(some, states, strict=True))
        return [found[place] for place in range(len(windows))]

    # -- queries ------------------------------------------------------------------------------------------------------

    def encode_query(self, query: Query) -> Vectors:
        """States of all tokens, also of the special ones: they say what the query as a whole is about."""
        return self._fitted_reduction(self.query_states(query))

    def query_states(self, query: Query) -> NDArray[np.float32]:
        """The states [m, D] behind the vectors of a query, which is cut where it is longer than the network takes."""
        if not isinstance(query, str):
            raise SpecError(f"the encoder {self._spec.name} reads text; it cannot search by an image")
        room = self._longest - len(self._before) - len(self._after)
        ids = self._tokenizer.encode(query, add_special_tokens=False).ids[:room]
        return self._states(np.array([[*self._before, *ids, *self._after]], np.int64))[0][0]


def _special_around(encoded: Encoding, empty: list[int]) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before and after a text."""
    lead = 0
    while lead < len(encoded.ids) and encoded.special_tokens_mask[lead]:
        lead += 1
    return empty[:lead], empty[lead:]


def _inner(states: States, window: _Window) -> States:
    return states[0][window.first : window.last], states[1][window.first : window.last]


def _patches(text: TextLayer, offsets: NDArray[np.int64]) -> tuple[NDArray[np.int32], tuple[int, int]]:
    """Row and column of each token [n, 2], and the grid. Tokens of mere text are a row of patches."""
    count = len(offsets)
    if text.boxes is None:
        return np.stack([np.zeros(count, np.int32), np.arange(count, dtype=np.int32)], 1), (1, max(1, count))
    starts, ends = text.spans[:, 0].astype(np.int64), text.spans[:, 1].astype(np.int64)
    word = np.clip(np.searchsorted(starts, offsets[:, 0], side="right") - 1, 0, max(0, len(starts) - 1))
    if not len(starts):
        return np.zeros((0, 2), np.int32), (GRID, GRID)
    boxes = text.boxes[word].astype(np.float64)
    along = (offsets.mean(1) - starts[word]) / np.maximum(1, ends[word] - starts[word])
    across = boxes[:, 2] - boxes[:, 0] >= boxes[:, 3] - boxes[:, 1]  # where in the word: only for words that lie flat
    share = np.where(across, along.clip(0, 1), 0.5)
    x = boxes[:, 0] + share * (boxes[:, 2] - boxes[:, 0])
    y = (boxes[:, 1] + boxes[:, 3]) / 2
    cells = np.minimum((np.stack([y, x], 1) * GRID).astype(np.int32), GRID - 1)
    return cells, (GRID, GRID)
