"""What a training job says beside its recipe: which images it learns from, where it runs, and what it writes down."""

from __future__ import annotations

from pydantic import ByteSize, Field

from tokenshard.spec.base import Document
from tokenshard.spec.images import ImageSourceSpec


class TrainingClipsSpec(Document):
    """The source holds videos, and their frames are learned from: as clips by a temporal network, else one by one."""

    fps: float | None = Field(default=8, gt=0, le=1000, description="take at most that many frames a second; null: all")
    clip_seconds: float = Field(
        default=4, gt=0, le=86_400, description="length of the clips that are held and drawn from"
    )


class TrainingGridsSpec(Document):
    """The source holds grids, as `convert grids` takes them; a network of grids learns from their cells."""

    variable: str | None = Field(default=None, description="variable or band with the values; default: found out")
    level: int = Field(default=1, ge=1, le=64, description="the grid itself, or means of so many cells a side")
    step: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="of means, in the unit of the grid; default: of the relief"
    )
    floor: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="least relief of a patch that has shapes; default: 2 steps"
    )


class TrainingImagesSpec(ImageSourceSpec):
    """Raw images, or clips of videos, that are decoded once and held in memory."""

    labels: str = Field(default="none", min_length=1, description="not used in training")
    also: tuple[str, ...] = Field(default=(), description="more places with images, read in the same way")
    images: int | None = Field(default=None, ge=2, description="use so many of each place, spread evenly; default: all")
    held_out: int = Field(
        default=64, ge=1, description="images for validation (at most a quarter of all), never trained on"
    )
    clips: TrainingClipsSpec | None = Field(
        default=None, description="learn from videos; default: only where the network is temporal"
    )
    grids: TrainingGridsSpec | None = Field(
        default=None, description="how grids are read; default: only where the network is one of grids"
    )
    memory: ByteSize = Field(
        default=ByteSize(8_000_000_000),
        ge=1,
        description="most decoded pixels held, a worker; of more, a part spread evenly",
    )

    @property
    def places(self) -> tuple[ImageSourceSpec, ...]:
        """Each place as a source of its own."""
        own = self.model_dump(include=set(ImageSourceSpec.model_fields))
        return tuple(ImageSourceSpec.model_validate({**own, "path": path}) for path in (self.path, *self.also))


class FrozenEncoderSpec(Document):
    """An encoder that others trained; only quantizer and decoder are learned around it."""

    name: str = Field(
        min_length=1, description="`MODULE:FUNCTION`, or a transformers folder. Its code is imported and run"
    )
    dim: int | None = Field(default=None, ge=1, description="components of its features that are kept; default: all")
    reweight: bool = Field(default=False, description="components count in proportion to their variance")


class TrainingEngineSpec(Document):
    """Where and how wide a training runs. Results differ between numbers of workers in the order of sums only."""

    workers: int = Field(default=1, ge=1, le=10_000, description="processes that share a batch; Ray Train above 1")
    address: str | None = Field(default=None, description="Ray address (`auto`, HOST:PORT); none: embedded Ray")
    cpus: float = Field(default=1, gt=0, description="CPUs of one worker (Ray)")
    gpus: float = Field(default=0, ge=0, description="GPUs of one worker (Ray)")
    restarts: int = Field(default=3, ge=0, description="times that lost workers are started again (Ray)")
    device: str = Field(default="auto", min_length=1, description="auto, cpu, cuda, cuda:1, mps")
    compile: bool = Field(default=False, description="compile the network with torch.compile")
    max_minutes: float | None = Field(default=None, ge=0, description="stop in time, with a checkpoint to go on from")


class TrainingLogSpec(Document):
    """What is written below `training/` of the output, and when. In steps."""

    every: int = Field(default=100, ge=1, description="a row of metrics")
    validate_every: int | None = Field(
        default=None, ge=1, description="PSNR of held-out images and a picture of some; default: with a checkpoint"
    )
    checkpoint_every: int = Field(default=1000, ge=1, description="state to go on from")
    tensorboard: bool = Field(default=False, description="write the same for TensorBoard")
    wandb: str | None = Field(default=None, min_length=1, description="send the same to this project of W&B")
