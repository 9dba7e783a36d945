"""The end of a job: receipts of all units -> the next manifest, which makes the dataset (or its new part) visible."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from tokenshard.engine.job_folder import JobFolder, PilotResult, Plan, Receipt, made_schema
from tokenshard.errors import JobError, SpecError, TooManyRejects
from tokenshard.readable import tallied
from tokenshard.shards.manifest import commit_manifest
from tokenshard.shards.schema import NUM_TOKENS, column_entries, shard_schema
from tokenshard.shards.shard_list import ShardList, distinct_grids, joined, numbers
from tokenshard.sources.base import CodeLayout
from tokenshard.spec.base import digest
from tokenshard.spec.conversion import ConvertJob, TokenizeJob
from tokenshard.spec.manifest import (
    CodeEntry,
    ColumnEntry,
    JobEntry,
    Manifest,
    RejectsEntry,
    ShardEntry,
    TokenizerEntry,
    Totals,
    needed_reader,
)
from tokenshard.store import Store


def job_id(spec: ConvertJob, plan: Plan, pilot: PilotResult) -> str:
    """8 hex digits over everything that decides the bytes of the job's shards."""
    return digest(
        {
            "spec": spec.output_sha256(pilot.tokenizer),
            "plan": plan.sha256,
            "codecs": [codec.model_dump(mode="json") for codec in pilot.codecs],
        }
    )[:8]


@dataclass
class Results:
    """What the units of a job did. Receipts are taken in one by one, and of each only its columns are kept."""

    units: int = 0
    rows: int = 0
    rejected: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)
    rejects: list[RejectsEntry] = field(default_factory=list)
    shards: ShardList = field(init=False)

    @classmethod
    def of(cls, receipts: Iterable[Receipt]) -> Results:
        results = cls()
        results.shards = ShardList.of(results._taken(receipts))
        return results

    def _taken(self, receipts: Iterable[Receipt]) -> Iterator[ShardEntry]:
        for receipt in receipts:
            self.units += 1
            self.rows += receipt.rows
            self.rejected += receipt.rejected
            self.reasons.update(receipt.reasons)
            self.splits.update(receipt.splits)
            if receipt.rejects is not None:
                self.rejects.append(receipt.rejects)
            if receipt.shard is not None:
                yield receipt.shard


def _check_rejects(spec: ConvertJob, results: Results, inputs: int) -> None:
    """Raises TooManyRejects, with reasons and remedy, where more than the job's share of ``inputs`` was rejected."""
    rejected = results.rejected
    if rejected <= spec.max_rejects * inputs:
        return
    listed = tallied(dict(results.reasons.most_common(5)))
    raise TooManyRejects(
        f"{rejected} of {inputs} inputs were rejected ({rejected / inputs:.1%}, allowed: "
        f"{spec.max_rejects:.1%}): {listed}; the rejects/ folder of the output names each of them. Nothing is lost: "
        f"run the same command with a higher --max-rejects to commit the rest as it is"
    )


def finalize(folder: JobFolder, parent: Manifest | None) -> Manifest:
    """Commit the manifest of ``folder``'s job on top of ``parent``. Raises TooManyRejects or JobError."""
    spec, plan, pilot = folder.conversion(), folder.plan(), folder.pilot()
    if plan is None or pilot is None:
        raise JobError(f"{folder.output.url(folder.path)}: plan or pilot is not complete")
    results = Results.of(folder.receipts())
    if results.units != plan.units:
        raise JobError(
            f"{plan.units - results.units} of {plan.units} units have no receipt; run the same command again"
        )
    handled = results.rows + results.rejected
    if handled != plan.inputs:
        raise JobError(f"{plan.inputs} inputs were planned, but {handled} are rows or rejects")
    retry_of = parent.totals if parent is not None and plan.retried else None
    _check_rejects(spec, results, plan.inputs if retry_of is None else retry_of.samples + retry_of.rejects)
    if parent is None and not results.rows:
        raise TooManyRejects("every input was rejected; the rejects/ folder of the output says why")
    manifest = _manifest(spec, plan, pilot, folder, results)
    return commit_manifest(folder.output, _appended(parent, manifest, plan, pilot) if parent is not None else manifest)


def _manifest(
    spec: ConvertJob,
    plan: Plan,
    pilot: PilotResult,
    folder: JobFolder,
    results: Results,
) -> Manifest:
    shards, rejects = results.shards, results.rejects
    return Manifest(
        min_reader=needed_reader(pilot.codecs),
        version=folder.version,
        kind=pilot.layout.kind,
        totals=totals_of(shards, rejects),
        code=CodeEntry(levels=pilot.levels, grid=shared_grid(shards) or pilot.layout.grid, columns=pilot.codecs),
        tokenizer=TokenizerEntry(fingerprint=pilot.tokenizer, numerics=pilot.numerics),
        models=dict(sorted(pilot.models.items())),
        tables=dict(sorted(pilot.tables.items())),
        sidecars=dict(sorted(plan.sidecars.items())),
        columns=tuple(_columns(plan, pilot)),
        preprocess=dict(pilot.layout.preprocess),
        source={"path": spec.source.path, "raw_bytes": plan.raw_bytes, **pilot.layout.origin},
        jobs=(
            JobEntry(
                id=job_id(spec, plan, pilot),
                spec_sha256=spec.output_sha256(pilot.tokenizer),
                plan_sha256=plan.sha256,
                units=plan.units,
                inputs=plan.inputs,
                retried=plan.retried,
            ),
        ),
        splits=dict(sorted(results.splits.items())),
        shards=shards,
        rejects=tuple(rejects),
    )


def _columns(plan: Plan, pilot: PilotResult) -> list[ColumnEntry]:
    user = pa.schema([*plan.schema, *made_schema(pilot.layout)])
    columns = pilot.columns
    layouts = tuple("list" if codec.codec == "zstd" else "binary" for codec in pilot.codecs)
    labels = {column.name: column.names for column in plan.columns if column.role == "label"}
    return column_entries(shard_schema(columns, layouts, user), columns, labels)


def totals_of(shards: Sequence[ShardEntry], rejects: Sequence[RejectsEntry]) -> Totals:
    return Totals(
        samples=sum(numbers(shards, "rows")),
        ids=sum(numbers(shards, "ids")),
        raw_bytes=sum(numbers(shards, "raw_bytes")),
        token_bytes=sum(numbers(shards, "bytes")),
        rejects=sum(entry.rows for entry in rejects),
    )


def shared_grid(shards: Sequence[ShardEntry]) -> tuple[int | None, ...]:
    """Dims that all shards share, None where they differ; empty without shards."""
    grids = distinct_grids(shards)
    return tuple(dims[0] if len(set(dims)) == 1 else None for dims in zip(*grids, strict=True))


def check_appendable(parent: Manifest, spec: TokenizeJob) -> None:
    """Raises SpecError when the job's samples would not be like those the dataset has."""
    if parent.kind != spec.dataset_kind:
        raise SpecError(f"{spec.output}: holds a dataset of kind {parent.kind}; {spec.dataset_kind} cannot be appended")
    wanted = spec.source.output_fields()
    for name in sorted(parent.preprocess):
        if name in {"size", "fit", "interpolation", "background"} and parent.preprocess[name] != wanted.get(name):
            raise SpecError(
                f"{spec.output}: source.{name} is {parent.preprocess[name]!r} there and {wanted.get(name)!r} here; "
                "appended samples must be preprocessed alike"
            )


def check_numerics(parent: Manifest, numerics: str, output: Store) -> None:
    """Raises SpecError where ids of another numerics mode than the dataset's would be appended."""
    if numerics not in parent.tokenizer.modes:
        raise SpecError(
            f"{output.root}: its ids are {parent.tokenizer.numerics}, the job's would be {numerics}; use --numerics, "
            "--device and --compile as before, or --mix-numerics if a few other ids do not matter"
        )


def check_layout(parent: Manifest, layout: CodeLayout, output: Store) -> None:
    """Raises SpecError where ids with this layout cannot be in one dataset with those it has."""
    own = {column.column.replace("codes", "code_len", 1) for column in parent.code.columns}
    lengths = [column.name for column in parent.columns if column.role == "length"]
    extents = tuple(name for name in lengths if name not in {NUM_TOKENS, *own})
    fixed = len(layout.grid) > 1 and not layout.extents
    for what, there, here in (
        ("kind", parent.kind, layout.kind),
        ("alphabets", tuple(level.alphabet for level in parent.code.levels), layout.alphabets),
        ("grid", parent.code.grid if fixed else len(parent.code.grid), layout.grid if fixed else len(layout.grid)),
        ("size columns", extents, layout.extents),
    ):
        if there != here:
            raise SpecError(f"{output.root}: has {what} {there}, the job {what} {here}; they cannot be in one dataset")


def check_columns(parent: Manifest, plan: Plan, pilot: PilotResult) -> None:
    """Raises SpecError where samples with these columns cannot be in the dataset."""
    columns = _columns(plan, pilot)
    if list(parent.columns) != columns:
        names = sorted({column.name for column in set(parent.columns) ^ set(columns)}) or ["their order"]
        raise SpecError(f"appended samples need the same columns as the dataset; different: {', '.join(names)}")


def _appended(parent: Manifest, new: Manifest, plan: Plan, pilot: PilotResult) -> Manifest:
    if parent.tokenizer.fingerprint != new.tokenizer.fingerprint:
        raise JobError(
            f"the dataset's tokenizer is {parent.tokenizer.fingerprint}, the job's is {new.tokenizer.fingerprint}; "
            "ids of two tokenizers cannot be mixed"
        )
    numerics = "+".join(sorted(parent.tokenizer.modes | new.tokenizer.modes))
    check_columns(parent, plan, pilot)
    kept = () if plan.retried else parent.rejects
    shards, rejects = joined(parent.shards, new.shards), (*kept, *new.rejects)
    return new.model_copy(
        update={
            "parent": parent.version,
            "min_reader": max(parent.min_reader, new.min_reader),
            "removed": parent.removed,
            "totals": totals_of(shards, rejects),
            "code": parent.code.model_copy(update={"grid": shared_grid(shards)}),
            "jobs": (*parent.jobs, *new.jobs),
            "models": parent.models,
            "tables": parent.tables,
            "sidecars": dict(sorted({**parent.sidecars, **new.sidecars}.items())),
            "tokenizer": parent.tokenizer.model_copy(update={"numerics": numerics}),
            "splits": dict(sorted((Counter(parent.splits) + Counter(new.splits)).items())),
            "shards": shards,
            "rejects": rejects,
        }
    )
