"""An index directory of fast-plaid, which PyLate reads too: the very codes of a dataset compressed by `plaid:BITS`.

Centroids, bucket limits and codes are those of the dataset. fast-plaid has the buckets of a byte in the order of
dimensions from its highest bits down, and the bits of each lowest first; `plaid` has the lowest bits first throughout.
It numbers pages from 0 without a place for keys, which lie beside in `keys.json`.
"""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenshard.errors import SpecError
from tokenshard.retrieval.compression.plaid import Plaid
from tokenshard.retrieval.export.pages import ExportedPages, PageBatch, PageWriter
from tokenshard.shards.export.base import Output

CHUNK_PAGES = 50_000
"""Pages of a chunk, as fast-plaid has them by default."""
_TURNED = np.packbits(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little"), axis=1)[:, 0]
"""[256]: each byte with its bits in reverse order."""


class FastPlaidWriter(PageWriter):
    """`metadata.json`, `centroids.npy`, `0.codes.npy`, `0.residuals.npy`, `doclens.0.json`, `ivf.npy`, …"""

    def __init__(self, pages: ExportedPages, output: Output) -> None:
        super().__init__(pages, output)
        if not isinstance(pages.compressor, Plaid) or pages.compressor.dimensions % 8:
            raise SpecError(
                f"{pages.dataset.store.root}: is compressed by {pages.compressor.name}; fast-plaid reads the codes of "
                "plaid:1, plaid:2 and plaid:4 in a multiple of 8 dimensions"
            )
        self._plaid = pages.compressor
        self._keys: list[str] = []
        self._codes: list[NDArray[np.int64]] = []
        self._residuals: list[NDArray[np.uint8]] = []
        self._lengths: list[int] = []
        self._chunks = self._vectors = 0
        self._lists: list[NDArray[np.int64]] = []
        self._sizes: list[NDArray[np.float32]] = []
        self._away: NDArray[np.float64] = np.zeros(self._plaid.dimensions)

    def add(self, batch: PageBatch) -> None:
        assert batch.encoded.ids is not None
        ids, lengths = batch.encoded.ids[0].astype(np.int64), batch.encoded.lengths
        if (lengths == 0).any():
            raise SpecError(
                f"page {batch.keys[int(lengths.argmin())]!r} has no vectors, for which fast-plaid has no place"
            )
        width = (self._plaid.dimensions * self._plaid.bits // 8,)
        rows = batch.encoded.streams["residual"].as_rows("residual", np.uint8, width, batch.encoded.offsets)
        of_page = len(self._keys) + np.repeat(np.arange(len(batch)), lengths)
        self._lists.append(np.unique(np.stack([ids, of_page], 1), axis=0))
        away = batch.vectors.vectors - self._plaid.centroids[ids]
        self._away += np.abs(away).sum(0)
        self._sizes.append(np.linalg.norm(away, axis=1))
        self._keys += batch.keys
        self._codes.append(ids)
        self._residuals.append(_TURNED[rows])
        self._lengths += lengths.tolist()
        if len(self._lengths) >= CHUNK_PAGES:
            self._put_chunk()

    def close(self) -> None:
        if self._lengths:
            self._put_chunk()
        lists = np.concatenate([np.zeros((0, 2), np.int64), *self._lists])
        lists = lists[np.lexsort((lists[:, 1], lists[:, 0]))]
        count = len(self._plaid.centroids)
        arrays: dict[str, NDArray[Any]] = {
            "centroids": self._plaid.centroids.astype(np.float16),
            "bucket_cutoffs": self._plaid.cutoffs,
            "bucket_weights": self._plaid.weights,
            "avg_residual": (self._away / max(1, self._vectors)).astype(np.float16),
            "cluster_threshold": np.array(np.quantile(np.concatenate([[0], *self._sizes]), 0.75), np.float32),
            "ivf": lists[:, 1],
            "ivf_lengths": np.bincount(lists[:, 0], minlength=count).astype(np.int32),
        }
        for name, array in arrays.items():
            self._put_array(name, array)
        self._put_json("plan", {"nbits": self._plaid.bits, "num_chunks": self._chunks})
        self._put_json("keys", self._keys)
        described = {
            "num_chunks": self._chunks,
            "nbits": self._plaid.bits,
            "num_partitions": count,
            "num_embeddings": self._vectors,
            "avg_doclen": self._vectors / max(1, len(self._keys)),
            "num_documents": len(self._keys),
        }
        self._put_json("metadata", described)

    def _put_chunk(self) -> None:
        codes = np.concatenate(self._codes)
        self._put_array(f"{self._chunks}.codes", codes)
        self._put_array(f"{self._chunks}.residuals", np.concatenate(self._residuals))
        self._put_json(f"doclens.{self._chunks}", self._lengths)
        described = {
            "num_documents": len(self._lengths),
            "num_embeddings": len(codes),
            "embedding_offset": self._vectors,
        }
        self._put_json(f"{self._chunks}.metadata", described)
        self._codes, self._residuals, self._lengths = [], [], []
        self._chunks, self._vectors = self._chunks + 1, self._vectors + len(codes)

    def _put_array(self, name: str, array: NDArray[Any]) -> None:
        file = io.BytesIO()
        np.save(file, np.ascontiguousarray(array), allow_pickle=False)
        self.output.put(f"{name}.npy", file.getvalue())

    def _put_json(self, name: str, document: Any) -> None:
        self.output.put(f"{name}.json", json.dumps(document).encode())
