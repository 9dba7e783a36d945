"""What a job says about ids that were made elsewhere: another token dataset, or files of another format."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, model_validator

from tokenshard.spec.base import SourceSpec
from tokenshard.spec.codec import MAX_ALPHABET
from tokenshard.spec.manifest import DatasetKind

Dim = Annotated[int, Field(ge=1, lt=1 << 31)]
Alphabet = Annotated[int, Field(ge=1, le=MAX_ALPHABET)]


class DatasetSourceSpec(SourceSpec):
    """A token dataset, and what of it is taken over."""

    path: str = Field(min_length=1, description="folder or URL of a token dataset")
    version: int | None = Field(default=None, ge=1, description="version of the dataset; default: the newest")
    levels: int | None = Field(default=None, ge=1, description="keep only the first so many levels of the ids")
    keys: str = Field(
        default="keep",
        pattern=r"^(keep|prefix:.+|column:.+)$",
        description="keep; prefix:TEXT puts TEXT before every key; column:NAME takes the values of a column",
    )
    columns: tuple[str, ...] | None = Field(
        default=None, description="label and metadata columns to keep; default: all of them"
    )
    drop: tuple[str, ...] = Field(default=(), description="label and metadata columns to leave out")

    @model_validator(mode="after")
    def _columns_are_kept_or_dropped(self) -> Self:
        if self.columns is not None and self.drop:
            raise ValueError("columns and drop exclude each other; name those to keep, or those to leave out")
        return self


class ImportSourceSpec(SourceSpec):
    """Ids in files of another format. What a format does not say itself, and what a user knows better, is said here."""

    path: str = Field(min_length=1, description="file, folder, glob or URL")
    format: str = Field(min_length=1, description="name of the format; `tokenshard import --help` lists them")
    alphabet: Alphabet | tuple[Alphabet, ...] | None = Field(
        default=None, description="ids are below this, for all levels or for each; default: as the format says"
    )
    grid: tuple[Dim, ...] | None = Field(
        default=None, min_length=1, max_length=3, description="token grid of a sample; default: the shape it has"
    )
    column: str | None = Field(
        default=None, description="column, member or array with the ids; default: by its usual names"
    )
    key_column: str | None = Field(default=None, description="column, member or array with the keys")
    labels: str = Field(default="auto", min_length=1, description="auto, none, or the name of a column")
    tokenizer: str | None = Field(default=None, description="saved tokenizer's folder that decodes the ids, if any")
    modality: DatasetKind | Literal["auto"] = Field(default="auto", description="what the ids stand for")
    options: dict[str, JsonValue] = Field(default_factory=dict, description="options of this format alone")
