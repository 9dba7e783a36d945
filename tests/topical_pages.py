"""Made-up pages whose vectors come from a few topics, as those of text do."""

from __future__ import annotations

import numpy as np

from tokenshard.retrieval.exact import Multivectors


def topical_pages(pages: int, seed: int, dimensions: int = 64) -> Multivectors:
    """Unit vectors around common directions, a few of which make up each page; some pages are short or empty."""
    rng = np.random.default_rng(7)
    words = rng.standard_normal((80, dimensions)) * np.linspace(2, 0.5, dimensions)
    rng = np.random.default_rng(seed)
    found = []
    for page in range(pages):
        size = 0 if page % 17 == 5 else int(rng.integers(1, 90))
        topic = rng.choice(80, 12)
        vectors = words[rng.choice(topic, size)] + 0.8 * rng.standard_normal((size, dimensions))
        found.append((vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32))
    return Multivectors.of(found, dimensions)
