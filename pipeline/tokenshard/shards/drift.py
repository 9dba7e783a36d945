"""Whether pages still look like those that their codebook was trained on.

A method that codes with a constant step spends more bytes on vectors unlike its sample, and loses no precision. Bytes a
vector of a shard over those of the sample, which the description of the codebook states, are an alarm that costs
nothing. Methods of a fixed rate have none: they lose precision instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenshard.shards.dataset import Dataset

TRAINED = "bytes_per_vector"
"""Key of the codebook's description: what a vector of the sample took."""
ALARM = 2.0
"""Shards that take so many times the bytes are reported."""
LEAST_VECTORS = 1000
"""Shards with fewer vectors are left out: what Parquet itself takes would count."""


@dataclass(frozen=True)
class Drift:
    """Bytes a vector of a shard: code columns and streams, as they lie in the file."""

    shard: str
    vectors: int
    bytes_per_vector: float
    trained: float

    @property
    def ratio(self) -> float:
        return self.bytes_per_vector / self.trained

    def __str__(self) -> str:
        return (
            f"{self.shard}: {self.bytes_per_vector:.1f} bytes a vector, {self.ratio:.1f} times those of the sample "
            "that the codebook was trained on; these pages are unlike it, and would take less with one of their own"
        )


def shard_drift(dataset: Dataset, shards: Sequence[int] | None = None) -> list[Drift]:
    """Of all shards, or those given by number, that have enough vectors; reads footers only.

    Empty for datasets other than page vectors, and where the codebook does not state what its sample took.
    """
    manifest = dataset.manifest
    if manifest.kind != "document" or not manifest.shards:
        return []
    trained = dataset.tokenizer_files()[0].config.get(TRAINED)
    if not isinstance(trained, int | float) or trained <= 0:
        return []
    found = []
    for number in range(len(manifest.shards)) if shards is None else shards:
        entry, reader = manifest.shards[number], dataset.reader(number)
        names = {*reader.columns.streams, *(spec.column for spec in reader.columns.codes)}
        ranges = [chunks[name] for chunks in reader.chunks for name in names]
        vectors = entry.ids // max(1, len(manifest.code.columns))
        if vectors >= LEAST_VECTORS:
            size = sum(end - start for start, end in ranges)
            found.append(Drift(entry.path, vectors, size / vectors, float(trained)))
    return found


def alarms(dataset: Dataset, shards: Sequence[int] | None = None) -> list[str]:
    """One line for each shard whose vectors take at least :data:`ALARM` times the bytes of the sample."""
    return [str(drift) for drift in shard_drift(dataset, shards) if drift.ratio >= ALARM]
