"""What a job that learns to double the resolution of grids says: its data and the network."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, JsonValue

from tokenshard.spec.base import Document, SourceSpec


class GridLevelsSpec(SourceSpec):
    """Grids of token datasets that hold a level and the one half as fine."""

    path: str = Field(min_length=1, description="folder or URL of a dataset of grids")
    val: str | None = Field(default=None, description="dataset to validate on, of other regions; default: that of path")
    level: int = Field(default=1, ge=1, le=32, description="the level to be made, from that of twice this number")
    input: Literal["elevation", "tokens"] = Field(
        default="elevation", description="what of the coarser level is seen: its cells, or what its tokens decode to"
    )
    cells: int = Field(default=1 << 26, ge=1 << 12, description="cells of the finer level held in memory, at most")

    def output_fields(self) -> dict[str, JsonValue]:
        """The fields that decide the weights: all but the places."""
        return self.model_dump(mode="json", exclude={"path", "val"})


class UpscalerSpec(Document):
    """A linear map of 7 x 7 cells, fitted by least squares, and a network without biases beside it."""

    width: int = Field(default=32, ge=1, le=1024, description="channels of the network")
    depth: int = Field(default=4, ge=0, le=64, description="its convolutions; 0: the linear map alone")
    crop: int = Field(default=24, ge=8, le=512, description="coarse cells of a side of what it learns from")
    gradient: float = Field(default=0.5, ge=0, description="weight of errors of differences between cells")
