"""Questions made of pages themselves, and how well a method answers those that its training has not seen.

A pseudo-query is a run of neighbouring vectors of a page; what is ranked are all other pages. Its right answer is exact
MaxSim, so no judgements are needed (Xiao et al., Distill-VQ, arXiv:2204.00185). A trained codebook is taken only where
it ranks better than the plain one on queries that were put aside; otherwise it is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tokenshard.errors import SpecError
from tokenshard.retrieval.compression.base import Compressor
from tokenshard.retrieval.exact import Multivectors, Vectors, maxsim, ranking

PAGES = 400
"""Pages that are ranked, at most."""
QUERIES = 600
"""Pseudo-queries: half to train on, a quarter to choose among the states of training, a quarter to accept by."""
SHORTEST, LONGEST = 4, 20
"""Vectors of a pseudo-query."""
TOP = 10
_LEAST_PAGES = 4 * TOP
_ERRORS = 1.64
"""Standard errors by which the mean must have risen: one side of 95 %."""


@dataclass(frozen=True)
class PseudoQueries:
    """Queries, the page each was taken from, and exact scores [Q, P] of all pages, -inf for its own."""

    queries: Multivectors
    homes: NDArray[np.int64]
    exact: Vectors

    def __len__(self) -> int:
        return len(self.homes)

    def part(self, first: int, last: int) -> PseudoQueries:
        return PseudoQueries(self.queries.part(first, last), self.homes[first:last], self.exact[first:last])

    def overlaps(self, compressor: Compressor, pages: Multivectors) -> NDArray[np.float64]:
        """Share of the exact ten best pages that the codes of a method find, for each query [Q]."""
        scorer = compressor.open(compressor.encode(pages))
        found = np.stack([scorer.scores(self.queries[query]) for query in range(len(self))])
        found[np.arange(len(self)), self.homes] = -np.inf
        both = zip(ranking(found, TOP), ranking(self.exact, TOP), strict=True)
        return np.array([len(np.intersect1d(mine, best)) / TOP for mine, best in both])


@dataclass(frozen=True)
class Lessons:
    """The pages that are ranked, and three sets of queries."""

    pages: Multivectors
    train: PseudoQueries
    choose: PseudoQueries
    accept: PseudoQueries

    @classmethod
    def of(cls, sample: Multivectors, seed: int) -> Lessons:
        """Raises SpecError where the sample has too few pages to rank."""
        rng = np.random.default_rng(seed)
        full = np.flatnonzero(sample.lengths >= SHORTEST)
        if len(full) < _LEAST_PAGES:
            raise SpecError(
                f"training needs a sample of {_LEAST_PAGES} pages to rank at least; this one has {len(full)}"
            )
        chosen = np.sort(rng.permutation(full)[:PAGES])
        pages = Multivectors.of([sample[page] for page in chosen])
        homes = rng.integers(0, len(pages), QUERIES)
        runs = []
        for home in homes:
            length = int(min(rng.integers(SHORTEST, LONGEST + 1), pages.lengths[home]))
            first = int(rng.integers(0, pages.lengths[home] - length + 1))
            runs.append(pages[home][first : first + length])
        queries = Multivectors.of(runs)
        exact = maxsim(queries, pages)
        exact[np.arange(QUERIES), homes] = -np.inf
        asked = PseudoQueries(queries, homes, exact)
        ends = (0, QUERIES // 2, 3 * QUERIES // 4, QUERIES)
        return cls(pages, *(asked.part(first, last) for first, last in pairwise(ends)))

    def accepted(self, name: str, trained: Compressor, plain: Compressor) -> Compressor:
        """The trained method. Raises SpecError unless it ranks better than the plain one on the queries put aside."""
        before, after = (self.accept.overlaps(each, self.pages) for each in (plain, trained))
        rise = after - before
        if rise.mean() <= _ERRORS * rise.std() / np.sqrt(len(rise)):
            raise SpecError(
                f"{name} does not help here: on held-out queries {before.mean():.3f} of the exact ten best pages are "
                f"found without it, {after.mean():.3f} with it; leave it out of --compression"
            )
        return trained
