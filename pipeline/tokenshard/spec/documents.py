"""What a job says about its documents, and what a dataset of page vectors says about the encoder that made them."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import ByteSize, Field, JsonValue, model_validator

from tokenshard.spec.base import SourceSpec, StoredDocument, digest

DocumentForm = Literal["auto", "files", "corpus"]
DOCUMENT_EXTENSIONS = ("pdf", "png", "jpg", "jpeg", "tif", "tiff", "webp", "bmp")
PageRanges = Annotated[str, Field(pattern=r"^\d+(-\d*)?(,\d+(-\d*)?)*$")]


class DocumentSourceSpec(SourceSpec):
    """Documents of a conversion job: PDF files and page images, or the lines of a text corpus."""

    form: DocumentForm = Field(
        default="auto", description="files: PDF and page images, also in tars; corpus: BEIR JSON lines; auto: found out"
    )
    pages: PageRanges | None = Field(
        default=None, description="pages of each document, counted from 1, e.g. `1-3,7,10-`; none: all"
    )
    render: bool | None = Field(
        default=None, description="make page images; none: where the encoder reads images and not text"
    )
    page_pixels: int = Field(default=1 << 20, ge=1, description="page images are as large as fits into so many pixels")
    dpi: float | None = Field(default=None, gt=0, le=2400, description="pixels an inch, instead of page_pixels")
    passwords_env: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_]\w*$",
        description="environment variable with passwords: one for all files, or JSON {name or glob: password}",
    )
    passwords_file: str | None = Field(default=None, min_length=1, description="file with passwords, as passwords_env")
    max_pages: int = Field(default=10_000, ge=1, description="documents with more pages are rejected")
    max_pixels: int = Field(
        default=178_956_970, ge=1, description="pages, and pictures in them, with more pixels are rejected"
    )
    max_chars: int = Field(default=1_000_000, ge=1, description="pages with more text are rejected")
    max_seconds: float = Field(default=60, gt=0, description="pages that take longer to draw are rejected")
    max_bytes: ByteSize = Field(default=ByteSize(1 << 30), ge=1, description="larger files are rejected unread")
    extensions: tuple[str, ...] = Field(
        default=DOCUMENT_EXTENSIONS, min_length=1, description="file name extensions taken for documents, any case"
    )

    @model_validator(mode="after")
    def _page_ranges_ascend(self) -> Self:
        if self.pages is not None:
            for first, last in page_ranges(self.pages):
                if first < 1 or (last is not None and last < first):
                    raise ValueError(f"pages: {self.pages}: pages count from 1, and a range ends after it begins")
        return self

    @model_validator(mode="after")
    def _passwords_have_one_origin(self) -> Self:
        if self.passwords_env is not None and self.passwords_file is not None:
            raise ValueError("passwords_env and passwords_file are both set; leave one out")
        return self

    def output_fields(self) -> dict[str, JsonValue]:
        """The fields that decide the output: all but the places that documents and passwords are read from."""
        return self.model_dump(mode="json", exclude={"path", "passwords_env", "passwords_file"})


class VectorSourceSpec(SourceSpec):
    """Vectors of pages that were made elsewhere, or are those of another dataset."""

    path: str = Field(min_length=1, description="file, folder, glob or URL")
    form: Literal["auto", "dataset", "arrays", "tables"] = Field(
        default="auto",
        description="dataset: of page vectors; arrays: .npy and .safetensors, [n, d] or [pages, n, d]; tables: Parquet "
        "and Arrow files with a list of vectors a row; auto: found out",
    )
    version: int | None = Field(default=None, ge=1, description="of a dataset; default: the newest")
    column: str | None = Field(default=None, description="of tables, the one with the vectors; default: the only one")
    key_column: str | None = Field(default=None, description="of tables, the one with the keys; default: `key`")


class EncoderSpec(StoredDocument):
    """Description of a page encoder, stored with the vectors it made. Queries need an encoder that fits it."""

    name: str = Field(description="how it is named on the command line, e.g. `minilm`, `hf:FOLDER`")
    reads: Literal["text", "pixels", "vectors"] = Field(
        description="the part of a page that it encodes; vectors: nothing, it is not known what made them"
    )
    dimensions: int = Field(ge=1, description="of a vector")
    grid: tuple[int, int] | None = Field(default=None, description="patches of a page (rows, columns); none: they vary")
    max_tokens: int | None = Field(default=None, ge=1, description="of a page; the text behind is left out")
    numerics: str = Field(default="fp32", description="numerics mode the vectors depend on: `fp32`, `bf16`")
    weights_sha256: str = Field(description="SHA-256 of the pretrained weights; of none for a fixed transform")
    weight_licence: str = Field(description="licence of the weights, as their publisher states it, or `unknown`")
    fitted_sha256: str | None = Field(default=None, description="SHA-256 of what was fitted on a sample of the pages")

    @property
    def fingerprint(self) -> str:
        """16 hex digits: equal fingerprints give vectors of one space. Where the weights lie does not count."""
        fields = self.model_dump(mode="json", exclude={"name", "weight_licence"})
        return digest({**fields, "kind": self.name.partition(":")[0]})[:16]


def page_ranges(text: str) -> list[tuple[int, int | None]]:
    """`1-3,7,10-` as [(1, 3), (7, 7), (10, None)]."""
    ranges = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        ranges.append((int(first), int(last) if last else None if dash else int(first)))
    return ranges


def chosen_pages(text: str | None, count: int) -> list[int]:
    """The pages (from 0, ascending, each once) of a document of ``count`` pages that `pages` names."""
    if text is None:
        return list(range(count))
    chosen: set[int] = set()
    for first, last in page_ranges(text):
        chosen.update(range(first - 1, min(count, count if last is None else last)))
    return sorted(chosen)
