"""What a job that trains on tokens says: the shards, the model, the augmentation, the masks and the optimizer."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, model_validator

from tokenshard.spec.base import Document, SourceSpec
from tokenshard.spec.train import TrainingEngineSpec, TrainingLogSpec

Side = Annotated[int, Field(ge=1, le=4096)]
Share = Annotated[float, Field(ge=0, le=1)]
Size = Literal["micro", "nano", "tiny", "small", "base"]
HeadName = Literal["auto", "tied", "two-level", "vq-logits", "summed"]


class TokensSpec(SourceSpec):
    """Token datasets to learn from and to validate on."""

    path: str = Field(min_length=1, description="folder or URL of a token dataset")
    val: str | None = Field(default=None, description="dataset to validate on; default: that of path, with val_where")
    where: str | None = Field(default=None, description="train only on samples for which this holds: `label < 10`")
    val_where: str | None = Field(default=None, description="the same for validation: `split == 'val'`")
    crop: tuple[Side, Side] | tuple[Side, Side, Side] | None = Field(
        default=None,
        description="rows, columns (of clips: frames, rows, columns) cut out of every grid; needed where they differ",
    )

    def output_fields(self) -> dict[str, JsonValue]:
        """The fields that decide the weights: all but the places, and what is validated on."""
        return self.model_dump(mode="json", exclude={"path", "val", "val_where"})


class ModelSpec(Document):
    """The transformer and how codes enter it."""

    size: Size = Field(default="tiny", description="width and depth: micro 96x4, nano 192x6, tiny 192x12 … base 768x12")
    embedding: Literal["frozen", "learned"] = Field(
        default="frozen", description="code vectors: those of the tokenizer's codebook, or learned ones"
    )
    stem: Literal["overlap", "patch"] = Field(
        default="overlap",
        description="overlap: SeiT's stem adaptor, kernel 2 x stride; patch: kernel = stride",
    )
    stride: Literal[1, 2, 4] = Field(default=2, description="codes a position covers along an axis")
    tubelet: Literal[1, 2, 4] | None = Field(
        default=None, description="frames of a clip that a position covers; default: 2, of an odd number of frames 1"
    )
    grid: tuple[Side, Side] | None = Field(
        default=None,
        description="rows, columns of code vectors (of a frame) the model sees; others are resized. Default: as stored",
    )
    drop_path: float = Field(default=0.0, ge=0, lt=1, description="rate of the last block; earlier ones have less")
    dropout: float = Field(default=0.0, ge=0, lt=1)


class AugmentSpec(Document):
    """Augmentation of token samples on the device; rates are probabilities a sample."""

    crop_scale: tuple[float, float] = Field(
        default=(0.35, 1.0), description="share of the area that a random resized crop keeps: from, to; 1,1: no crop"
    )
    crop_ratio: tuple[float, float] = Field(default=(0.75, 4 / 3), description="width / height of the crop: from, to")
    synonyms: Share = Field(default=0.25, description="Token-EDA: some codes become near neighbours in the codebook")
    synonym_share: Share = Field(default=0.25, description="share of the codes of such a sample")
    neighbours: int = Field(default=5, ge=1, description="synonyms of a code")
    swap: Share = Field(default=0.25, description="Token-EDA: two squares of the grid change places")
    swap_side: float = Field(default=0.25, ge=0, le=0.5, description="largest side of such a square, as share")
    noise: Share = Field(default=0.25, description="Emb-Noise: normal noise by channel and by element")
    noise_scale: float = Field(default=1.0, ge=0, description="its standard deviation, in that of the codebook")
    adapt: str | None = Field(
        default=None, description="folder of a token adapter (`train adapt`): flips, and crops where it learned them"
    )
    adapt_share: Share = Field(
        default=0.5, description="share of the samples that the adapter moves: it flips them, or crops and half of them"
    )
    color_adapt: Share = Field(default=0.0, description="channels get mean and deviation of another sample's")
    cutmix: float = Field(default=1.0, ge=0, description="alpha of Token-CutMix; 0: off")
    mixup: float = Field(default=0.0, ge=0, description="alpha of Mixup; with cutmix on, either with equal chance")

    @model_validator(mode="after")
    def _ranges_ascend(self) -> Self:
        for name, (low, high) in {"crop_scale": self.crop_scale, "crop_ratio": self.crop_ratio}.items():
            if not 0 < low <= high:
                raise ValueError(f"{name} {low},{high} is not a range of positive numbers")
        if self.crop_scale[1] > 1:
            raise ValueError(f"crop_scale {self.crop_scale[1]} is more than the whole grid, 1")
        if self.synonyms + self.swap > 1:
            raise ValueError("a sample gets synonyms or a swap: their rates must not add up to more than 1")
        return self


MTM_AUGMENT = AugmentSpec(crop_scale=(1.0, 1.0), synonyms=0, swap=0, noise=0, cutmix=0)


class MaskSpec(Document):
    """How much of a sample is hidden in masked token modeling. Each sample gets a ratio of its own."""

    schedule: Literal["truncated-normal", "cosine", "arccos", "uniform"] = "truncated-normal"
    mean: Share = Field(default=0.55, description="of the truncated normal")
    std: float = Field(default=0.25, gt=0, description="of the truncated normal")
    low: Share = Field(default=0.5, description="smallest ratio")
    high: Share = Field(default=1.0, description="largest ratio of the truncated normal")
    drop: Share = Field(default=0.5, description="share of the positions, all hidden, that the encoder never sees")
    tube: bool = Field(default=False, description="of clips: hide the same places in all frames")

    @model_validator(mode="after")
    def _dropped_are_masked(self) -> Self:
        if self.low > self.high or self.drop > self.low:
            raise ValueError("0 <= drop <= low <= high <= 1 must hold: what the encoder never sees is always hidden")
        if self.drop >= 1:
            raise ValueError("drop must be below 1: the encoder needs something to see")
        return self


class DecoderSpec(Document):
    """The decoder of masked token modeling and what it predicts codes with."""

    width: int | None = Field(default=None, ge=32, multiple_of=32, description="default: that of the encoder")
    depth: int = Field(default=4, ge=1, le=64)
    head: HeadName = Field(
        default="auto",
        description="auto: tied; two-level from 4,096 codes on; summed for several levels whose codebooks are known",
    )
    clusters: int | None = Field(
        default=None, ge=2, description="of two-level and vq-logits; default: about 4 times the root of the codes"
    )
    components: int = Field(default=8, ge=1, le=1024, description="normal distributions that summed mixes")


class PairsSpec(SourceSpec):
    """What an adapter learns from: codes of images, and codes of the same images flipped or cropped."""

    path: str = Field(min_length=1, description="folder or URL of the token dataset whose codes are adapted")
    images: str | None = Field(
        default=None, description="raw images, read once: they are flipped and cropped, and encoded with the tokenizer"
    )
    flipped: str | None = Field(
        default=None, description="instead of images: a token dataset of the flipped images, under the same keys"
    )
    most: int = Field(default=10_000, ge=2, le=1 << 24, description="images used, spread evenly")
    crops: int = Field(default=2, ge=0, le=64, description="random crops of each image, half of them flipped; 0: flips")
    crop_scale: tuple[float, float] = Field(default=(0.35, 1.0), description="share of the area that a crop keeps")
    crop_ratio: tuple[float, float] = Field(default=(0.75, 4 / 3), description="width / height of the crop: from, to")

    def output_fields(self) -> dict[str, JsonValue]:
        """The fields that decide the weights: all but the places."""
        return self.model_dump(mode="json", exclude={"path", "images", "flipped"})

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.images is None) == (self.flipped is None):
            raise ValueError("an adapter learns from images or from flipped: give one of them")
        if self.flipped is not None and self.crops:
            raise ValueError("a dataset of flipped images shows no crops: set crops to 0")
        for name, (low, high) in {"crop_scale": self.crop_scale, "crop_ratio": self.crop_ratio}.items():
            if not 0 < low <= high:
                raise ValueError(f"{name} {low},{high} is not a range of positive numbers")
        return self


class AdapterSpec(Document):
    """The network of an adapter. It counts as stored beside the shards, so it should be small."""

    width: int = Field(default=128, ge=32, le=1 << 12, multiple_of=32)
    depth: int = Field(default=1, ge=1, le=16, description="blocks before the map that is moved, and behind it")
    channels: int = Field(default=32, ge=1, le=1 << 12, description="of the map, which is twice as fine as the codes")


class OptimizerSpec(Document):
    """AdamW, linear warm-up, half a cosine down."""

    lr: float = Field(default=1e-3, gt=0, description="highest learning rate, for the batch as it is")
    min_lr: float = Field(default=1e-5, ge=0, description="at the end")
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(default=0.05, ge=0, description="of matrices; vectors and positions have none")
    warmup: float = Field(default=0.05, ge=0, lt=1, description="share of the steps until the full rate")
    layer_decay: float = Field(default=1.0, gt=0, le=1, description="factor of the rate from a layer to the one below")
    clip: float = Field(default=1.0, gt=0, description="largest norm of the gradient")
    ema: float = Field(default=0.999, ge=0, lt=1, description="decay of the averaged weights, which are kept")


class LearningEngineSpec(TrainingEngineSpec):
    """Where and how wide a training on tokens runs. On CPUs in fp32 it changes the result in the order of sums only."""

    threads: int | None = Field(
        default=None, ge=0, description="that read and decode ahead, in each worker; default: its CPUs, at most 4"
    )


class LearningLogSpec(TrainingLogSpec):
    """What is written below `training/` of the output, and when. In steps."""

    every: int = Field(default=50, ge=1, description="a row of metrics")
    validate_every: int | None = Field(default=None, ge=1, description="default: with each checkpoint")
    checkpoint_every: int = Field(default=500, ge=1, description="state to go on from")
