"""What compression cost a search: the rankings of exact late interaction, on vectors made again from the source."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from tokenshard.engine.job_folder import JobFolder
from tokenshard.errors import SpecError
from tokenshard.parquet import read_parquet
from tokenshard.retrieval.encoders.base import PageEncoder, Query, query_vectors
from tokenshard.retrieval.exact import Multivectors, maxsim
from tokenshard.shards.dataset import Dataset
from tokenshard.shards.schema import KEY
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
    live = set(dataset.table([KEY])[KEY].to_pylist())
    names, made = dict[str, str](), dict[str, NDArray[np.float32]]()
    for version in range(1, dataset.manifest.version + 1):
        folder = JobFolder(dataset.store, version)
        if version > 1 and folder.spec() is None:  # made by a deletion
            continue
        plan = folder.plan()
        if plan is None:
            raise SpecError(
                f"{dataset.store.url(folder.path)}: without the plan of the dataset its pages cannot be encoded again"
            )
        source = open_source(folder.conversion(), plan.source_state)
        for part in plan.parts:
            with dataset.store.open(part.path) as file:
                inputs = read_parquet(file)
            for first in range(0, inputs.num_rows, PAGES):
                items = [thunk() for thunk in source.read(inputs.slice(first, PAGES))]
                pages = [item for item in items if isinstance(item, Sample) and item.key in live]
                names |= {page.key: str(page.columns["document"]) for page in pages}
                made |= {page.key: own.vectors for page, own in zip(pages, encoder.encode_pages(pages), strict=True)}
    documents, vectors = list(names.values()), list(made.values())
    if not vectors:
        raise SpecError(f"{dataset.store.root}: none of its pages can be read from its source any more")
    together, found = Multivectors.of(vectors), {}
    for key, query in queries.items():
        (scores,) = maxsim(Multivectors.of([query_vectors(encoder, query)]), together)
        best: dict[str, None] = {}
        for place in np.argsort(-scores, kind="stable"):
            if len(best) >= top or not np.isfinite(scores[place]):
                break
            best.setdefault(documents[place])
        found[key] = list(best)
    return found
