"""Search in a dataset of page vectors: MaxSim straight on the codes of its shards.

Codes are laid out for scoring row group by row group; vectors are never made of them. A query is encoded by the encoder
that is stored with what it searches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tokenshard.errors import SpecError
from tokenshard.retrieval.compression import state
from tokenshard.retrieval.compression.base import Compressor, Encoded, Scorer, Streams
from tokenshard.retrieval.encoders.base import PageEncoder, Query
from tokenshard.retrieval.encoders.registry import load_encoder
from tokenshard.shards.dataset import Dataset
from tokenshard.shards.schema import KEY

DOCUMENT, PAGE = "document", "page"


@dataclass(frozen=True)
class Hit:
    """A page that was found."""

    key: str
    document: str
    page: int | None
    score: float
    """MaxSim: the sum over the query's vectors of the best inner product on the page"""


class PageSearch:
    """All pages of a dataset, ready to be scored. Takes the memory of their codes; threads may share one."""

    def __init__(self, dataset: Dataset, encoder: str | None = None, device: str = "cpu") -> None:
        """``encoder``: where the weights of a transformers model are now, e.g. `hf:FOLDER`.

        Raises SpecError where the dataset holds no page vectors, FormatError where its files are damaged.
        """
        if dataset.manifest.kind != "document":
            raise SpecError(
                f"{dataset.store.root}: holds no page vectors; make some with: tokenshard convert documents SRC OUT"
            )
        folder = f"tokenizer/{dataset.manifest.tokenizer.fingerprint}"
        self.encoder: PageEncoder = load_encoder(dataset.store, folder, encoder, device)
        self.compressor: Compressor = state.load(dataset.store.read(f"{folder}/model.safetensors"))
        self._dataset = dataset
        self._scorers: list[Scorer] = [self.compressor.open(encoded) for encoded in self.opened()]
        self._pages = dataset.table([KEY, DOCUMENT, PAGE])
        self.vectors = sum(int(scorer.offsets[-1]) for scorer in self._scorers)
        """vectors of all pages"""

    def __len__(self) -> int:
        return int(self._pages.num_rows)

    def opened(self) -> Iterator[Encoded]:
        """The codes of all pages, a row group at a time."""
        levels = len(self._dataset.manifest.code.levels)
        for group in range(self._dataset.num_row_groups):
            codes = [np.asarray(page).reshape(levels, -1) for page in self._dataset.group_codes(group)]
            yield _encoded(codes, self._dataset.group_table(group, self.compressor.streams), self.compressor)

    @property
    def nbytes(self) -> int:
        """Memory that the codes take."""
        return sum(scorer.nbytes for scorer in self._scorers)

    def scores(self, query: Query, threads: int = 1) -> NDArray[np.float32]:
        """MaxSim of a query with each page, in the order of the dataset; -inf for pages without vectors."""
        vectors = self.encoder.encode_query(query)
        return np.concatenate([scorer.scores(vectors, threads=threads) for scorer in self._scorers])

    def find(self, query: Query, top: int = 10, threads: int = 1) -> list[Hit]:
        """The ``top`` best pages, best first; equal ones in the order of the dataset."""
        scores = self.scores(query, threads)
        best = np.argsort(-scores, kind="stable")[:top]
        rows = self._pages.take(pa.array(best[np.isfinite(scores[best])])).to_pylist()
        return [
            Hit(row[KEY], row[DOCUMENT], row[PAGE], float(score))
            for row, score in zip(rows, scores[best], strict=False)
        ]

    def documents(self, query: Query, top: int = 10, threads: int = 1) -> list[str]:
        """The ``top`` documents by their best pages, best first."""
        scores = self.scores(query, threads)
        names = self._pages[DOCUMENT].to_pylist()
        found: dict[str, None] = {}
        for place in np.argsort(-scores, kind="stable"):
            if len(found) >= top or not np.isfinite(scores[place]):
                break
            found.setdefault(names[place])
        return list(found)


def bytes_per_vector(dataset: Dataset, vectors: int) -> float:
    """Bytes on disk of the columns that search reads, with the models of their codecs, for each vector."""
    import pyarrow.parquet as pq

    columns = dataset.reader(0).columns
    wanted = {"num_tokens", "code_len", *columns.streams, *(spec.column for spec in columns.codes)}
    total = sum(dataset.manifest.models.values())
    for shard in dataset.manifest.shards:
        with dataset.store.open(shard.path) as file:
            metadata = pq.read_metadata(file)
        for group in range(metadata.num_row_groups):
            chunks = [metadata.row_group(group).column(place) for place in range(metadata.num_columns)]
            total += sum(
                chunk.total_compressed_size
                for chunk in chunks
                if chunk.path_in_schema in wanted or chunk.path_in_schema.startswith("code_len_")
            )
    return float(total / max(vectors, 1))


def _encoded(codes: Sequence[NDArray[Any]], table: pa.Table, compressor: Compressor) -> Encoded:
    offsets = np.zeros(len(codes) + 1, np.int64)
    np.cumsum([page.shape[1] for page in codes], out=offsets[1:])
    streams = {name: Streams.of(table[name].to_pylist()) for name in compressor.streams}
    return Encoded(offsets, np.ascontiguousarray(np.concatenate(codes, axis=1)), streams)
