"""How the work of a conversion is cut, sampled, run and retried: blocks of its job spec."""

from __future__ import annotations

from typing import Literal

from pydantic import ByteSize, Field

from tokenshard.spec.base import Document


class UnitSpec(Document):
    """How inputs are cut into work units. One unit makes one shard."""

    samples: int = Field(default=4096, ge=1, le=1 << 20, description="most inputs of a unit")
    bytes: ByteSize = Field(default=ByteSize(256 << 20), ge=1, description="most bytes of input of a unit, e.g. 256MiB")


class PilotSpec(Document):
    """The sample of the inputs that the tokenizer (where it is trained here) and the codec are fitted on."""

    samples: int = Field(default=512, ge=1, le=100_000, description="most inputs read")
    ids: int = Field(default=2_000_000, ge=1, description="stop after that many ids")


class EngineSpec(Document):
    """Where and how wide the work runs. Never changes the output."""

    kind: Literal["auto", "local", "ray"] = Field(
        default="auto", description="auto: ray when an address is set or the input is large, else local"
    )
    address: str | None = Field(default=None, description="Ray address (`auto`, HOST:PORT); none: embedded Ray")
    workers: int | None = Field(
        default=None,
        ge=0,
        le=10_000,
        description="unit workers; 0: in this process; default: CPUs. On Ray those there is no room for wait, and a "
        "cluster that scales itself grows for them",
    )
    cpus: float = Field(default=1, gt=0, description="CPUs of one worker (Ray)")
    gpus: float = Field(default=0, ge=0, description="GPUs of one worker (Ray); fractions share one GPU")
    memory: ByteSize | None = Field(default=None, ge=1, description="memory of one worker (Ray), e.g. 4GiB")
    accelerator: str | None = Field(default=None, min_length=1, description="type of accelerator (Ray), e.g. A100")
    labels: dict[str, str] = Field(
        default_factory=dict, description="labels of the nodes that workers run on (Ray), e.g. pool: gpu-spot"
    )
    decode_threads: int = Field(default=1, ge=1, le=256, description="threads that fetch and decode, a worker")
    batch_size: int = Field(default=32, ge=1, le=4096, description="most samples encoded together")
    batch_bytes: ByteSize = Field(default=ByteSize(32 << 20), ge=1, description="most decoded bytes encoded together")


class RetrySpec(Document):
    """When to give up. Never changes the output of a job that has no poison inputs."""

    attempts: int = Field(
        default=3, ge=1, le=100, description="attempts of a unit before its poison input is looked for"
    )
    unit_timeout: float | None = Field(default=None, gt=0, description="seconds after which a unit's worker is killed")
    drain_seconds: float = Field(default=60, ge=0, description="seconds that running units get after the first Ctrl-C")
