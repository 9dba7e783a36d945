"""What a job says about its raw images: where they are, in which form, and what is done to each before encoding."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import ByteSize, Field, JsonValue, field_validator, model_validator

from tokenshard.extensions import IMAGES, extensions
from tokenshard.spec.base import SourceSpec

IMAGE_FORMS = ("auto", "folder", "manifest", "webdataset", "hf-parquet", "coco", "idx")
Side = Annotated[int, Field(ge=1, le=65_535)]
Level = Annotated[int, Field(ge=0, le=255)]

IMAGE_EXTENSIONS = (
    *("jpg", "jpeg", "jpe", "jfif", "png", "apng", "webp", "gif", "bmp", "dib", "tif", "tiff", "avif", "heic", "heif"),
    *("jp2", "j2k", "jpx", "ppm", "pgm", "pbm", "pnm", "tga", "ico", "sgi", "rgb", "pcx", "dds", "qoi"),
)


class ImageSourceSpec(SourceSpec):
    """Raw images of a conversion job."""

    what: ClassVar[str] = "images"
    form: str = Field(
        default="auto",
        description=f"how the images are stored: {', '.join(IMAGE_FORMS[1:])}, or a form that an installed package "
        "adds; auto: found out from the path",
    )
    labels: str = Field(
        default="auto",
        min_length=1,
        description="auto, none, folder (names of parent folders), or the name of a column (WebDataset: of a member)",
    )
    path_column: str | None = Field(
        default=None, description="manifest column with the paths; default: by its usual names"
    )
    image_column: str | None = Field(
        default=None, description="column (WebDataset: member) with the image bytes; default: by type or usual names"
    )
    image_root: str | None = Field(default=None, description="folder of the images of a COCO file; default: looked for")
    size: Side | tuple[Side, Side] | None = Field(
        default=None, description="pixels: side of a square, or [height, width]"
    )
    fit: Literal["keep", "resize", "center-crop", "pad"] = Field(
        default="keep",
        description="how an image gets to `size`: squeezed, its centre cut out, or fitted inside and padded",
    )
    interpolation: Literal["bicubic", "bilinear", "lanczos", "nearest"] = Field(
        default="bicubic", description="resampling filter, antialiased when downsizing"
    )
    background: tuple[Level, Level, Level] = Field(
        default=(255, 255, 255), description="RGB behind transparency and padding"
    )
    max_pixels: int = Field(default=178_956_970, ge=1, description="larger images are rejected before they are decoded")
    max_bytes: ByteSize = Field(default=ByteSize(1 << 30), ge=1, description="larger input files are rejected unread")
    extensions: tuple[str, ...] = Field(
        default=IMAGE_EXTENSIONS, min_length=1, description="file name extensions taken for images, any case"
    )

    @field_validator("form")
    @classmethod
    def _form_is_known(cls, form: str) -> str:
        known = (*IMAGE_FORMS, *extensions(IMAGES))
        if form not in known:
            raise ValueError(f"allowed are {', '.join(map(repr, known))}")
        return form

    @model_validator(mode="after")
    def _size_and_fit_go_together(self) -> Self:
        if self.size is None and self.fit != "keep":
            raise ValueError(f"fit: {self.fit} needs a size; set size, or fit: keep")
        if self.size is not None and self.fit == "keep":
            raise ValueError("size is set but fit: keep leaves sizes alone; set fit to resize, center-crop or pad")
        return self

    @property
    def height_width(self) -> tuple[int, int] | None:
        """The size every image gets, or None where images keep theirs."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    def output_fields(self) -> dict[str, JsonValue]:
        """The fields that decide the output: all but the places the images are read from."""
        return self.model_dump(mode="json", exclude={"path", "image_root"})
