"""Whether pages still look like those that their codebook was trained on.

A method that codes with a constant step spends more bytes on vectors unlike its sample, and loses no precision: bytes a
vector of a shard over those of the sample tell. A codebook of a fixed rate loses precision instead: the squared error
that each page is stored with tells, over that of pages of the sample that training has not seen. The usual values stand
in the description of the codebook.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tokenshard.shards.dataset import Dataset
from tokenshard.shards.schema import NUM_TOKENS

BYTES, ERROR = "bytes_per_vector", "squared_error"
"""Keys of the codebook's description."""
ALARMS: Mapping[str, float] = {BYTES: 2.0, ERROR: 1.25}
"""Shards that have so many times the usual value are reported."""
LEAST_VECTORS = 1000
"""Shards with fewer vectors are left out: what Parquet itself takes would count, and single pages."""
ERROR_COLUMN = "squared_error"
"""float32, of page vectors by a learned codebook: mean squared distance of the vectors of a page and its codes."""


@dataclass(frozen=True)
class Drift:
    """Of a shard: bytes a vector of code columns and streams, as they lie in the file, or the error of a vector."""

    shard: str
    vectors: int
    measure: str
    value: float
    usual: float

    @property
    def ratio(self) -> float:
        return self.value / self.usual

    @property
    def alarming(self) -> bool:
        return self.ratio >= ALARMS[self.measure]

    def __str__(self) -> str:
        if self.measure == BYTES:
            return (
                f"{self.shard}: {self.value:.1f} bytes a vector, {self.ratio:.1f} times those of the sample "
                "that the codebook was trained on; these pages are unlike it, and would take less with one of their own"
            )
        return (
            f"{self.shard}: a squared error {self.ratio:.2f} times that of the sample that the codebook was trained "
            "on; these pages are unlike it, and lose precision that one of their own would keep"
        )


def shard_drift(dataset: Dataset, shards: Sequence[int] | None = None) -> list[Drift]:
    """Of all shards, or those given by number, that have enough vectors; reads footers, and the errors of pages.

    Empty for datasets other than page vectors, and where the codebook does not state what is usual.
    """
    manifest = dataset.manifest
    if manifest.kind != "document" or not manifest.shards:
        return []
    stated = dataset.tokenizer_files()[0].config
    numbers = range(len(manifest.shards)) if shards is None else shards
    for measure, values in ((BYTES, _bytes), (ERROR, _errors)):
        usual = stated.get(measure)
        if isinstance(usual, int | float) and usual > 0:
            return [
                Drift(manifest.shards[number].path, vectors, measure, value, float(usual))
                for number, vectors, value in values(dataset, numbers)
                if vectors >= LEAST_VECTORS
            ]
    return []


def alarms(dataset: Dataset, shards: Sequence[int] | None = None) -> list[str]:
    """One line for each shard whose vectors are unlike the sample."""
    return [str(drift) for drift in shard_drift(dataset, shards) if drift.alarming]


def _bytes(dataset: Dataset, shards: Sequence[int]) -> Iterator[tuple[int, int, float]]:
    """Number of each shard, its vectors, and the bytes of one."""
    manifest = dataset.manifest
    for number in shards:
        entry, reader = manifest.shards[number], dataset.reader(number)
        names = {*reader.columns.streams, *(spec.column for spec in reader.columns.codes)}
        size = sum(end - start for chunks in reader.chunks for start, end in (chunks[name] for name in names))
        vectors = entry.ids // max(1, len(manifest.code.columns))
        yield number, vectors, size / max(1, vectors)


def _errors(dataset: Dataset, shards: Sequence[int]) -> Iterator[tuple[int, int, float]]:
    """Number of each shard, its vectors, and the squared error of one."""
    for number in shards:
        reader = dataset.reader(number)
        groups = range(len(reader.chunks) if ERROR_COLUMN in reader.schema.names else 0)
        tables = [reader.read_columns(group, [ERROR_COLUMN, NUM_TOKENS]) for group in groups]
        errors, counts = (
            np.concatenate([np.zeros(0), *(table[name].to_numpy() for table in tables)])
            for name in (ERROR_COLUMN, NUM_TOKENS)
        )
        known = np.isfinite(errors)  # what was salvaged of damaged files has none
        vectors = int(counts[known].sum())
        yield number, vectors, float(errors[known] @ counts[known]) / max(1, vectors)
