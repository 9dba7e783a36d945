"""The pilot: fits the tokenizer (where it is trained on the input) and the codec on a sample of the planned inputs.

Runs once, between plan and units, on one worker and one thread, so that its result depends on the inputs and the seed
alone. Only windows of at most 256 x 256 pixels are kept of each sampled image: memory stays bounded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenshard.codecs.choose import choose_codec
from tokenshard.codecs.fit import Earlier
from tokenshard.engine.job_folder import JobFolder, PilotResult, Plan, Receipt
from tokenshard.engine.plan import UnitPlace, read_unit, unit_places
from tokenshard.engine.task import Task
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


PILOT = UnitPlace(-1, "", 0)
"""The pilot as the scheduler sees it: one more unit, whose rows are the sampled inputs."""


class PilotRunner:
    """Runs the pilot; like a unit it can be probed for inputs that kill their worker, and leave these out."""

    def __init__(self, folder: JobFolder) -> None:
        plan = folder.plan()
        if plan is None:
            raise JobError(f"{folder.output.url(folder.path)}: the plan is not complete")
        self._folder, self._plan, self._spec = folder, plan, folder.conversion()
        self._source = open_source(self._spec, plan.source_state)

    def run(self, task: Task) -> Receipt | None:
        """Fit on the sample, store tokenizer and models in the dataset, and write `pilot.json`."""
        rows = [
            row for row in range(*(task.probe or (0, sample_size(self._spec, self._plan)))) if row not in task.poison
        ]
        if task.quarantine is not None:
            raise JobError(f"{self._spec.source.path}: the sample of the inputs {task.quarantine}; remove such inputs")
        draw = np.random.Generator(np.random.Philox(self._spec.seed))
        windows = list(_windows(self._spec, self._plan, self._source, self._folder.output, rows, draw))
        if task.probe is not None:
            return None
        if not windows:
            raise JobError(
                f"{self._spec.source.path}: none of {len(rows)} sampled inputs could be read; are they images?"
            )
        windows = [windows[place] for place in draw.permutation(len(windows))]  # any prefix is a fair sample too
        tokenizer = _tokenizer(self._spec, windows)
        save_tokenizer(tokenizer, self._folder.output, f"tokenizer/{tokenizer.spec.fingerprint}")
        self._folder.create_pilot(_fit_codecs(self._spec, self._plan, tokenizer, windows, self._folder.output))
        return Receipt(unit=PILOT.unit, rows=0, rejected=0)


def sample_size(spec: ConvertJob, plan: Plan) -> int:
    """Inputs the pilot reads."""
    return min(plan.inputs, spec.pilot.samples)


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


def _windows(
    spec: ConvertJob, plan: Plan, source: Source, output: Store, rows: Sequence[int], draw: np.random.Generator
) -> Iterator[NDArray[np.uint8]]:
    """Windows of some rows of the sample; the sample is drawn evenly from the plan and sorted."""
    sample = np.sort(draw.choice(plan.inputs, sample_size(spec, plan), replace=False))
    chosen = sample[np.array(rows, np.int64)]
    first = 0
    for place, size in zip(unit_places(plan), _unit_sizes(plan, output), strict=True):
        mine = chosen[(chosen >= first) & (chosen < first + size)] - first
        first += size
        if not len(mine):
            continue
        for thunk in source.read(read_unit(output, place).take(mine)):
            item = thunk()
            if isinstance(item, Sample):
                yield _window(item.data, draw)


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
    earlier: Earlier | None = None
    for column, alphabet, planes in zip(code_names(len(levels)), levels, ids, strict=True):
        flat = np.concatenate(planes)
        choice = choose_codec(flat, np.array(grids, np.int32), alphabet, spec.codec, expected, earlier)
        earlier = Earlier(flat, alphabet)
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
