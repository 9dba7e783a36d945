"""Job specs: what `tokenshard run JOB.yaml` reads. One model a kind of job, looked up by `kind`."""

from __future__ import annotations

import functools
import operator
from typing import Any, ClassVar, Literal, Self

import yaml
from pydantic import ByteSize, Field, JsonValue, TypeAdapter, ValidationError, model_validator

from tokenshard.errors import SpecError
from tokenshard.spec.base import digest
from tokenshard.spec.codes import DatasetSourceSpec, ImportSourceSpec
from tokenshard.spec.conversion import ConvertJob, Job, JobSpec, TokenizeJob
from tokenshard.spec.documents import DocumentSourceSpec, VectorSourceSpec
from tokenshard.spec.engine import PilotSpec, UnitSpec
from tokenshard.spec.explain import SpecLoader, explain, line_of
from tokenshard.spec.grids import Bound, GridSourceSpec
from tokenshard.spec.images import ImageSourceSpec
from tokenshard.spec.manifest import DatasetKind
from tokenshard.spec.recipe import RecipeSpec
from tokenshard.spec.train import FrozenEncoderSpec, TrainingEngineSpec, TrainingImagesSpec, TrainingLogSpec
from tokenshard.spec.training import (
    MTM_AUGMENT,
    AdapterSpec,
    AugmentSpec,
    DecoderSpec,
    LearningEngineSpec,
    LearningLogSpec,
    MaskSpec,
    ModelSpec,
    OptimizerSpec,
    PairsSpec,
    TokensSpec,
)
from tokenshard.spec.upscaling import GridLevelsSpec, UpscalerSpec
from tokenshard.spec.videos import VideoSourceSpec


class ConvertImages(TokenizeJob):
    """`convert-images`: images in any of the usual forms."""

    dataset_kind: ClassVar[DatasetKind] = "image"
    kind: Literal["convert-images"] = "convert-images"
    source: ImageSourceSpec


class ConvertVideo(TokenizeJob):
    """`convert-video`: clips of videos, frame by frame with an image tokenizer."""

    dataset_kind: ClassVar[DatasetKind] = "video"
    kind: Literal["convert-video"] = "convert-video"
    source: VideoSourceSpec
    unit: UnitSpec = UnitSpec(samples=256)
    pilot: PilotSpec = PilotSpec(samples=64)  # their windows hold as many ids as the codec is fitted on


class PagesJob(ConvertJob):
    """Vectors of pages, compressed. The model behind the kinds of job that make such a dataset."""

    compression: str = Field(default="ofec:0.16", min_length=1, description="method for the vectors, e.g. `hpc:256`")
    unit: UnitSpec = UnitSpec(samples=1024)
    pilot: PilotSpec = PilotSpec(samples=4096, ids=500_000)

    def output_fields(self) -> dict[str, JsonValue]:
        return {**super().output_fields(), "compression": self.compression}


class ConvertDocuments(PagesJob):
    """`convert-documents`: pages of documents as compressed sets of vectors."""

    kind: Literal["convert-documents"] = "convert-documents"
    source: DocumentSourceSpec
    encoder: str = Field(
        default="minilm", min_length=1, description="`minilm`, `patch-dct`, or `hf:FOLDER` of a transformers checkpoint"
    )
    numerics: Literal["fp32", "bf16"] = Field(default="fp32", description="numerics mode of the encoder")
    device: Literal["cpu", "cuda", "mps", "xpu"] = Field(default="cpu", description="where pages are encoded")

    @model_validator(mode="before")
    @classmethod
    def _pages_are_drawn_for_encoders_of_images(cls, data: Any) -> Any:
        source = data.get("source") if isinstance(data, dict) else None
        if not isinstance(source, dict) or source.get("render") is not None:
            return data
        reads_text = str(data.get("encoder", "minilm")).partition(":")[0] == "minilm"
        return {**data, "source": {**source, "render": not reads_text}}

    def output_fields(self) -> dict[str, JsonValue]:
        fields = self.model_dump(mode="json", include={"encoder", "numerics"})
        return {**super().output_fields(), **fields}


class CompressDocuments(PagesJob):
    """`compress-documents`: ready vectors of pages, or those of a dataset, compressed."""

    kind: Literal["compress-documents"] = "compress-documents"
    source: VectorSourceSpec
    encoder: str | None = Field(
        default=None,
        min_length=1,
        description="the one that made the vectors, for queries, e.g. hf:FOLDER; default: that of the dataset, else "
        "queries are vectors, too",
    )
    numerics: Literal["fp32", "bf16"] = Field(default="fp32", description="numerics mode of the encoder")

    def output_fields(self) -> dict[str, JsonValue]:
        fields = self.model_dump(mode="json", include={"encoder", "numerics"})
        return {**super().output_fields(), **fields}


class ConvertGrids(TokenizeJob):
    """`convert-grids`: bathymetry and other grids; beside the tokens of each tile its cells within a bound."""

    dataset_kind: ClassVar[DatasetKind] = "grid"
    kind: Literal["convert-grids"] = "convert-grids"
    source: GridSourceSpec
    tokenizer: str = Field(
        default="grid", min_length=1, description="`grid:OPTIONS` trained on the input, or a saved folder"
    )
    bound: Bound = Field(
        default="lossless",
        description="how far a decoded cell may be off: lossless, abs:E in the unit of the values, tvu:ORDER,SHARE of "
        "the total vertical uncertainty that IHO S-44 allows at its depth; none: tokens only",
    )
    guided: bool = Field(
        default=False,
        description="predict cells from the tokens too (bounds lossless and abs), where that makes a tile smaller; "
        "such cells decode together with their tokens only",
    )
    unit: UnitSpec = UnitSpec(samples=512, bytes=ByteSize(64 << 20))
    pilot: PilotSpec = PilotSpec(samples=128)
    max_rejects: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="share of rejected tiles above which the job fails; an unreadable file is one",
    )

    def output_fields(self) -> dict[str, JsonValue]:
        return {**super().output_fields(), "bound": self.bound, **({"guided": True} if self.guided else {})}


class CodesJob(ConvertJob):
    """Ids that were made elsewhere; they go to the shards as they are. Reading them is cheap, so the pilot is large."""

    unit: UnitSpec = UnitSpec(samples=1 << 16)
    pilot: PilotSpec = PilotSpec(samples=8192)
    max_rejects: float = Field(default=0, ge=0, le=1, description="share of rejected inputs above which the job fails")


class Transcode(CodesJob):
    """`transcode`: a token dataset with another codec, fewer levels, other shards, keys or columns."""

    kind: Literal["transcode"] = "transcode"
    source: DatasetSourceSpec


class Import(CodesJob):
    """`import`: ids in files of another format."""

    kind: Literal["import"] = "import"
    source: ImportSourceSpec

    def output_sha256(self, tokenizer: str) -> str:
        fields = self.output_fields()
        source = {name: value for name, value in self.source.output_fields().items() if name != "tokenizer"}
        return digest({**fields, "source": source, "tokenizer": tokenizer})


class LearnJob(JobSpec):
    """Token shards in, a model out. The model behind the kinds of job that train on tokens."""

    optimizer: OptimizerSpec = OptimizerSpec()
    batch: int = Field(default=256, ge=1, description="samples a step")
    epochs: float = Field(default=100, gt=0, description="passes over the samples")
    steps: int | None = Field(default=None, ge=1, description="instead of epochs")
    precision: Literal["fp32", "bf16"] = Field(default="fp32", description="bf16: mixed precision")
    seed: int = Field(default=0, ge=0, lt=1 << 32)
    engine: LearningEngineSpec = LearningEngineSpec()
    log: LearningLogSpec = LearningLogSpec()

    @model_validator(mode="before")
    @classmethod
    def _parts_have_the_defaults_of_the_kind(cls, data: Any) -> Any:
        """What a part of the job leaves out is as this kind of job has it, not as the part alone would."""
        if not isinstance(data, dict):
            return data
        parts = cls.model_fields.keys() & {"model", "augment", "optimizer"}
        given = {name: data[name] for name in parts if isinstance(data.get(name), dict)}
        defaults = {name: cls.model_fields[name].get_default().model_dump(exclude_unset=True) for name in given}
        return {**data, **{name: {**defaults[name], **part} for name, part in given.items()}}

    def output_fields(self) -> dict[str, JsonValue]:
        """The fields that decide the weights: all but the places, the engine and what is logged when."""
        fields = self.model_dump(mode="json", exclude={"output", "storage", "engine", "log"})
        return {**fields, "source": self.source.output_fields()}


class ModelJob(LearnJob):
    """The model behind the kinds of job that train a transformer on tokens."""

    source: TokensSpec
    model: ModelSpec = ModelSpec()
    augment: AugmentSpec = AugmentSpec()


class TrainClassifier(ModelJob):
    """`train-classifier`: a vision transformer on tokens that tells classes apart."""

    kind: Literal["train-classifier"] = "train-classifier"
    label: str = Field(default="label", min_length=1, description="column with whole numbers from 0")
    classes: int | None = Field(default=None, ge=2, description="default: the names of the column, else its values")
    smoothing: float = Field(default=0.1, ge=0, lt=1, description="of the labels")
    start: str | None = Field(default=None, description="folder of a trained model whose encoder is where this begins")


class TrainMtm(ModelJob):
    """`train-mtm`: masked token modeling, to be fine-tuned or to draw samples."""

    kind: Literal["train-mtm"] = "train-mtm"
    model: ModelSpec = ModelSpec(stem="patch")
    augment: AugmentSpec = MTM_AUGMENT
    mask: MaskSpec = MaskSpec()
    decoder: DecoderSpec = DecoderSpec()
    optimizer: OptimizerSpec = OptimizerSpec(lr=1e-3, betas=(0.9, 0.95))
    samples: int = Field(default=8, ge=0, le=256, description="images drawn by the model at each validation")

    @model_validator(mode="after")
    def _codes_are_not_mixed(self) -> Self:
        if self.augment.cutmix or self.augment.mixup:
            raise ValueError("augment.cutmix and augment.mixup mix classes; masked token modeling has none")
        return self


class TrainAdapt(LearnJob):
    """`train-adapt`: a network that flips and crops tokens, to augment with where there are no pixels."""

    kind: Literal["train-adapt"] = "train-adapt"
    source: PairsSpec
    adapter: AdapterSpec = AdapterSpec()
    optimizer: OptimizerSpec = OptimizerSpec(lr=2e-3, warmup=0.1)
    batch: int = Field(default=64, ge=1, description="pairs a step")
    epochs: float = Field(default=30, gt=0, description="passes over the pairs")


class TrainGridSr(LearnJob):
    """`train-grid-sr`: a network that doubles the resolution of grids."""

    kind: Literal["train-grid-sr"] = "train-grid-sr"
    source: GridLevelsSpec
    model: UpscalerSpec = UpscalerSpec()
    optimizer: OptimizerSpec = OptimizerSpec(lr=1e-3, weight_decay=0, ema=0.99)
    batch: int = Field(default=16, ge=1, description="crops a step")
    epochs: float = Field(default=40, gt=0, description="times that crops cover the fields")


class TrainTokenizer(JobSpec):
    """`train-tokenizer`: raw images in, a tokenizer out."""

    kind: Literal["train-tokenizer"] = "train-tokenizer"
    source: TrainingImagesSpec
    recipe: RecipeSpec = RecipeSpec()
    encoder: FrozenEncoderSpec | None = None
    lpips_weights: str | None = Field(
        default=None,
        description="file or folder with VGG16 or AlexNet and the linear layers of LPIPS, for losses.lpips",
    )
    engine: TrainingEngineSpec = TrainingEngineSpec()
    log: TrainingLogSpec = TrainingLogSpec()

    @model_validator(mode="after")
    def _lpips_has_weights(self) -> Self:
        if self.recipe.losses.lpips and self.lpips_weights is None:
            raise ValueError("recipe.losses.lpips needs lpips_weights: a local file, see docs/tokenizers.md")
        return self


JOB_KINDS: dict[str, type[JobSpec]] = {
    "convert-images": ConvertImages,
    "convert-video": ConvertVideo,
    "convert-documents": ConvertDocuments,
    "compress-documents": CompressDocuments,
    "convert-grids": ConvertGrids,
    "transcode": Transcode,
    "import": Import,
    "train-classifier": TrainClassifier,
    "train-mtm": TrainMtm,
    "train-adapt": TrainAdapt,
    "train-grid-sr": TrainGridSr,
    "train-tokenizer": TrainTokenizer,
}
"""Every kind of job; a new one is a model and a line here."""


def job_schema() -> dict[str, Any]:
    """JSON Schema of a job spec."""
    any_kind: Any = functools.reduce(operator.or_, JOB_KINDS.values())
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **TypeAdapter(any_kind).json_schema()}


def parse_job(text: str, name: str = "job spec") -> JobSpec:
    """A job spec from YAML (or JSON). SpecError names the line, the field and the allowed values."""
    try:
        node = yaml.compose(text, Loader=SpecLoader)
        data = yaml.load(text, Loader=SpecLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise SpecError(f"{name}:{line}: not valid YAML: {error.problem}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise SpecError(f"{name}:{line}: not valid YAML: {error.reason}") from error
    except (ValueError, AttributeError, RecursionError) as error:  # e.g. `!!int abc`, or ten thousand `[`
        raise SpecError(f"{name}: not valid YAML: {error}") from error
    if not isinstance(data, dict):
        raise SpecError(f"{name}:1: expected a mapping with `kind`, `source` and `output`; see `tokenshard run --help`")
    model = JOB_KINDS.get(str(data.get("kind")))
    if model is None:
        line = line_of(node, ("kind",))
        raise SpecError(f"{name}:{line}: kind: {data.get('kind')!r} is unknown; allowed: {', '.join(JOB_KINDS)}")
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise SpecError(explain(error, name, node, model, data)) from error


def build_job(model: type[Job], data: dict[str, Any]) -> Job:
    """A job spec from Python or command-line values, with the same one-line errors."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise SpecError(explain(error, "", None, model, data)) from error
