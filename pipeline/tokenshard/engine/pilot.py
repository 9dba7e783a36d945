"""The pilot: fits the tokenizer (where it is trained on the input) and the codec on a sample of the planned inputs.

Runs once, between plan and units, on one worker and one thread, so that its result depends on the inputs and the seed
alone. Only windows of at most 256 x 256 pixels are kept of each sampled image: memory stays bounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenshard.codecs.choose import choose_codec
from tokenshard.engine.job_folder import JobFolder, PilotResult, Plan
from tokenshard.engine.plan import read_unit, unit_places
from tokenshard.errors import JobError
from tokenshard.shards.schema import code_names
from tokenshard.sources.base import Sample, Source
from tokenshard.sources.registry import open_source
from tokenshard.spec.codec import CodecSpec
from tokenshard.spec.job import ConvertJob
from tokenshard.spec.manifest import LevelEntry
from tokenshard.store import Store
from tokenshard.tokenizers.base import Tokenizer
from tokenshard.tokenizers.folder import load_tokenizer, save_tokenizer
from tokenshard.tokenizers.registry import KINDS, parse_tokenizer, trainable_class

WINDOW = 256


def run_pilot(folder: JobFolder) -> PilotResult:
    """Fit on a sample of the plan, store tokenizer and models in the dataset, and write `pilot.json`."""
    if (done := folder.pilot()) is not None:
        return done
    spec, plan = folder.conversion(), folder.plan()
    if plan is None:
        raise JobError(f"{folder.output.url(folder.path)}: the plan is not complete")
    source = open_source(spec, plan.source_state)
    windows = list(_windows(spec, plan, source, folder.output))
    if not windows:
        raise JobError(f"{spec.source.path}: none of the inputs sampled could be read; see `tokenshard convert --help`")
    tokenizer = _tokenizer(spec, windows)
    description = tokenizer.spec
    save_tokenizer(tokenizer, folder.output, f"tokenizer/{description.fingerprint}")
    result = _fit_codecs(spec, plan, tokenizer, windows, folder.output)
    folder.create_pilot(result)
    return result


def check_tokenizer(spec: ConvertJob) -> None:
    """Raises SpecError or FormatError, before any work, where the tokenizer is not one that can be fitted or loaded."""
    if spec.tokenizer.partition(":")[0] in KINDS or not Store(spec.tokenizer, spec.storage).exists("tokenizer.json"):
        parse_tokenizer(spec.tokenizer)
    else:
        load_tokenizer(Store(spec.tokenizer, spec.storage))


def _tokenizer(spec: ConvertJob, windows: list[NDArray[np.uint8]]) -> Tokenizer:
    if spec.tokenizer.partition(":")[0] not in KINDS:
        return load_tokenizer(Store(spec.tokenizer, spec.storage))
    kind, options = parse_tokenizer(spec.tokenizer)
    return trainable_class(kind).fit(windows, spec.seed, **options)


def _windows(spec: ConvertJob, plan: Plan, source: Source, output: Store) -> Iterator[NDArray[np.uint8]]:
    """Windows of evenly drawn inputs, in random order, so that any prefix is a fair sample too."""
    draw = np.random.Generator(np.random.Philox(spec.seed))
    chosen = np.sort(draw.choice(plan.inputs, min(plan.inputs, spec.pilot.samples), replace=False))
    found: list[NDArray[np.uint8]] = []
    first = 0
    for place, rows in zip(unit_places(plan), _unit_sizes(plan, output), strict=True):
        mine = chosen[(chosen >= first) & (chosen < first + rows)] - first
        first += rows
        if not len(mine):
            continue
        for thunk in source.read(read_unit(output, place).take(mine)):
            item = thunk()
            if isinstance(item, Sample):
                found.append(_window(item.data, draw))
    for position in draw.permutation(len(found)):
        yield found[position]


def _unit_sizes(plan: Plan, output: Store) -> Iterator[int]:
    import pyarrow.parquet as pq

    for part in plan.parts:
        with output.open(part.path) as file:
            metadata = pq.read_metadata(file)
        yield from (metadata.row_group(group).num_rows for group in range(part.units))


def _window(image: NDArray[np.uint8], draw: np.random.Generator) -> NDArray[np.uint8]:
    top, left = (int(draw.integers(0, max(1, size - WINDOW + 1))) for size in image.shape[:2])
    return np.ascontiguousarray(image[top : top + WINDOW, left : left + WINDOW])


def _fit_codecs(
    spec: ConvertJob, plan: Plan, tokenizer: Tokenizer, windows: list[NDArray[np.uint8]], output: Store
) -> PilotResult:
    levels = tokenizer.spec.levels
    ids: list[list[NDArray[Any]]] = [[] for _ in levels]
    grids: list[tuple[int, int]] = []
    total = 0
    for window in windows:
        codes = tokenizer.encode(window[None])[0]
        for level, plane in zip(ids, codes, strict=True):
            level.append(plane.ravel())
        grids.append((codes.shape[1], codes.shape[2]))
        total += codes[0].size
        if total >= spec.pilot.ids:
            break
    expected = round(total / len(grids) * plan.inputs)
    codecs: list[CodecSpec] = []
    entries: list[LevelEntry] = []
    models: dict[str, int] = {}
    measured: dict[str, dict[str, float]] = {}
    for column, alphabet, planes in zip(code_names(len(levels)), levels, ids, strict=True):
        flat = np.concatenate(planes)
        choice = choose_codec(flat, np.array(grids, np.int32), alphabet, want=spec.codec, expected_ids=expected)
        codec = choice.spec(column)
        if codec.model is not None:
            model = choice.codec.model_bytes() or b""
            output.put_if_absent(f"models/{codec.model}.tsm", model)
            models[codec.model] = len(model)
        codecs.append(codec)
        entries.append(LevelEntry(alphabet=alphabet, used=len(np.unique(flat))))
        measured[column] = {str(name): bits for name, bits in choice.sizes.items()}
    return PilotResult(
        tokenizer=tokenizer.spec.fingerprint,
        numerics=tokenizer.spec.numerics,
        levels=tuple(entries),
        codecs=tuple(codecs),
        models=models,
        measured=measured,
    )
