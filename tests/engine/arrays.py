"""A format for tests: code arrays in one `.npz`, and datasets made of them by the real engine, in this process."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tokenshard.api import run
from tokenshard.engine.convert import Conversion, Mode
from tokenshard.sources.base import CodeLayout, Reject, Sample, SourceColumn, Thunk
from tokenshard.sources.codes import open as registry
from tokenshard.sources.plan import Input, plan_batches
from tokenshard.spec.codes import ImportSourceSpec
from tokenshard.spec.job import Import, build_job
from tokenshard.store import Store

COLUMNS = {
    "label": (pa.int64(), "label", ("cat", "dog", "fox"), lambda n: n % 3),
    "split": (pa.string(), "metadata", None, lambda n: ("train", "test")[n % 4 == 0]),
    "tags": (pa.list_(pa.string()), "metadata", None, lambda n: [f"t{n % 5}", None][: n % 3]),
    "serial": (pa.int32(), "metadata", None, lambda n: 7 * n),
    "taken": (pa.timestamp("us", "UTC"), "metadata", None, lambda n: None if n % 3 else 1_700_000_000_000_001 + n),
}
"""Name -> type, role, class names, value of the n-th sample."""


class ArraysSource:
    """Sample n is the array `<n>` of the file. `options`: extents and downsample, codebook, and the first number."""

    def __init__(self, spec: ImportSourceSpec, storage: Mapping[str, Any]) -> None:
        folder, _, self._name = spec.path.rpartition("/")
        self._spec, self._store = spec, Store(folder, storage)

    @cached_property
    def _arrays(self) -> dict[str, NDArray[Any]]:
        with np.load(io.BytesIO(self._store.read(self._name)), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}

    @property
    def _codes(self) -> list[NDArray[Any]]:
        return [array for name, array in self._arrays.items() if name.isdecimal()]

    def plan(self) -> Iterator[pa.RecordBatch]:
        rows = [
            Input(f"s{name}", self._name, index=int(name), bytes=array.nbytes)
            for name, array in self._arrays.items()
            if name.isdecimal()
        ]
        yield from plan_batches(rows)

    def columns(self) -> tuple[SourceColumn, ...]:
        return tuple(SourceColumn(name, kind, role, names) for name, (kind, role, names, _) in COLUMNS.items())

    def state(self) -> dict[str, Any]:
        return {}

    def read(self, inputs: pa.Table) -> Iterator[Thunk]:
        for row in inputs.to_pylist():
            yield partial(self._sample, row["key"], row["index"])

    def _sample(self, key: str, number: int) -> Sample | Reject:
        codes = self._arrays[f"{number:05d}"]
        size = self._arrays.get("sizes")
        return Sample(
            key,
            self._name,
            codes,
            1000 + number,
            {name: value(number) for name, (_, _, _, value) in COLUMNS.items()},
            None if size is None else tuple(size[number % len(size)].tolist()),
        )

    def layout(self) -> CodeLayout:
        alphabet = self._spec.alphabet
        shapes = {codes.shape for codes in self._codes}
        rank = max(len(shape) for shape in shapes) - 1
        levels = max(shape[0] for shape in shapes)
        sized = "sizes" in self._arrays
        return CodeLayout(
            alphabets=alphabet if isinstance(alphabet, tuple) else (alphabet or 256,) * levels,
            grid=self._spec.grid or (None,) * rank,
            extents=("height", "width") if sized else (),
            downsample=(4, 4) if sized else (),
            kind="image" if sized else "generic",
        )

    def tokenizer(self) -> Store | dict[str, NDArray[Any]] | None:
        if self._spec.tokenizer is not None:
            return Store(self._spec.tokenizer)
        return {"codebook": self._arrays["codebook"]} if "codebook" in self._arrays else None


def open_arrays_source(
    spec: ImportSourceSpec, storage: Mapping[str, Any], state: Mapping[str, Any] | None = None
) -> ArraysSource:
    return ArraysSource(spec, storage)


def import_arrays(
    folder: Path, codes: Sequence[NDArray[Any]], mode: Mode | None = None, first: int = 0, **fields: Any
) -> Conversion:
    """The dataset ``folder``/tokens of these code arrays [levels, *grid], with the columns above."""
    named = {f"{first + number:05d}": array for number, array in enumerate(codes)}
    arrays = {name: fields.pop(name) for name in ("sizes", "codebook") if name in fields}
    np.savez(folder / f"codes{first}.npz", **named, **arrays)
    source = {"path": f"{folder}/codes{first}.npz", "format": "arrays", **fields.pop("source", {})}
    known = dict(registry.FORMATS)
    registry.FORMATS["arrays"] = "engine.arrays:open_arrays_source"
    try:
        job = {"source": source, "output": str(folder / "tokens"), "engine": {"kind": "local", "workers": 0}}
        return run(build_job(Import, {**job, **fields}), mode)
    finally:
        registry.FORMATS.clear()
        registry.FORMATS.update(known)
