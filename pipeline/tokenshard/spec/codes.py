"""What a job says about ids that were made elsewhere: another token dataset, or files of another format."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, model_validator

from tokenshard.spec.base import SourceSpec
from tokenshard.spec.codec import MAX_ALPHABET
from tokenshard.spec.manifest import DatasetKind

Dim = Annotated[int, Field(ge=1, lt=1 << 31)]
Count = Annotated[int, Field(ge=1, le=1 << 16)]
Alphabet = Annotated[int, Field(ge=1, le=MAX_ALPHABET)]


class DatasetSourceSpec(SourceSpec):
    """A token dataset, and what of it is taken over."""

    path: str = Field(min_length=1, description="folder or URL of a token dataset")
    version: int | None = Field(default=None, ge=1, description="version of the dataset; default: the newest")
    levels: int | None = Field(default=None, ge=1, description="keep only the first so many levels of the ids")
    codebook_size: Count | tuple[Count, ...] | None = Field(
        default=None, description="merge like codes until only so many are left, of all levels or of each"
    )
    coarse: Count | None = Field(
        default=None, description="split the first level into coarse ids below this, and fine ids"
    )
    used_codes: bool = Field(
        default=False, description="number the ids that occur afresh; the table that leads back is in the manifest"
    )
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
    def _options_exclude_each_other(self) -> Self:
        if self.columns is not None and self.drop:
            raise ValueError("columns and drop exclude each other; name those to keep, or those to leave out")
        if sum([self.codebook_size is not None, self.coarse is not None, self.used_codes]) > 1:
            raise ValueError("codebook_size, coarse and used_codes exclude each other; transcode twice")
        return self

    @property
    def derives(self) -> bool:
        """Whether the ids become those of a tokenizer derived from the dataset's."""
        return self.codebook_size is not None or self.coarse is not None

    @property
    def counts(self) -> bool:
        """Whether planning has to count the ids."""
        return self.codebook_size is not None or self.used_codes


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
