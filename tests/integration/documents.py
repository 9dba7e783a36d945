"""A small text corpus, and datasets of its pages made by the real engine, in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tokenshard.engine.convert import Conversion, Mode, run_conversion
from tokenshard.spec.job import CompressDocuments, ConvertDocuments, build_job

WORDS = (
    *("wing", "lift", "drag", "engine", "rocket", "moon", "ocean", "floor", "rain", "spring", "violin", "string"),
    *("bread", "oven", "cat", "mat", "dog", "night", "river", "stone", "light", "sound", "metal", "glass"),
)


def write_corpus(path: Path, count: int, first: int = 0) -> list[str]:
    """Documents `first` to `first + count`, each of other words, as JSON lines; their texts."""
    texts = []
    for number in range(first, first + count):
        draw = np.random.default_rng(number)
        texts.append(" ".join(draw.choice(WORDS, 6 + number % 7)))
    lines = [json.dumps({"_id": f"d{first + place:03d}", "text": text}) for place, text in enumerate(texts)]
    path.write_text("\n".join(lines))
    return texts


def convert_pages(source: Path, out: Path | str, mode: Mode | None = None, **fields: Any) -> Conversion:
    """Run in this process."""
    job = {"source": {"path": str(source)}, "output": str(out), "engine": {"kind": "local", "workers": 0}}
    return run_conversion(build_job(ConvertDocuments, {**job, "unit": {"samples": 16}, **fields}), mode)


def compress(source: Path, out: Path | str, mode: Mode | None = None, **fields: Any) -> Conversion:
    """Ready vectors, or those of a dataset, by another method. Run in this process."""
    given = {"path": str(source), **fields.pop("source", {})}
    job = {"source": given, "output": str(out), "engine": {"kind": "local", "workers": 0}}
    return run_conversion(build_job(CompressDocuments, {**job, "unit": {"samples": 16}, **fields}), mode)
