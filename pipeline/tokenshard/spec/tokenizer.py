"""`tokenizer.json`: everything but the weights that is needed to decode a dataset's ids."""

from __future__ import annotations

from pydantic import Field, JsonValue

from tokenshard.spec.base import StoredDocument

PAGES = "pages"
"""Kind of what compresses the vectors of pages: kept like a tokenizer, and decodes nothing."""


class TokenizerSpec(StoredDocument):
    """Description of a tokenizer, stored beside ``model.safetensors``.

    ``levels`` are the alphabet sizes, one a level (RVQ depth, PQ sub-quantizer); ``config`` belongs to ``kind``.
    """

    format: str = "tokenshard-tokenizer"
    format_version: int = 1
    kind: str = Field(description="registered name of the tokenizer class, e.g. `patch`")
    modality: str = Field(default="image", description="what it encodes: image, video, grid, document")
    levels: tuple[int, ...] = Field(min_length=1, description="alphabet size of each level")
    downsample: tuple[int, ...] = Field(
        description="input cells a token covers along each grid axis, e.g. [4, 4]; empty for sequences"
    )
    config: dict[str, JsonValue] = Field(default_factory=dict)
    numerics: str = Field(description="numerics mode the ids depend on: `integer` (exact), `fp32`, `bf16`, `int8`")
    weights_sha256: str = Field(description="SHA-256 of model.safetensors")
    tables: tuple[str, ...] = Field(
        default=(),
        exclude_if=lambda tables: not tables,
        description="SHA-256 of the codec model of each level that comes with the tokenizer, as `<sha256>.tsm` beside "
        "the weights; absent where none do",
    )
    files: tuple[str, ...] = Field(
        default=(),
        exclude_if=lambda files: not files,
        description="further files beside the weights that belong to the tokenizer, e.g. `encoder.json` of page "
        "vectors; absent where there are none",
    )

    @property
    def fingerprint(self) -> str:
        """16 hex digits over this description and the weights: equal fingerprints give equal ids."""
        from tokenshard.spec.base import digest

        return digest(self.model_dump(mode="json"))[:16]
