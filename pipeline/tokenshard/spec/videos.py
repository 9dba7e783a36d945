"""What a job says about its raw videos: where they are, which frames are taken, and how they are cut into clips."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import ByteSize, Field, model_validator

from tokenshard.spec.images import ImageSourceSpec

VIDEO_EXTENSIONS = (
    *("mp4", "m4v", "mov", "mkv", "webm", "avi", "gif", "mpg", "mpeg", "ts", "mts", "m2ts", "ogv", "flv", "wmv"),
    *("3gp", "3g2", "mj2", "y4m"),
)


class VideoSourceSpec(ImageSourceSpec):
    """Raw videos of a conversion job. A clip of a video is one row; frames get to `size` as images do."""

    what: ClassVar[str] = "videos"
    form: Literal["auto", "folder", "manifest", "webdataset"] = Field(
        default="auto", description="how the videos are stored; auto: found out from the path"
    )
    labels: str = Field(
        default="auto",
        min_length=1,
        description="auto, none, folder (names of parent folders), name (of the file, without extension), or the name "
        "of a column (WebDataset: of a member)",
    )
    fps: float | None = Field(default=None, gt=0, le=1000, description="take at most that many frames a second")
    every_n: int | None = Field(default=None, ge=1, description="take every n-th frame of a clip")
    keyframes: bool = Field(default=False, description="take key frames only; nothing else is decoded")
    scenes: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="take the first frame of a clip, and frames whose mean brightness difference from the one before "
        "is over this share of the range, e.g. 0.1",
    )
    clip_seconds: float = Field(default=2, gt=0, le=86_400, description="length of a clip")
    stride_seconds: float | None = Field(
        default=None, gt=0, le=86_400, description="from the start of a clip to that of the next; default: its length"
    )
    stream: int = Field(default=0, ge=0, description="which of the video streams of a file")
    incomplete: Literal["keep", "reject"] = Field(
        default="keep", description="clips of which frames are missing or damaged: rows with complete=false, or rejects"
    )
    max_frames: int = Field(default=4096, ge=1, description="clips with more frames are rejected")
    max_seconds: float = Field(default=7 * 86_400, gt=0, description="longer videos are rejected")
    clip_timeout: float = Field(default=300, gt=0, description="seconds that decoding a clip may take")
    max_bytes: ByteSize = Field(default=ByteSize(1 << 42), ge=1, description="larger input files are rejected unread")
    extensions: tuple[str, ...] = Field(
        default=VIDEO_EXTENSIONS, min_length=1, description="file name extensions taken for videos, any case"
    )

    @model_validator(mode="after")
    def _one_way_to_take_frames(self) -> Self:
        given = [name for name in ("fps", "every_n", "scenes") if getattr(self, name) is not None]
        given += ["keyframes"] if self.keyframes else []
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other; give one of them")
        return self

    @property
    def stride(self) -> float:
        """Seconds from the start of a clip to that of the next."""
        return self.stride_seconds or self.clip_seconds

    def rate(self, shown: float | None) -> float | None:
        """Frames a second that are taken of a video that shows ``shown`` a second; None where it is not known."""
        if self.keyframes or self.scenes is not None:
            return None
        if self.fps is not None:
            return self.fps if shown is None else min(self.fps, shown)
        return None if shown is None else shown / (self.every_n or 1)
