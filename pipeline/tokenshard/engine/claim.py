"""What is in the output already, and which job may go on there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tokenshard.engine.driver import check_undriven
from tokenshard.engine.encoding import appended_numerics
from tokenshard.engine.finalize import check_appendable, check_numerics
from tokenshard.engine.job_folder import JobFolder
from tokenshard.engine.progress import Progress
from tokenshard.errors import SpecError
from tokenshard.shards.manifest import list_versions, read_manifest
from tokenshard.spec.conversion import ConvertJob, TokenizeJob
from tokenshard.spec.manifest import SIDECARS, Manifest
from tokenshard.store import Store


@dataclass(frozen=True)
class Mode:
    """How a conversion treats what is in the output already."""

    resume: bool = True
    """go on with a job that was started there; False: SpecError"""
    append: bool = False
    """add inputs whose keys the dataset lacks, as its next version"""
    overwrite: bool = False
    """remove the dataset first"""
    retry: bool = False
    """convert the dataset's rejects again"""
    mix_numerics: bool = False
    """append ids of another numerics mode than the dataset's"""
    dry_run: bool = False
    """plan in a scratch folder and stop there; the output is not touched"""


def place_of(spec: ConvertJob, mode: Mode, output: Store, progress: Progress) -> tuple[Manifest | None, JobFolder]:
    """The latest manifest, and the folder of the job to run (that of the manifest where the job is complete).

    Removes the dataset first where ``mode`` says so. Raises SpecError where the job cannot go there, and JobError where
    a driver lives that would have to be overwritten.
    """
    if mode.overwrite:
        check_undriven(JobFolder(output, max(list_versions(output), default=0) + 1), progress)
        erase(output)
    parent = read_manifest(output) if list_versions(output) else None
    folder = JobFolder(output, 1 if parent is None else parent.version + 1)
    if parent is None:
        started = next(iter(output.list("_job")), None) is not None
        if not started and next(iter(output.list()), None) is not None:
            raise SpecError(f"{output.root}: is not empty and holds no token dataset; choose another output")
    elif mode.append or mode.retry:
        if isinstance(spec, TokenizeJob):
            check_appendable(parent, spec)
            if not mode.mix_numerics:
                check_numerics(parent, appended_numerics(spec, parent, output), output)
    else:
        folder = JobFolder(output, parent.version)
        if folder.spec() is None:
            raise SpecError(f"{output.root}: holds a dataset already; use --append to add to it, or --overwrite")
    return parent, folder


def bind(spec: ConvertJob, folder: JobFolder, mode: Mode) -> None:
    """Write the spec down, or check that the job in the folder is this one; until its pilot is done it may change."""
    if folder.spec() is None:
        folder.write_spec(spec)
        return
    earlier = folder.conversion()
    differing = list(_differences("", earlier.output_fields(), spec.output_fields()))
    if spec.source.path != earlier.source.path:
        differing.append(f"source.path: {earlier.source.path!r} there, {spec.source.path!r} here")
    if folder.pilot() is None:
        if differing:
            folder.forget_plan()
        folder.write_spec(spec)
        return
    if differing:
        raise SpecError(
            f"{folder.output.root}: holds another job ({'; '.join(differing)}); use the same options to resume it, "
            "another output, --append or --overwrite"
        )
    if not mode.resume:
        raise SpecError(f"{folder.output.root}: a job was started there; leave --no-resume out, or use --overwrite")
    if spec != earlier:
        folder.write_spec(spec)  # workers read how to run from there


def _differences(path: str, there: Any, here: Any) -> Iterator[str]:
    if isinstance(there, dict) and isinstance(here, dict):
        for name in sorted(there.keys() | here.keys()):
            yield from _differences(f"{path}.{name}" if path else name, there.get(name), here.get(name))
    elif there != here:
        yield f"{path}: {there!r} there, {here!r} here"


def erase(output: Store) -> None:
    """Remove a dataset: its manifests first, so that no reader sees a part of it. Other files are left alone."""
    names = [entry.name for entry in output.list()]
    parts = ("manifest/", "_job/", "data/", "rejects/", "tokenizer/", "models/", *(f"{folder}/" for folder in SIDECARS))
    foreign = [name for name in names if not name.startswith(parts)]
    if foreign:
        raise SpecError(
            f"{output.root}: not overwritten, it holds files that are no part of a dataset (e.g. {foreign[0]}); "
            "choose another output"
        )
    for part in parts:
        for name in names:
            if name.startswith(part):
                output.delete(name)
    output.clean_temporary()
