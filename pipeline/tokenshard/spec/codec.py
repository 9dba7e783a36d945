"""What a shard says about one code column: which codec wrote it and which ids it may hold."""

from __future__ import annotations

from typing import Literal, Self, get_args

from pydantic import Field, model_validator

from tokenshard.spec.base import StoredDocument

CodecName = Literal["pack", "zstd", "context", "copy", "multiset"]
"""The codecs of the format. Others come from installed packages, under names of their own."""
NAME = "^[a-z][a-z0-9_-]{0,31}$"
"""What every name of a codec looks like."""
MAX_ALPHABET = 1 << 20
MAX_MODEL_BYTES = 1 << 24


class CodecSpec(StoredDocument):
    """One code column of a shard (an entry of ``tokenshard.columns`` in the footer)."""

    column: str = Field(description="Parquet column that holds the streams, e.g. `codes` or `codes_0`")
    codec: str = Field(
        pattern=NAME,
        description=f"{', '.join(get_args(CodecName))}, or the codec of that name of a package",
    )
    alphabet: int = Field(ge=1, le=MAX_ALPHABET, description="ids are in [0, alphabet)")
    model: str | None = Field(default=None, description="SHA-256 of the model file <sha256>.tsm, if the codec has one")
    group: int = Field(default=1, ge=1, le=64, description="rows that share one stream (16 for samples under 64 ids)")
    needs_earlier: bool = Field(default=False, description="coded with the ids of the level before as a neighbour")
    package: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}==[A-Za-z0-9][A-Za-z0-9.!+_-]{0,63}$",
        exclude_if=lambda package: package is None,
        description="NAME==VERSION of the package whose codec wrote the column; absent for the codecs of the format",
    )

    @model_validator(mode="after")
    def _a_package_is_named_where_one_is_needed(self) -> Self:
        own = self.codec in get_args(CodecName)
        if own and self.package is not None:
            raise ValueError(f"codec {self.codec!r} is one of the format, not of the package {self.package}")
        if not own and self.package is None:
            raise ValueError(f"codec {self.codec!r} is unknown here, and no package is named that it comes from")
        return self
