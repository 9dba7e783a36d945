"""`tokenshard.json`: what an export says about itself, so that `tokenshard import` gives the same dataset back.

Lies beside the exported files; other readers of their format never look at it.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, JsonValue

from tokenshard.spec.base import StoredDocument
from tokenshard.spec.manifest import ColumnEntry, DatasetKind, TokenizerEntry

DESCRIPTION = "tokenshard.json"
EXPORT_VERSION = 1


class ExportDescription(StoredDocument):
    """Everything about a dataset that the files of a foreign format have no place for."""

    format: Literal["tokenshard-export"] = "tokenshard-export"
    format_version: int = EXPORT_VERSION
    exchange: str = Field(description="name of the format the samples are in, e.g. `webdataset`")
    kind: DatasetKind = "generic"
    samples: dict[str, int] = Field(description="samples of each split")
    alphabets: tuple[int, ...] = Field(min_length=1, max_length=256, description="ids of level i are below entry i")
    grid: tuple[int | None, ...] = Field(
        min_length=1, max_length=3, description="token grid all samples share; null where they differ"
    )
    extents: tuple[str, ...] = Field(default=(), description="columns with the size of the input along each grid axis")
    downsample: tuple[int, ...] = Field(default=(), description="input cells a token covers along each grid axis")
    columns: tuple[ColumnEntry, ...] = Field(default=(), description="exported columns beside key and codes")
    arrow_schema: str = Field(default="", description="Arrow IPC schema of these columns, base64")
    json_columns: tuple[str, ...] = Field(
        default=(), description="columns that are text in the files and JSON in truth"
    )
    tokenizer: TokenizerEntry
    preprocess: dict[str, JsonValue] = Field(default_factory=dict)
    fingerprint: str = Field(default="", description="fingerprint of the exported dataset")
