"""Search in page vectors, and where on a page a query finds what it asks for."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tokenshard.errors import SpecError
from tokenshard.report.hits import ACCENT, STRONGEST, emphasis, similarity_map
from tokenshard.retrieval.encoders.base import query_vectors
from tokenshard.retrieval.exact import Vectors
from tokenshard.retrieval.search import PageSearch
from tokenshard.shards.once import OnceCache
from tokenshard.viewer.opened import Opened

MOST_HITS = 50
LONGEST_QUERY = 1_000
EXCERPT = 280
MEMORY = 1 << 30
"""Bytes of codes held in memory; others are read for each query."""
QUERIES_KEPT = 32


@dataclass(frozen=True)
class Query:
    """A text, and of its vectors the one that is looked at (None: all)."""

    text: str
    vector: int | None = None


class Pages:
    """The pages of a dataset and what finds them."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened
        self.search = PageSearch(opened.dataset, opened.options.encoder, memory=MEMORY)
        self._vectors: Callable[[str], Vectors] = OnceCache(self._encode, QUERIES_KEPT)

    def find(self, text: str, top: int) -> dict[str, Any]:
        """The best pages for a text."""
        dataset = self._opened.dataset
        found = self.search.find(self.vectors(text), min(top, MOST_HITS))
        hits = []
        for hit in found.hits:
            number = dataset.index(hit.key)
            hits.append(
                {
                    "key": hit.key,
                    "number": number,
                    "document": hit.document,
                    "page": hit.page,
                    "score": hit.score,
                    "text": self._excerpt(number),
                }
            )
        return {
            "hits": hits,
            "scored": found.scored,
            "exact": found.exact,
            "pages": len(self.search),
            "index": self.search.index is not None,
            "vectors": len(self.vectors(text)),
        }

    def vectors(self, text: str) -> Vectors:
        """Vectors [m, d] of a text. Raises SpecError where it cannot be a query."""
        text = " ".join(text.split())
        if not text or len(text) > LONGEST_QUERY:
            raise SpecError(f"a query of {len(text)} characters; give 1 to {LONGEST_QUERY}")
        return self._vectors(text)

    def matches(self, number: int, query: Query) -> NDArray[np.uint8]:
        """Where a page answers a query: RGBA uint8 [rows, columns, 4] of its patches, clear where it does not."""
        vectors = self.vectors(query.text)
        if query.vector is not None:
            if not 0 <= query.vector < len(vectors):
                raise SpecError(f"no vector {query.vector}; the query has {len(vectors)}")
            vectors = vectors[query.vector : query.vector + 1]
        share = emphasis(similarity_map(self.search, vectors, number))
        colour = np.broadcast_to(ACCENT, (*share.shape, 3))
        return np.dstack([colour, np.rint(255 * STRONGEST * share)]).astype(np.uint8)

    def _encode(self, text: str) -> Vectors:
        return query_vectors(self.search.encoder, text)

    def _excerpt(self, number: int) -> str:
        text = " ".join(str(self._opened.dataset[number].get("text") or "").split())
        return text if len(text) <= EXCERPT else text[:EXCERPT] + "…"


def pages(opened: Opened) -> Pages:
    """The pages of a dataset. Raises SpecError where it holds no page vectors."""
    return opened.part(Pages)


def rgba_png(pixels: NDArray[np.uint8]) -> bytes:
    """RGBA uint8 [rows, columns, 4] as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
