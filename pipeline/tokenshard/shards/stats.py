"""What a dataset costs: bits a token, entropy, codebook use, and where the bytes of the files go."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenshard.codecs.model import ContextModel
from tokenshard.shards.clip_figures import clip_figures
from tokenshard.shards.dataset import Dataset, read_model
from tokenshard.shards.drift import shard_drift
from tokenshard.shards.schema import KEY, length_name
from tokenshard.shards.shard_list import chunk_lengths
from tokenshard.spec.codec import CodecSpec
from tokenshard.spec.manifest import Manifest


def dataset_stats(dataset: Dataset, sample: int | None = None) -> dict[str, Any]:
    """Figures of a dataset as a JSON-able dict; ``sample``: decode only about so many samples, spread evenly.

    `bits_per_token`: bits of the streams alone; `file_bits_per_token`: of whole shard files; `order0_entropy`: bits
    of the empirical id distribution (mean over levels), exact for the decoded samples. Sizes always cover all files.
    `levels` has the figures of :func:`stored_levels` and, level by level, `order0_entropy`, `codes_used`,
    `context_bits` (bits an id of the pilot costs by the tables of a `context` model, without the ends of streams; null
    for other codecs, whose models say nothing of it), `framing_bytes` (page headers and lengths around the streams),
    `length_bytes` (`code_len`), and `bits_per_token_in_all`: streams, framing, lengths and model together. `packed`:
    bytes of the columns of packed bytes beside the ids, such as a residual, by name. Page vectors
    have `trained_bytes_per_vector` or `trained_squared_error`, `largest_drift`, `drift` by shard and `warnings`. Clips
    with codebooks of their own have those of :func:`~tokenshard.shards.clip_figures.clip_figures`.
    """
    manifest = dataset.manifest
    decoded, histograms = _histograms(dataset, sample)
    names = [spec.column for spec in manifest.code.columns]
    bytes_of = column_bytes(dataset)
    code_bytes = _code_bytes(manifest)
    levels = stored_levels(manifest)
    for level, spec, histogram in zip(levels, manifest.code.columns, histograms, strict=True):
        level["codes_used"] = int((histogram > 0).sum())
        level["order0_entropy"] = _entropy(histogram)
        level["context_bits"] = context_bits(dataset, spec)
        level["framing_bytes"] = max(0, bytes_of.get(spec.column, 0) - level["stream_bytes"])
        level["length_bytes"] = bytes_of.get(length_name(spec), 0)
        parts = ("stream_bytes", "framing_bytes", "length_bytes", "model_bytes")
        level["bits_per_token_in_all"] = _ratio(
            8 * sum(level[part] for part in parts), manifest.totals.ids / len(names)
        )
    lengths = {"num_tokens", *(length_name(spec) for spec in manifest.code.columns)}
    lengths |= {column.name for column in manifest.columns if column.role == "length"}
    packed = {column.name: bytes_of.get(column.name, 0) for column in manifest.columns if column.role == "stream"}
    columns = sum(bytes_of.values())
    return {
        "num_samples": manifest.num_samples,
        "num_tokens": manifest.totals.ids,
        "bytes": manifest.totals.token_bytes,
        "raw_bytes": manifest.totals.raw_bytes,
        "codec": "+".join(dict.fromkeys(spec.codec for spec in manifest.code.columns)),
        "bits_per_token": _ratio(8 * sum(code_bytes), manifest.totals.ids),
        "file_bits_per_token": _ratio(8 * manifest.totals.token_bytes, manifest.totals.ids),
        "order0_entropy": float(np.mean([level["order0_entropy"] for level in levels])),
        "bytes_per_sample": _ratio(manifest.totals.token_bytes, manifest.totals.samples),
        "codes_used": sum(level["codes_used"] for level in levels),
        "levels": levels,
        "model_bytes": sum(manifest.models.values()),
        "key_bytes": bytes_of.get(KEY, 0),
        "length_bytes": sum(size for name, size in bytes_of.items() if name in lengths),
        "code_framing_bytes": sum(bytes_of.get(name, 0) for name in names) - sum(code_bytes),
        "packed": packed,
        "packed_bytes": sum(packed.values()),
        "metadata_bytes": sum(
            size for name, size in bytes_of.items() if name not in lengths and name not in {KEY, *names, *packed}
        ),
        "footer_bytes": manifest.totals.token_bytes - columns,
        "decoded_samples": decoded,
        **_drift(dataset),
        **clip_figures(dataset),
    }


def _drift(dataset: Dataset) -> dict[str, Any]:
    """Of page vectors: bytes a vector of the sample that the codebook was trained on, and of each shard."""
    found = shard_drift(dataset)
    if not found:
        return {}
    return {
        f"trained_{found[0].measure}": found[0].usual,
        "largest_drift": max(drift.ratio for drift in found),
        "drift": [asdict(drift) | {"ratio": drift.ratio} for drift in found],
        "warnings": [str(drift) for drift in found if drift.alarming],
    }


def _histograms(dataset: Dataset, sample: int | None) -> tuple[int, list[NDArray[np.int64]]]:
    """Samples decoded, and the id counts of each level (stored ids)."""
    histograms = [np.zeros(spec.alphabet, np.int64) for spec in dataset.manifest.code.columns]
    total = dataset.num_row_groups
    wanted = total if sample is None else max(1, round(total * min(1.0, sample / max(1, len(dataset)))))
    decoded = 0
    for group in np.unique(np.linspace(0, total - 1, wanted).round().astype(int)) if total else ():
        row_group = dataset.read_group(int(group))
        decoded += row_group.rows
        for histogram, ids in zip(histograms, row_group.decode(), strict=True):
            histogram += np.bincount(ids, minlength=len(histogram))
    return decoded, histograms


def headline(manifest: Manifest) -> dict[str, Any]:
    """What is said of a dataset first: what it is, and how many of everything there are."""
    totals = manifest.totals
    return {
        "kind": manifest.kind,
        "version": manifest.version,
        "fingerprint": manifest.fingerprint,
        "num_samples": manifest.num_samples,
        "num_tokens": totals.ids,
        "num_deleted": totals.samples - manifest.num_samples,
        "num_rejects": totals.rejects,
        "num_shards": len(manifest.shards),
    }


def stored_levels(manifest: Manifest) -> list[dict[str, Any]]:
    """What the manifest alone says of each level, as JSON-able dicts.

    `column`, `codec`, `alphabet`, `log2_alphabet`; `stream_bytes` (list columns: of the column chunks) and
    `bits_per_token`, the same an id; `model_bytes`: the codec's tables.
    """
    columns = manifest.code.columns
    return [
        {
            "column": spec.column,
            "codec": spec.codec,
            "alphabet": spec.alphabet,
            "log2_alphabet": math.log2(spec.alphabet),
            "stream_bytes": size,
            "bits_per_token": _ratio(8 * size, manifest.totals.ids / len(columns)),
            "model_bytes": manifest.models.get(spec.model or "", 0),
        }
        for spec, size in zip(columns, _code_bytes(manifest), strict=True)
    ]


def context_bits(dataset: Dataset, spec: CodecSpec) -> float | None:
    """Bits an id of the pilot costs by the tables of a `context` model; None for other codecs."""
    if spec.model is None or spec.codec != "context":
        return None
    return ContextModel.from_bytes(read_model(dataset.store, dataset.manifest, spec.model)).pilot.bits_per_id


def _code_bytes(manifest: Manifest) -> list[int]:
    """Bytes of the streams of each level (list columns: of the column chunks)."""
    lengths = chunk_lengths(manifest.shards, len(manifest.code.columns))
    return [int(size) for size in lengths.sum(axis=0)[1:]]


def column_bytes(dataset: Dataset, shards: Iterable[int] | None = None) -> dict[str, int]:
    """Bytes of all column chunks by column, from the Parquet footers; ``shards``: of those with these numbers alone."""
    sizes: dict[str, int] = {}
    for shard in range(len(dataset.manifest.shards)) if shards is None else shards:
        for chunks in dataset.reader(shard).chunks:
            for name, (start, end) in chunks.items():
                sizes[name] = sizes.get(name, 0) + end - start
    return sizes


def _entropy(histogram: NDArray[np.int64]) -> float:
    """Bits of the empirical distribution."""
    counts = histogram[histogram > 0]
    if not len(counts):
        return 0.0
    share = counts / counts.sum()
    return float(-(share * np.log2(share)).sum())


def _ratio(amount: float, count: float) -> float:
    return amount / count if count else 0.0
