"""`tokenshard convert`, `run` and `retry`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, TypeVar

import click

from tokenshard.cli.options import codec_option, encoder_option, json_option, print_json, print_table, storage_option
from tokenshard.readable import counted

F = TypeVar("F", bound=Callable[..., Any])


def job_options(command: F) -> F:
    """Options that decide how a conversion runs and what it does with what is there."""
    options = [
        click.option("--engine", type=click.Choice(["auto", "local", "ray"]), help="Where to run. [default: auto]"),
        click.option("--address", help="Ray address (auto, HOST:PORT); none: embedded Ray."),
        click.option("--workers", type=click.IntRange(0), help="Unit workers; 0: this process. [default: CPUs]"),
        click.option("--gpus", type=click.FloatRange(0), help="GPUs of one worker (Ray)."),
        click.option("--decode-threads", type=click.IntRange(1), help="Threads that fetch and decode, a worker."),
        click.option("--batch-size", type=click.IntRange(1), help="Most samples encoded together."),
        click.option("--unit-timeout", type=click.FloatRange(0, min_open=True), help="Seconds a unit may take."),
        click.option(
            "--max-rejects", type=click.FloatRange(0, 1), help="Share of bad inputs above which the job fails."
        ),
        click.option(
            "--resume/--no-resume", default=True, help="Go on with a job that was started there. [default: resume]"
        ),
        click.option("--append", is_flag=True, help="Add new inputs to the dataset that is there."),
        click.option("--overwrite", is_flag=True, help="Remove the dataset that is there first."),
        click.option("--mix-numerics", is_flag=True, help="With --append: ids of another numerics mode may join."),
        click.option(
            "--dry-run",
            is_flag=True,
            help="Plan, and estimate bytes and time from a sample; the output is not touched.",
        ),
        click.option("--limit", type=click.IntRange(1), help="Convert only the first so many inputs."),
        click.option(
            "--log-format",
            type=click.Choice(["text", "json"]),
            default="text",
            show_default=True,
            help="json: progress and warnings as one JSON object a line.",
        ),
        click.option(
            "--metrics-port", type=click.IntRange(1, 65535), help="Serve metrics for Prometheus here meanwhile."
        ),
        click.option("--quiet", "-q", is_flag=True, help="No progress."),
    ]
    for option in reversed(options):
        command = option(command)
    return json_option(command)


def tokenizer_options(command: F) -> F:
    """Options that say which tokenizer and codec a conversion has."""
    options = [
        click.option(
            "--tokenizer",
            default="patch",
            show_default=True,
            help="NAME:OPTIONS trained on the input (e.g. patch:4x4,k=1024), `default`, or a saved tokenizer's folder.",
        ),
        encoder_option,
        codec_option("pack", "zstd", "context", "copy", measured="measured on a sample"),
        click.option(
            "--numerics",
            type=click.Choice(["fp32", "bf16", "int8"]),
            help="Of a conv tokenizer. [default: as it was saved]",
        ),
        click.option(
            "--device", type=click.Choice(["cpu", "cuda", "mps", "xpu"]), help="Of a conv tokenizer. [default: cpu]"
        ),
        click.option("--compile", "compiled", is_flag=True, help="Compile a conv tokenizer with torch.compile."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def split_options(values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Command-line values -> (job fields, mode, display); options not given leave the spec's values alone."""
    mode = {name: values.pop(name) for name in ("resume", "append", "overwrite", "mix_numerics", "dry_run")}
    display = {name: values.pop(name) for name in ("quiet", "as_json", "log_format", "metrics_port")}
    engine = {"kind": values.pop("engine")}
    engine |= {name: values.pop(name) for name in ("address", "workers", "gpus", "decode_threads", "batch_size")}
    fields = {
        "engine": {name: value for name, value in engine.items() if value is not None},
        "retry": {"unit_timeout": values.pop("unit_timeout")},
        "max_rejects": values.pop("max_rejects"),
        "limit": values.pop("limit"),
    }
    if mode["append"] and mode["overwrite"]:
        raise click.UsageError("--append and --overwrite exclude each other")
    return {name: value for name, value in fields.items() if value is not None}, mode, display


def run_and_print(
    spec: Any, mode: dict[str, Any], quiet: bool, as_json: bool, log_format: str, metrics_port: int | None
) -> None:
    from tokenshard.engine.claim import Mode
    from tokenshard.engine.convert import run_conversion
    from tokenshard.engine.progress import Progress
    from tokenshard.readable import readable_bytes, tallied

    progress = Progress.silent() if quiet else Progress.on_stderr(log_format)
    if mode["dry_run"]:
        _print_estimate(spec, progress, as_json)
        return
    # stdout belongs to the result; Ray reports dead workers there
    with redirect_stdout(sys.stderr), _metrics(spec, metrics_port) as metrics:
        result = run_conversion(spec, Mode(**mode), progress, metrics)
    if as_json:
        print_json(result.json())
        return
    rows = [("dataset", result.output), ("samples", f"{result.num_samples:,}"), ("rejects", f"{result.num_rejects:,}")]
    rows += [("", f"{count:,} x {reason}") for reason, count in result.reasons.items()]
    if result.deaths:
        rows.append(("workers lost", f"{tallied(result.deaths)}; their units were run again"))
    if result.token_bytes and result.raw_bytes:
        ratio = result.raw_bytes / result.token_bytes
        rows += [
            ("raw bytes", readable_bytes(result.raw_bytes)),
            ("token bytes", f"{readable_bytes(result.token_bytes)} (1 : {ratio:.1f})"),
        ]
    rows += [("seconds", f"{result.seconds:.1f} ({result.engine})"), ("fingerprint", result.fingerprint)]
    print_table(rows)
    for warning in result.warnings:
        click.echo(f"warning: {warning}")
    if result.engine == "none":
        click.echo("The dataset was complete already; nothing was done. Use --append to add new inputs.")


@contextmanager
def _metrics(spec: Any, port: int | None) -> Iterator[Any]:
    """Metrics of the job, served on a port meanwhile."""
    from tokenshard.engine.metrics import JobMetrics, PrometheusMeter

    metrics = JobMetrics(spec.output)
    if port is None:
        yield metrics
        return
    meter = PrometheusMeter(port)
    metrics.attach(meter)
    try:
        yield metrics
    finally:
        meter.close()


def _print_estimate(spec: Any, progress: Any, as_json: bool) -> None:
    from tokenshard.engine.estimate import estimate
    from tokenshard.readable import readable_bytes, readable_seconds

    with redirect_stdout(sys.stderr):
        found = estimate(spec, progress)
    if as_json:
        print_json(found.json())
        return
    rows = [("inputs", f"{found.num_inputs:,} in {counted(found.num_units, 'unit')}")]
    rows += [("raw bytes", f"{readable_bytes(found.raw_bytes)} (inputs whose size is known)")]
    rows += [("sample", f"{counted(found.sampled, 'input')} converted on one core, {found.sampled_rejects:,} rejected")]
    if found.token_bytes is not None:
        rows += [("token bytes", f"about {readable_bytes(found.token_bytes)}")]
    for stage, seconds in found.stage_seconds.items():
        rows += [(stage, f"about {readable_seconds(seconds)} of a worker")]
    if found.seconds is not None:
        rows += [
            ("time", f"about {readable_seconds(found.seconds)} with {found.workers} workers, and the pilot before")
        ]
    print_table(rows)
    click.echo("Nothing was written.")


@click.group()
def convert() -> None:
    """Turn raw data into a token dataset.

    \b
    Example:
      tokenshard convert images photos/ tokens/
    """


@convert.command()
@click.argument("src")
@click.argument("out")
@tokenizer_options
@click.option("--size", help="Pixels: SIDE or HEIGHTxWIDTH; needs --fit.")
@click.option(
    "--fit",
    type=click.Choice(["keep", "resize", "center-crop", "pad"]),
    help="How an image gets to --size. [default: keep, or center-crop with --size]",
)
@click.option(
    "--form",
    metavar="FORM",
    default="auto",
    show_default=True,
    help="How the images are stored: folder, manifest, webdataset, hf-parquet, coco, idx, or an installed extension.",
)
@click.option("--labels", default="auto", show_default=True, help="auto, none, folder, or a column.")
@click.option("--max-pixels", type=click.IntRange(1), help="Larger images are rejected. [default: 178956970]")
@click.option("--unit-samples", type=click.IntRange(1), help="Most inputs of a work unit (one shard). [default: 4096]")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@storage_option
@job_options
def images(src: str, out: str, **values: Any) -> None:
    """Convert images to a token dataset.

    SRC is a folder, a glob, an s3:// prefix, WebDataset tars, a CSV, JSONL or Parquet manifest, Hugging Face Parquet
    files, a COCO json, or MNIST IDX files. OUT is a folder or URL. Run the same command again to resume.

    \b
    Example:
      tokenshard convert images photos/ tokens/ --tokenizer patch:8x8,k=1024 --size 224
      tokenshard convert images s3://bucket/train/ s3://bucket/tokens/ --engine ray --address auto
    """
    from tokenshard.spec.job import ConvertImages, build_job

    fields, mode, display = split_options(values)
    source = {"path": src, "form": values["form"], "labels": values["labels"]}
    source |= picture_size(values["size"], values["fit"])
    if values["max_pixels"]:
        source["max_pixels"] = values["max_pixels"]
    if values["unit_samples"]:
        fields["unit"] = {"samples": values["unit_samples"]}
    names = ("tokenizer", "encoder", "codec", "numerics", "compiled", "seed", "storage")
    fields |= {name: values[name] for name in names}
    fields["device"] = values["device"] or "cpu"
    run_and_print(build_job(ConvertImages, {"source": source, "output": out, **fields}), mode, **display)


def picture_size(text: str | None, fit: str | None) -> dict[str, Any]:
    """The fields of a source of pictures that say their size."""
    size = _size(text)
    return {"size": size, "fit": fit or ("center-crop" if size else "keep")}


def _size(text: str | None) -> int | tuple[int, int] | None:
    if text is None:
        return None
    sides = text.lower().split("x")
    if not all(side.isdecimal() for side in sides) or len(sides) > 2:
        raise click.BadParameter(
            f"{text!r}: expected SIDE or HEIGHTxWIDTH in pixels, e.g. 224 or 240x320", param_hint="--size"
        )
    return int(sides[0]) if len(sides) == 1 else (int(sides[0]), int(sides[1]))


def with_fields(spec: Any, fields: dict[str, Any]) -> Any:
    """The spec with the values given on the command line."""
    from tokenshard.spec.job import build_job

    data = spec.model_dump(mode="json")
    for name, value in fields.items():
        if isinstance(value, dict):
            given = {field: v for field, v in value.items() if v is not None}
            if given:
                data[name] = {**data.get(name, {}), **given}
        else:
            data[name] = value
    return build_job(type(spec), data)


@click.command()
@click.argument("job", type=click.Path(exists=True, dir_okay=False))
@click.option("--output", help="Override the spec's output.")
@click.option("--source", help="Override the spec's source.path.")
@job_options
def run(job: str, output: str | None, source: str | None, **values: Any) -> None:
    """Run or resume a job spec.

    \b
    Example:
      tokenshard run jobs/convert-images.yaml
      tokenshard run jobs/convert-images.yaml --source photos/ --output tokens/
      tokenshard run jobs/train-tokenizer.yaml --workers 2
    """
    from tokenshard.api import load_job
    from tokenshard.cli.train import train_and_print as learn_and_print
    from tokenshard.cli.training import train_and_print
    from tokenshard.spec.conversion import ConvertJob
    from tokenshard.spec.job import LearnJob

    fields, mode, display = split_options(values)
    if output:
        fields["output"] = output
    if source:
        fields["source"] = {"path": source}
    spec = with_fields(load_job(job), fields)
    if isinstance(spec, ConvertJob):
        run_and_print(spec, mode, **display)
    elif mode["append"] or mode["overwrite"] or mode["dry_run"] or not mode["resume"]:
        raise click.UsageError(f"a {spec.kind} job has no --append, --overwrite, --dry-run or --no-resume")
    elif fields.get("limit") or display.pop("metrics_port") or display.pop("log_format") != "text":
        raise click.UsageError(f"a {spec.kind} job has no --limit, --metrics-port or --log-format")
    elif isinstance(spec, LearnJob):
        learn_and_print(spec, **display)
    else:
        train_and_print(spec, **display)


@click.command()
@click.argument("out")
@storage_option
@job_options
def retry(out: str, storage: dict[str, Any], **values: Any) -> None:
    """Convert the rejected inputs of a dataset again, e.g. after repairing the files.

    What succeeds now is appended as a new version of the dataset; no existing shard is touched.

    \b
    Example:
      tokenshard retry tokens/
    """
    from tokenshard.engine.job_folder import JobFolder
    from tokenshard.shards.manifest import read_manifest
    from tokenshard.store import Store

    fields, mode, display = split_options(values)
    output = Store(out, storage)
    versions = range(read_manifest(output).version, 0, -1)
    # a repair makes a version without a job
    folders = [folder for version in versions if (folder := JobFolder(output, version)).spec() is not None]
    spec = with_fields((folders or [JobFolder(output, 1)])[0].conversion(), {**fields, "output": out})
    run_and_print(spec, {**mode, "retry": True}, **display)
