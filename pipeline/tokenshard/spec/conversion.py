"""What all job specs have in common, and all that write a dataset.

The part of a spec that decides a dataset's bytes (:meth:`ConvertJob.output_fields`) is kept apart from the part that
only decides how the work is run (engine, retries, places), so that a job can resume on other hardware.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Self, TypeVar

from pydantic import Field, JsonValue, field_validator, model_validator

from tokenshard.extensions import CODECS, extensions
from tokenshard.spec.base import Document, SourceSpec, digest
from tokenshard.spec.codec import NAME
from tokenshard.spec.engine import EngineSpec, PilotSpec, RetrySpec, UnitSpec
from tokenshard.spec.manifest import DatasetKind
from tokenshard.spec.secrets import BY_ENVIRONMENT, credential_in, has_password

Job = TypeVar("Job", bound="JobSpec")
WANTED_CODECS = ("auto", "pack", "zstd", "context", "copy")


class JobSpec(Document):
    """What all jobs have in common."""

    kind: str
    version: Literal[1] = 1
    source: SourceSpec
    output: str = Field(min_length=1, description="folder or URL of the result")
    storage: dict[str, JsonValue] = Field(
        default_factory=dict, description="fsspec options, e.g. endpoint_url; no secrets"
    )

    @model_validator(mode="after")
    def _holds_no_secret(self) -> Self:
        """Specs are stored with the output, and shown to whoever may see the job."""
        for place, value in (("source.path", self.source.path), ("output", self.output)):
            if has_password(value):
                raise ValueError(f"{place}: a password in a URL would be stored with the output; {BY_ENVIRONMENT}")
        if (name := credential_in(self.storage)) is not None:
            raise ValueError(f"storage.{name}: a credential would be stored with the output; {BY_ENVIRONMENT}")
        return self


class ConvertJob(JobSpec):
    """Inputs in, committed token shards out. The model behind every kind of job that writes a dataset."""

    seed: int = Field(default=0, ge=0, lt=1 << 32)
    engine: EngineSpec = EngineSpec()
    retry: RetrySpec = RetrySpec()
    codec: str = Field(
        default="auto",
        pattern=NAME,
        description="pack, zstd, context, copy (clips), or a codec that an installed package adds; auto: the smallest "
        "of the first four on a sample, level by level",
    )
    unit: UnitSpec = UnitSpec()
    pilot: PilotSpec = PilotSpec()
    limit: int | None = Field(default=None, ge=1, description="convert only the first so many inputs of the source")
    max_rejects: float = Field(
        default=0.01, ge=0, le=1, description="share of rejected inputs above which the job fails"
    )

    @field_validator("codec")
    @classmethod
    def _codec_is_known(cls, codec: str) -> str:
        known = (*WANTED_CODECS, *extensions(CODECS))
        if codec not in known:
            raise ValueError(f"allowed are {', '.join(map(repr, known))}")
        return codec

    def output_fields(self) -> dict[str, JsonValue]:
        """The fields that decide the bytes of the output (with the planned inputs)."""
        fields = self.model_dump(mode="json", include={"kind", "version", "seed", "codec", "unit", "pilot"})
        fields |= {} if self.limit is None else {"limit": self.limit}
        return {**fields, "source": self.source.output_fields()}

    def output_sha256(self, tokenizer: str) -> str:
        """Hash of the output fields, with the tokenizer named by its fingerprint instead of how the user named it."""
        return digest({**self.output_fields(), "tokenizer": tokenizer})


class TokenizeJob(ConvertJob):
    """Raw inputs that a tokenizer turns into ids. The model behind every `convert-…` kind."""

    dataset_kind: ClassVar[DatasetKind]
    tokenizer: str = Field(
        default="patch",
        min_length=1,
        description="`NAME:OPTIONS` trained on the input, `default`, or a saved folder",
    )
    encoder: str | None = Field(
        default=None,
        min_length=1,
        description="`MODULE:FUNCTION`, or a transformers folder: the encoder of a tokenizer trained around one. Its "
        "code is imported and run",
    )
    numerics: Literal["fp32", "bf16", "int8"] | None = Field(
        default=None, description="numerics mode of a conv tokenizer; none: the one it was saved with"
    )
    device: Literal["cpu", "cuda", "mps", "xpu"] = Field(default="cpu", description="where a conv tokenizer encodes")
    compiled: bool = Field(default=False, description="compile a conv tokenizer with torch.compile")

    def output_fields(self) -> dict[str, JsonValue]:
        other = self.model_dump(mode="json", include={"numerics", "device", "compiled"}, exclude_defaults=True)
        return {**super().output_fields(), "tokenizer": self.tokenizer, **other}

    def stated_numerics(self, own: str) -> str:
        """What the manifest says the ids depend on, for a tokenizer saved with mode ``own``: `bf16/cuda/compiled`."""
        device = [] if self.device == "cpu" else [self.device]
        return "/".join([self.numerics or own, *device, *(["compiled"] if self.compiled else [])])
