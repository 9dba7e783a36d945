"""What columns a shard has: the Arrow schema, and the footer documents that explain the code columns.

Follows from the codecs, the token grid and the user's columns. Column order is part of the format: everything needed to
read the ids (``num_tokens``, extents, ``code_len``, codes) lies side by side in each row group, so that one range
read fetches it.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from tokenshard.codecs.base import Grids
from tokenshard.errors import FormatError, SpecError
from tokenshard.shards.bounds import require
from tokenshard.shards.limits import MAX_LEVELS
from tokenshard.spec.base import StoredDocument, canonical_json
from tokenshard.spec.codec import CodecSpec
from tokenshard.spec.manifest import FORMAT_VERSION, NEWEST_VERSION, ColumnEntry, TokenizerEntry, needed_reader

KEY = "key"
NUM_TOKENS = "num_tokens"
FOOTER_PREFIX = "tokenshard."
FOOTER_KEYS = ("format", "min_reader", "columns", "tokenizer", "totals")


class CodeColumns(StoredDocument):
    """``tokenshard.columns`` of the footer: how the code columns of this shard are to be read.

    The token grid of a row is ``ceil(extent / downsample)`` along each axis where there are ``extents``; without them
    it is ``[num_tokens]`` for rank 1, and ``grid`` (then without null) for higher ranks.
    """

    codes: tuple[CodecSpec, ...] = Field(min_length=1, max_length=MAX_LEVELS, description="one a level")
    grid: tuple[int | None, ...] = Field(
        min_length=1, max_length=3, description="grid dims all rows share; null where they differ"
    )
    extents: tuple[str, ...] = Field(default=(), description="columns with the input size along each grid axis")
    downsample: tuple[int, ...] = Field(default=(), description="input cells a token covers along each grid axis")
    neighbours: tuple[str, ...] = ()
    streams: tuple[str, ...] = Field(
        default=(),
        exclude_if=lambda streams: not streams,
        description="other binary columns whose bytes are packed already: stored as they are; absent where none are",
    )

    @property
    def rank(self) -> int:
        return len(self.grid)

    def checked(self) -> CodeColumns:
        """Itself; raises SpecError when the fields contradict each other."""
        if self.extents and not len(self.extents) == len(self.downsample) == self.rank:
            raise SpecError("extents, downsample and grid of the code columns must have one entry a grid axis")
        if not self.extents and self.rank > 1 and None in self.grid:
            raise SpecError("a grid of rank 2 or 3 that varies needs extent columns, e.g. height and width")
        if any(step < 1 for step in self.downsample) or any(64 % spec.group for spec in self.codes):
            raise SpecError("downsample must be positive, and the group size of a codec must divide 64")
        plain = [spec for spec in self.codes if spec.codec != "context"]
        modelled = [spec for spec in plain if spec.model is not None and spec.codec in {"pack", "zstd"}]
        if modelled or any(spec.group != 1 or spec.needs_earlier for spec in plain):
            raise SpecError(
                "only the context codec has groups of rows and the level before as a neighbour, and pack and zstd have "
                "no model"
            )
        if self.codes[0].needs_earlier:
            raise SpecError("the first code column cannot need the ids of a level before it")
        if [spec.column for spec in self.codes] != code_names(len(self.codes)):
            raise SpecError("code columns must be named `codes`, or `codes_0`, `codes_1`, … with several levels")
        return self

    def grids(self, sizes: NDArray[np.int32]) -> Grids:
        """Token grids (int32 [rows, rank]) of rows with these extents, or of these grids where there are no extents."""
        if not self.extents:
            return sizes
        steps = np.array(self.downsample, np.int64)
        return ((sizes.astype(np.int64) + steps - 1) // steps).astype(np.int32)


class ShardTotals(StoredDocument):
    """``tokenshard.totals`` of the footer."""

    rows: int = Field(ge=0)
    ids: int = Field(ge=0)
    raw_bytes: int = Field(ge=0)
    rejects_sha256: str | None = Field(default=None, description="SHA-256 of the rejects file of the same work unit")


@dataclass(frozen=True)
class ShardFooter:
    """The footer key-values of a shard."""

    columns: CodeColumns
    tokenizer: TokenizerEntry
    totals: ShardTotals

    def dump(self) -> dict[str, str]:
        """As strings, in a fixed order."""
        return {
            "tokenshard.format": str(FORMAT_VERSION),
            "tokenshard.min_reader": str(needed_reader(self.columns.codes)),
            "tokenshard.columns": canonical_json(self.columns.model_dump(mode="json")).decode(),
            "tokenshard.tokenizer": canonical_json(self.tokenizer.model_dump(mode="json")).decode(),
            "tokenshard.totals": canonical_json(self.totals.model_dump(mode="json")).decode(),
        }

    @classmethod
    def parse(cls, metadata: dict[bytes, bytes] | None) -> ShardFooter:
        """From Parquet key-values; unknown keys are ignored. Raises FormatError naming what is missing or too new."""
        values = {}
        for key in FOOTER_KEYS:
            value = (metadata or {}).get(f"{FOOTER_PREFIX}{key}".encode())
            if value is None:
                raise FormatError(f"no `{FOOTER_PREFIX}{key}` in the Parquet footer: not a token shard")
            values[key] = value
        check_min_reader(int(values["min_reader"]))
        try:
            return cls(
                columns=CodeColumns.model_validate(json.loads(values["columns"])).checked(),
                tokenizer=TokenizerEntry.model_validate(json.loads(values["tokenizer"])),
                totals=ShardTotals.model_validate(json.loads(values["totals"])),
            )
        except (ValidationError, SpecError) as error:
            raise FormatError(f"bad `tokenshard.*` keys in the Parquet footer: {error}") from error


def check_min_reader(min_reader: int) -> None:
    """Raises FormatError when a file needs a newer reader than this package has."""
    require(
        min_reader <= NEWEST_VERSION,
        f"needs a tokenshard that reads shard format {min_reader}, but this one reads up to {NEWEST_VERSION}; "
        "upgrade with: pip install --upgrade tokenshard",
    )


def code_names(levels: int) -> list[str]:
    """Names of the code columns: `codes` for one level, `codes_0`, `codes_1`, … for several."""
    return ["codes"] if levels == 1 else [f"codes_{level}" for level in range(levels)]


def size_names(columns: CodeColumns, schema: pa.Schema) -> list[str]:
    """The columns of the `sizes` range: num_tokens, extents, and code_len of each binary code column."""
    lengths = [length_name(spec) for spec in columns.codes if not is_list(schema, spec)]
    return [NUM_TOKENS, *columns.extents, *lengths]


def length_name(spec: CodecSpec) -> str:
    """The column with a binary code column's stream lengths: `code_len` for `codes`, `code_len_1` for `codes_1`."""
    return spec.column.replace("codes", "code_len", 1)


def is_list(schema: pa.Schema, spec: CodecSpec) -> bool:
    """Whether the code column holds the ids themselves (list layout) instead of streams."""
    return bool(pa.types.is_list(schema.field(spec.column).type))


def check_layouts(columns: CodeColumns, schema: pa.Schema) -> None:
    """Raises FormatError unless lists are the columns of the `zstd` codec and no others."""
    for spec in columns.codes:
        fits = is_list(schema, spec) == (spec.codec == "zstd")
        require(fits, f"column {spec.column!r} is not stored as the {spec.codec} codec stores it")


def is_reserved(name: str) -> bool:
    """Whether shards use a column of this name themselves."""
    return (
        name in {KEY, NUM_TOKENS, "height", "width", "frames"}
        or name.split("_")[0] == "codes"
        or (name.startswith("code_len"))
    )


def shard_schema(columns: CodeColumns, layouts: tuple[str, ...], user: pa.Schema) -> pa.Schema:
    """Arrow schema of a shard. ``layouts``: `binary` or `list`, one a level.

    User columns keep names and types, but dictionary types become their value type: Parquet's own dictionary encoding
    does the same work, and an Arrow dictionary would make the file depend on how rows were batched.
    Raises SpecError when a user column has a name the format needs.
    """
    fields = [pa.field(KEY, pa.string(), nullable=False), pa.field(NUM_TOKENS, pa.int32(), nullable=False)]
    fields += [pa.field(name, pa.int32(), nullable=False) for name in columns.extents]
    names = [length_name(spec) for spec in columns.codes]
    fields += [
        pa.field(name, pa.int32(), nullable=False)
        for name, layout in zip(names, layouts, strict=True)
        if layout == "binary"
    ]
    for spec, layout in zip(columns.codes, layouts, strict=True):
        item = pa.field("element", pa.uint16() if spec.alphabet <= 1 << 16 else pa.uint32(), nullable=False)
        fields.append(pa.field(spec.column, pa.binary() if layout == "binary" else pa.list_(item), nullable=False))
    taken = {field.name for field in fields} | set(names)
    for field in user:
        if field.name in taken:
            raise SpecError(
                f"column {field.name!r} has a name that token shards use themselves; rename or drop it in the source"
            )
        taken.add(field.name)
        dense = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        fields.append(pa.field(field.name, dense, field.nullable))
    file = io.BytesIO()
    pq.write_table(pa.schema(fields).empty_table(), file)
    return pq.read_schema(file).remove_metadata()  # as Parquet gives it back: it renames the items of lists


def column_entries(
    schema: pa.Schema, columns: CodeColumns, labels: dict[str, tuple[str, ...] | None]
) -> list[ColumnEntry]:
    """Manifest `columns`; ``labels`` names the label columns and their classes; other user columns are metadata."""
    roles = {KEY: "key"} | dict.fromkeys(size_names(columns, schema), "length")
    roles |= {spec.column: "code" for spec in columns.codes} | dict.fromkeys(labels, "label")
    roles |= dict.fromkeys(columns.streams, "stream")
    return [
        ColumnEntry.model_validate(
            {
                "name": field.name,
                "type": str(field.type),
                "role": roles.get(field.name, "metadata"),
                "names": labels.get(field.name),
            }
        )
        for field in schema
    ]
