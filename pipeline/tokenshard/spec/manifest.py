"""The manifest: the only entry point of readers into a dataset (`OUT/manifest/00000001.json`, highest number wins)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, SerializerFunctionWrapHandler, ValidatorFunctionWrapHandler, WrapSerializer
from pydantic.functional_validators import WrapValidator

from tokenshard.spec.base import StoredDocument, canonical_json, digest_streamed
from tokenshard.spec.codec import CodecSpec

FORMAT: Literal["tokenshard"] = "tokenshard"
FORMAT_VERSION = 1
"""Version of the shard format this package writes."""
DELETED_VERSION = 2
"""What reads manifests whose shards may have deleted rows; only those that list some need it."""
EXTENSION_VERSION = 3
"""What reads manifests and shards whose code columns may have the codec of a package; only those need it."""
NEWEST_VERSION = EXTENSION_VERSION
"""The newest one that this package reads."""

NOT_IN_FINGERPRINT = ("source", "shards_file", "fingerprint")
"""Fields that say where and how a dataset is stored, not what it holds."""

SIDECARS = ("grids", "calibrations")
"""Folders of a dataset for files that say what many samples have in common."""

DatasetKind = Literal["image", "video", "grid", "document", "generic"]


def needed_reader(columns: Sequence[CodecSpec], deleted: bool = False) -> int:
    """The version that readers of code columns need; ``deleted``: of a manifest that lists deleted rows."""
    if any(spec.package is not None for spec in columns):
        return EXTENSION_VERSION
    return DELETED_VERSION if deleted else FORMAT_VERSION


def model_path(sha256: str, tables: Mapping[str, int], tokenizer: str) -> str:
    """Where a codec model lies in a dataset: in the folder of the tokenizer if it is one of its ``tables``."""
    return f"tokenizer/{tokenizer}/{sha256}.tsm" if sha256 in tables else f"models/{sha256}.tsm"


class ChunkEntry(StoredDocument):
    """A byte range of a shard file that readers fetch and check as one."""

    offset: int = Field(ge=0, description="first byte")
    length: int = Field(ge=0, description="bytes")
    xxh64: str = Field(description="xxHash64 (16 hex digits) of those bytes")


class RowGroupEntry(StoredDocument):
    """One row group of a shard."""

    rows: int = Field(ge=1)
    sizes: ChunkEntry = Field(
        description="the column chunks from `num_tokens` to the last `code_len`, which lie side by side"
    )
    codes: tuple[ChunkEntry, ...] = Field(
        description="one entry a code column, in the order of `code.columns`: the streams alone (no page header, "
        "no lengths) of a binary column, the whole column chunk of a list column"
    )


class ShardEntry(StoredDocument):
    """One committed shard file."""

    path: str = Field(description="relative to the dataset folder, always below data/")
    rows: int = Field(ge=1)
    ids: int = Field(ge=0, description="ids of all levels together")
    bytes: int = Field(ge=1)
    raw_bytes: int = Field(ge=0, description="bytes of the raw inputs that became rows")
    sha256: str
    min_key: str
    max_key: str
    grid: tuple[int | None, ...] = Field(description="grid dims all rows share; null where they differ")
    footer: ChunkEntry = Field(description="Parquet metadata with the 8 bytes behind it, at the end of the file")
    row_groups: tuple[RowGroupEntry, ...]
    deleted: tuple[tuple[int, int], ...] = Field(
        default=(),
        exclude_if=lambda runs: not runs,
        description="rows [start, end) that are no longer in the dataset, ascending; absent where none was deleted",
    )

    @property
    def num_deleted(self) -> int:
        """Rows that are deleted."""
        return sum(end - start for start, end in self.deleted)


class ListedShards(Sequence[ShardEntry]):
    """Shards whose entries are made when they are asked for; a manifest takes them as they are."""

    @property
    @abstractmethod
    def num_deleted(self) -> int:
        """Rows of all of them that are deleted."""
        ...

    @abstractmethod
    def canonical_json(self) -> Iterator[bytes]:
        """The elements of the JSON list, as :func:`~tokenshard.spec.base.canonical_json` writes them, in pieces."""
        ...


def _listed_or_tuple(value: Any, validate: ValidatorFunctionWrapHandler) -> Sequence[ShardEntry]:
    return value if isinstance(value, ListedShards) else tuple(validate(value))


def _dump_shards(value: Sequence[ShardEntry], dump: SerializerFunctionWrapHandler) -> Any:
    return dump(tuple(value))


Shards = Annotated[Sequence[ShardEntry], WrapValidator(_listed_or_tuple), WrapSerializer(_dump_shards)]


class ShardsFile(StoredDocument):
    """A Parquet file beside the manifest that holds the shard list of a very large dataset."""

    path: str = Field(description="relative to the dataset folder, always below manifest/")
    rows: int = Field(ge=1)
    bytes: int = Field(ge=1)
    sha256: str


class RejectsEntry(StoredDocument):
    """One rejects file."""

    path: str = Field(description="relative to the dataset folder, always below rejects/")
    rows: int = Field(ge=1)
    bytes: int = Field(ge=1)
    sha256: str


class LevelEntry(StoredDocument):
    """One level of the codes (RVQ depth, PQ sub-quantizer)."""

    alphabet: int = Field(ge=1)
    used: int = Field(ge=0, description="ids that occurred in the pilot sample")
    remap: tuple[int, ...] | None = Field(default=None, description="stored id -> tokenizer id, where they differ")


class CodeEntry(StoredDocument):
    """What the ids are and how they are stored."""

    levels: tuple[LevelEntry, ...]
    grid: tuple[int | None, ...] = Field(description="grid dims all samples share; null where they differ")
    neighbours: tuple[str, ...] = Field(default=(), description="context neighbours, e.g. left, up")
    columns: tuple[CodecSpec, ...] = Field(description="one code column a level")


class TokenizerEntry(StoredDocument):
    """The tokenizer of the dataset (stored below `tokenizer/<fingerprint>/`)."""

    fingerprint: str
    numerics: str = Field(
        description="what the ids depend on: the mode of the tokenizer and, if not a CPU, the device, e.g. "
        "`bf16/cuda`. Where modes were mixed on purpose, all that occur: `bf16/cuda+fp32`"
    )

    @property
    def modes(self) -> set[str]:
        """The numerics of the shards: that of each is one of them."""
        return set(self.numerics.split("+"))


class ColumnEntry(StoredDocument):
    """One column of the shards as users see it."""

    name: str
    type: str = Field(description="Arrow type, as text")
    role: Literal["key", "code", "length", "label", "metadata", "stream"] = Field(
        description="stream: packed bytes that belong to the ids, e.g. a residual"
    )
    names: tuple[str, ...] | None = Field(default=None, description="class names of a label column, by label value")


class JobEntry(StoredDocument):
    """One job whose shards this version holds."""

    id: str
    spec_sha256: str = Field(description="hash of the part of the job spec that decides the output")
    plan_sha256: str = Field(description="hash of the planned inputs")
    units: int
    inputs: int
    retried: int = Field(default=0, description="inputs among them that an earlier version had rejected")


class Totals(StoredDocument):
    samples: int
    ids: int
    raw_bytes: int
    token_bytes: int = Field(description="bytes of all shard files")
    rejects: int


class Manifest(StoredDocument):
    """One version of a dataset. Created once, never changed; an append writes the next version."""

    format: Literal["tokenshard"] = FORMAT
    format_version: int = FORMAT_VERSION
    min_reader: int = FORMAT_VERSION
    version: int = Field(ge=1)
    parent: int | None = None
    kind: DatasetKind
    totals: Totals
    code: CodeEntry
    tokenizer: TokenizerEntry
    models: dict[str, int] = Field(default_factory=dict, description="SHA-256 -> bytes of the files below models/")
    tables: dict[str, int] = Field(
        default_factory=dict,
        exclude_if=lambda tables: not tables,
        description="SHA-256 -> bytes of the codec models in the tokenizer's folder that a shard needs; absent where "
        "none does",
    )
    sidecars: dict[str, int] = Field(
        default_factory=dict,
        exclude_if=lambda sidecars: not sidecars,
        description="path -> bytes of files that say what many samples have in common, e.g. grids/<SHA-256>.parquet; "
        "absent where there are none",
    )
    columns: tuple[ColumnEntry, ...]
    preprocess: dict[str, JsonValue] = Field(
        default_factory=dict, description="what was done to a raw input before encoding"
    )
    source: dict[str, JsonValue] = Field(
        default_factory=dict, description="where the raw inputs came from (not in the fingerprint)"
    )
    jobs: tuple[JobEntry, ...]
    splits: dict[str, int] = Field(
        default_factory=dict, description="samples of each value of the `split` column, if there is one"
    )
    shards: Shards
    shards_file: ShardsFile | None = Field(
        default=None,
        description="where the shard list is stored when `shards` is empty in the JSON (not in the fingerprint)",
    )
    rejects: tuple[RejectsEntry, ...] = ()
    removed: int = Field(
        default=0,
        ge=0,
        exclude_if=lambda rows: not rows,
        description="samples that were deleted and whose shards were since written without them; absent where none was",
    )
    fingerprint: str = Field(default="", description="hash of everything above that is not time- or host-dependent")

    @property
    def num_samples(self) -> int:
        """Samples that readers see: those of the shards, less those that were deleted."""
        shards = self.shards
        if isinstance(shards, ListedShards):
            return self.totals.samples - shards.num_deleted
        return self.totals.samples - sum(shard.num_deleted for shard in shards)

    def model_path(self, sha256: str) -> str:
        """Where a codec model lies."""
        return model_path(sha256, self.tables, self.tokenizer.fingerprint)

    def computed_fingerprint(self) -> str:
        """SHA-256 over the manifest without :data:`NOT_IN_FINGERPRINT`; shard bytes enter through their hashes."""
        content = self.model_dump(mode="json", exclude={*NOT_IN_FINGERPRINT, "shards"})
        return digest_streamed(content, "shards", canonical_shards(self.shards))


def canonical_shards(shards: Sequence[ShardEntry]) -> Iterator[bytes]:
    """The shard list as it enters the fingerprint, without its brackets, in pieces."""
    if isinstance(shards, ListedShards):
        yield from shards.canonical_json()
        return
    for number, shard in enumerate(shards):
        yield (b"," if number else b"") + canonical_json(shard.model_dump(mode="json"))
