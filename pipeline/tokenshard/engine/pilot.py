"""The pilot: fits the tokenizer (where it is trained on the input) and the codec on a sample of the planned inputs.

Runs once, between plan and units, on one worker and one thread, so that its result depends on the inputs and the seed
alone. Only a window of bounded size is kept of each sampled input: memory stays bounded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tokenshard.codecs.choose import choose_codec
from tokenshard.codecs.fit import Earlier
from tokenshard.engine.encode import StoredIds, flat_ids
from tokenshard.engine.encoding import Encoder, Window, encoding_of
from tokenshard.engine.job_folder import JobFolder, PilotResult, Plan, Receipt
from tokenshard.engine.plan import UnitPlace, read_unit, unit_places
from tokenshard.engine.stages import Stages
from tokenshard.engine.task import Task
from tokenshard.errors import InputError, JobError
from tokenshard.shards.schema import code_names
from tokenshard.sources.base import CodeLayout, LongSource, Sample
from tokenshard.sources.registry import open_source
from tokenshard.spec.codec import CodecSpec
from tokenshard.spec.conversion import ConvertJob
from tokenshard.spec.manifest import LevelEntry
from tokenshard.store import Store

PILOT = UnitPlace(-1, "", 0)
"""The pilot as the scheduler sees it: one more unit, whose rows are the sampled inputs."""


class PilotRunner:
    """Runs the pilot; like a unit it can be probed for inputs that kill their worker, and leave these out."""

    def __init__(self, folder: JobFolder) -> None:
        self.stages = Stages()
        plan = folder.plan()
        if plan is None:
            raise JobError(f"{folder.output.url(folder.path)}: the plan is not complete")
        self._folder, self._plan, self._spec = folder, plan, folder.conversion()
        self._source = open_source(self._spec, plan.source_state)
        self._encoding = encoding_of(self._spec, self._source)

    def run(self, task: Task) -> Receipt | None:
        """Fit on the sample, store tokenizer and models in the dataset, and write `pilot.json`."""
        rows = [
            row for row in range(*(task.probe or (0, sample_size(self._spec, self._plan)))) if row not in task.poison
        ]
        if task.quarantine is not None:
            raise JobError(f"{self._spec.source.path}: the sample of the inputs {task.quarantine}; remove such inputs")
        draw = np.random.Generator(np.random.Philox(self._spec.seed))
        output = self._folder.output
        windows: list[Window] = []
        for part in range(self._encoding.rounds):
            windows += self._windows(rows[part :: self._encoding.rounds], draw)
            if task.probe is None and self._encoding.suffices(windows):
                break
        if task.probe is not None:
            return None
        if not windows:
            raise JobError(
                f"{self._spec.source.path}: none of {len(rows)} sampled inputs could be read; are they what "
                f"{self._spec.kind} reads?"
            )
        windows = [windows[place] for place in draw.permutation(len(windows))]  # any prefix is a fair sample too
        tokenizer, encoder = self._encoding.fit(windows, output, self._plan.inputs)
        layout = self._encoding.layout(tokenizer, output)
        codecs = _fit_codecs(self._spec, self._plan, layout, encoder, windows, output)
        self._folder.create_pilot(
            PilotResult(
                tokenizer=tokenizer.fingerprint,
                numerics=tokenizer.numerics,
                levels=tuple(codecs.levels),
                codecs=tuple(codecs.specs),
                models=codecs.models,
                tables=codecs.tables,
                layout=layout,
                measured=codecs.measured,
            )
        )
        return Receipt(unit=PILOT.unit, rows=0, rejected=0)

    def _windows(self, rows: Sequence[int], draw: np.random.Generator) -> Iterator[Window]:
        """Windows of some rows of the sample; the sample is drawn evenly from the plan and sorted."""
        plan, output = self._plan, self._folder.output
        sample = np.sort(draw.choice(plan.inputs, sample_size(self._spec, plan), replace=False))
        chosen = sample[np.array(rows, np.int64)]
        first = 0
        for place, size in zip(unit_places(plan), unit_sizes(plan, output), strict=True):
            mine = chosen[(chosen >= first) & (chosen < first + size)] - first
            first += size
            if not len(mine):
                continue
            inputs, lengths = self._excerpts(read_unit(output, place).take(mine), draw)
            for thunk, length in zip(self._source.read(inputs), lengths, strict=True):
                item = thunk()
                if isinstance(item, Sample):
                    with suppress(InputError):  # its unit makes a reject of it
                        window = self._encoding.window(item, draw)
                        yield replace(window, whole=window.whole * length)

    def _excerpts(self, inputs: pa.Table, draw: np.random.Generator) -> tuple[pa.Table, Sequence[float]]:
        """The inputs, or parts of them where that is enough; and how many times as long each input is."""
        if isinstance(self._source, LongSource) and self._encoding.frames is not None:
            return self._source.excerpts(inputs, self._encoding.frames, draw)
        return inputs, [1.0] * inputs.num_rows


@dataclass
class _Codecs:
    """The codecs of all levels, as manifest and footers describe them."""

    specs: list[CodecSpec] = field(default_factory=list)
    levels: list[LevelEntry] = field(default_factory=list)
    models: dict[str, int] = field(default_factory=dict)
    tables: dict[str, int] = field(default_factory=dict)
    measured: dict[str, dict[str, float]] = field(default_factory=dict)


def sample_size(spec: ConvertJob, plan: Plan) -> int:
    """Inputs the pilot reads."""
    return min(plan.inputs, spec.pilot.samples)


def unit_sizes(plan: Plan, output: Store) -> Iterator[int]:
    """Inputs of each unit of a plan, in order."""
    import pyarrow.parquet as pq

    for part in plan.parts:
        with output.open(part.path) as file:
            metadata = pq.read_metadata(file)
        yield from (metadata.row_group(group).num_rows for group in range(part.units))


def _fit_codecs(
    spec: ConvertJob, plan: Plan, layout: CodeLayout, encoder: Encoder, windows: Sequence[Window], output: Store
) -> _Codecs:
    """A codec for each level, fitted on the ids of the windows; models go to the dataset."""
    codes: list[NDArray[Any]] = []
    total, whole = 0, 0.0
    levels = [
        LevelEntry(alphabet=alphabet, used=0, remap=layout.used[level] if layout.used else None)
        for level, alphabet in enumerate(layout.alphabets)
    ]
    encoder = StoredIds(encoder, levels)
    for window in windows:
        try:
            codes += [made.ids for made in encoder.encode([window.sample])]
        except InputError:  # its unit makes a reject of it
            continue
        total += codes[-1][0].size
        whole += codes[-1][0].size * window.whole
        if total >= spec.pilot.ids:
            break
    grids = np.array([sample.shape[1:] for sample in codes], np.int32)
    expected = round(whole / len(codes) * plan.inputs)
    found = _Codecs()
    earlier: Earlier | None = None
    for level, (column, entry) in enumerate(zip(code_names(len(levels)), levels, strict=True)):
        alphabet = entry.alphabet if entry.remap is None else len(entry.remap)
        flat = flat_ids(codes, level, alphabet)
        table = encoder.tables[level] if encoder.tables else None
        wanted = layout.codec if layout.codec is not None and spec.codec == "auto" else spec.codec
        choice = choose_codec(flat, grids, alphabet, wanted, expected, earlier, table)
        earlier = Earlier(flat, alphabet)
        codec = choice.spec(column)
        if table is not None and codec.model is not None and choice.given:
            found.tables[codec.model] = len(table)
        elif codec.model is not None:
            model = choice.codec.model_bytes() or b""
            output.put_if_absent(f"models/{codec.model}.tsm", model)
            found.models[codec.model] = len(model)
        found.specs.append(codec)
        found.levels.append(entry.model_copy(update={"used": len(np.unique(flat))}))
        found.measured[column] = {str(name): bits for name, bits in choice.sizes.items()}
    return found
