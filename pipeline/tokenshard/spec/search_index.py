"""The manifest of a search index (`search/<stage>/NNNNNNNN.json` of a dataset, highest number wins)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tokenshard.spec.base import StoredDocument, digest

FORMAT: Literal["tokenshard-index"] = "tokenshard-index"
FORMAT_VERSION = 1

Stage = Literal["lists", "signs", "hnsw"]


class IndexFile(StoredDocument):
    """A safetensors file of the index, named by its content."""

    path: str = Field(description="relative to the dataset folder, always below search/")
    bytes: int = Field(ge=1)
    sha256: str


class IndexedShard(StoredDocument):
    """A shard whose pages are in a part."""

    path: str
    sha256: str
    rows: int = Field(ge=1)


class IndexPart(StoredDocument):
    """Pages of some shards. A page is numbered by its row in these shards, one after the other."""

    file: IndexFile
    entries: int = Field(ge=0, description="lists: entries of all lists; signs, hnsw: vectors")
    shards: tuple[IndexedShard, ...]


class IndexManifest(StoredDocument):
    """One version of an index."""

    format: Literal["tokenshard-index"] = FORMAT
    min_reader: int = FORMAT_VERSION
    version: int = Field(ge=1)
    stage: Stage
    tokenizer: str = Field(description="fingerprint of the encoder and codec whose vectors are indexed")
    centroids: IndexFile | None = Field(default=None, description="lists: where they are not those of the codec")
    parts: tuple[IndexPart, ...]
    fingerprint: str = ""

    def computed_fingerprint(self) -> str:
        """SHA-256 over all other fields."""
        return digest(self.model_dump(mode="json", exclude={"fingerprint"}))
