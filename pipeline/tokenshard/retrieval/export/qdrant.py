"""Qdrant: bodies of its REST calls that create a collection and put points into it.

A point has two multi-vectors: `pages`, all vectors of a page, which are not indexed but re-rank (`m: 0`), and `rows`,
the mean of each row of patches, which HNSW searches first. Its id is the UUID (version 5) of the page's key, so that a
page that is written again replaces itself.
"""

from __future__ import annotations

import json
import uuid

from tokenshard.retrieval.export.json_files import JsonFiles, json_vectors
from tokenshard.retrieval.export.pages import ExportedPages, PageBatch, PageWriter
from tokenshard.shards.export.base import Output, byte_size

NAMESPACE = uuid.UUID("e1bb6fb5-6b5d-5a2b-8c19-0b4b3a9f6a51")
"""Of the ids of points."""
FILE_BYTES = 24 << 20
"""Of the body of one call: a server takes 32 MiB unless told otherwise."""


class QdrantWriter(PageWriter):
    """`collection.json` for ``PUT /collections/NAME``, `points-00000.json`, … for ``PUT /collections/NAME/points``."""

    def __init__(self, pages: ExportedPages, output: Output) -> None:
        super().__init__(pages, output)
        pages.check_json()
        limit = byte_size(output.options.get("shard_bytes", FILE_BYTES))
        self._files = JsonFiles(output, "points", ".json", limit, '{"points":[\n', ",\n", "\n]}\n")

    def add(self, batch: PageBatch) -> None:
        for page, payload in enumerate(batch.payloads()):
            if not len(batch.vectors[page]):
                continue  # a point needs vectors
            vectors = f'{{"pages":{json_vectors(batch.vectors[page])},"rows":{json_vectors(batch.row_means[page])}}}'
            point = f'{{"id":"{point_id(batch.keys[page])}","payload":{json.dumps(payload)},"vector":{vectors}}}'
            self._files.add(point)

    def close(self) -> None:
        self._files.close()
        common = {
            "size": self.pages.compressor.dimensions,
            "distance": "Dot",
            "datatype": "float16",
            "multivector_config": {"comparator": "max_sim"},
        }
        collection = {"vectors": {"pages": common | {"on_disk": True, "hnsw_config": {"m": 0}}, "rows": common}}
        self.output.put("collection.json", (json.dumps(collection, indent=2) + "\n").encode())


def point_id(key: str) -> str:
    """The id of the point of a page."""
    return str(uuid.uuid5(NAMESPACE, key))
