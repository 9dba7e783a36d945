"""What a shard says about one code column: which codec wrote it and which ids it may hold."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tokenshard.spec.base import StoredDocument

CodecName = Literal["pack", "zstd", "context", "multiset"]
MAX_ALPHABET = 1 << 20


class CodecSpec(StoredDocument):
    """One code column of a shard (an entry of ``tokenshard.columns`` in the footer)."""

    column: str = Field(description="Parquet column that holds the streams, e.g. `codes` or `codes_0`")
    codec: CodecName
    alphabet: int = Field(ge=1, le=MAX_ALPHABET, description="ids are in [0, alphabet)")
    model: str | None = Field(default=None, description="SHA-256 of the model file <sha256>.tsm, if the codec has one")
    group: int = Field(default=1, ge=1, le=64, description="rows that share one stream (16 for samples under 64 ids)")
    needs_earlier: bool = Field(default=False, description="coded with the ids of the level before as a neighbour")
