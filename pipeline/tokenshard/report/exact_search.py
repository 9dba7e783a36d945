"""What compression cost a search: the rankings of exact late interaction, on vectors made again from the source."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow.parquet as pq

from tokenshard.engine.job_folder import JobFolder
from tokenshard.errors import SpecError
from tokenshard.retrieval.encoders.base import PageEncoder, Query, query_vectors
from tokenshard.retrieval.exact import Multivectors, maxsim
from tokenshard.shards.dataset import Dataset
from tokenshard.sources.base import Sample
from tokenshard.sources.registry import open_source

PAGES = 64
"""Pages encoded together."""


def exact_rankings(
    dataset: Dataset, encoder: PageEncoder, queries: Mapping[str, Query], top: int = 10
) -> dict[str, list[str]]:
    """The ``top`` documents of each query by fp32 MaxSim. Takes the memory of all vectors.

    Raises SpecError where the plan or the source of the dataset is no longer there.
    """
    names, vectors = [], []
    for version in range(1, dataset.manifest.version + 1):
        folder = JobFolder(dataset.store, version)
        plan = folder.plan()
        if plan is None:
            raise SpecError(
                f"{dataset.store.url(folder.path)}: without the plan of the dataset its pages cannot be encoded again"
            )
        source = open_source(folder.conversion(), plan.source_state)
        for part in plan.parts:
            with dataset.store.open(part.path) as file:
                inputs = pq.read_table(file)
            for first in range(0, inputs.num_rows, PAGES):
                items = [thunk() for thunk in source.read(inputs.slice(first, PAGES))]
                pages = [item for item in items if isinstance(item, Sample)]
                names += [str(page.columns["document"]) for page in pages]
                vectors += [page.vectors for page in encoder.encode_pages(pages)]
    if not vectors:
        raise SpecError(f"{dataset.store.root}: none of its pages can be read from its source any more")
    together, found = Multivectors.of(vectors), {}
    for key, query in queries.items():
        (scores,) = maxsim(Multivectors.of([query_vectors(encoder, query)]), together)
        best: dict[str, None] = {}
        for place in np.argsort(-scores, kind="stable"):
            if len(best) >= top or not np.isfinite(scores[place]):
                break
            best.setdefault(names[place])
        found[key] = list(best)
    return found
