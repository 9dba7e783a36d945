"""`tokenshard train`: classifiers and masked token models, from token shards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from tokenshard.cli.options import json_option, print_json, print_table, storage_option

F = TypeVar("F", bound=Callable[..., Any])
PLACES = {
    "val": "source.val",
    "where": "source.where",
    "val_where": "source.val_where",
    "crop": "source.crop",
    "size": "model.size",
    "embedding": "model.embedding",
    "stride": "model.stride",
    "grid": "model.grid",
    "lr": "optimizer.lr",
    "device": "engine.device",
    "max_minutes": "engine.max_minutes",
    "log_every": "log.every",
    "checkpoint_every": "log.checkpoint_every",
    "head": "decoder.head",
    "schedule": "mask.schedule",
    "label": "label",
    "classes": "classes",
    "start": "start",
    "batch": "batch",
    "epochs": "epochs",
    "steps": "steps",
    "precision": "precision",
    "seed": "seed",
    "samples": "samples",
}
"""Option -> field of the job spec."""


def _grid(ctx: click.Context, parameter: click.Parameter, text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    rows, _, columns = text.lower().partition("x")
    if not (rows.isdecimal() and (columns or rows).isdecimal()):
        raise click.BadParameter(f"{text!r}: expected ROWSxCOLUMNS in codes, e.g. 28x28")
    return int(rows), int(columns or rows)


def training_options(command: F) -> F:
    """Options that all trainers on tokens have. What is not given has the default of the job spec."""
    options = [
        click.option("--data", required=True, help="Token dataset to learn from: folder or URL."),
        click.option("--val", help="Token dataset to validate on, made with the same tokenizer."),
        click.option("--where", help="Learn only from samples for which this holds, e.g. \"split == 'train'\"."),
        click.option("--val-where", help="Validate on such samples (of --val, or else of --data)."),
        click.option("--crop", callback=_grid, help="ROWSxCOLUMNS cut out of every token grid; where grids differ."),
        click.option("--size", help="micro, nano, tiny, small, base. [default: tiny]"),
        click.option("--embedding", help="frozen (codebook of the tokenizer) or learned. [default: frozen]"),
        click.option("--stride", type=int, help="Codes a position covers along an axis: 1, 2, 4. [default: 2]"),
        click.option(
            "--grid", callback=_grid, help="ROWSxCOLUMNS the model sees; others are resized. [default: as stored]"
        ),
        click.option("--batch", type=click.IntRange(1), help="Samples a step. [default: 256]"),
        click.option("--epochs", type=click.FloatRange(0, min_open=True), help="[default: 100]"),
        click.option("--steps", type=click.IntRange(1), help="Instead of --epochs."),
        click.option("--lr", type=click.FloatRange(0, min_open=True), help="Highest learning rate. [default: 0.001]"),
        click.option("--precision", help="fp32, or bf16: mixed precision. [default: fp32]"),
        click.option("--seed", type=click.IntRange(0), help="[default: 0]"),
        click.option("--device", help="auto, cpu, cuda, cuda:1, mps. [default: auto]"),
        click.option("--compile", "compiled", is_flag=True, help="Compile the network with torch.compile."),
        click.option("--max-minutes", type=click.FloatRange(0), help="Stop in time, with a checkpoint to go on from."),
        click.option("--log-every", type=click.IntRange(1), help="Steps. [default: 50]"),
        click.option("--checkpoint-every", type=click.IntRange(1), help="Steps. [default: 500]"),
        click.option("--quiet", "-q", is_flag=True, help="No lines on the way."),
        click.option("--set", "settings", multiple=True, metavar="FIELD=VALUE", help="Any field of the job spec."),
    ]
    for option in reversed(options):
        command = option(command)
    return storage_option(json_option(command))


def build(model: Any, data: str, run_folder: str, values: dict[str, Any]) -> Any:
    """The job spec of the options; SpecError with the field where a value is wrong."""
    from tokenshard.spec.job import build_job

    fields: dict[str, Any] = {"source": {"path": data}, "output": run_folder, "storage": values["storage"]}
    for option, value in values.items():
        if option in PLACES and value is not None:
            _put(fields, PLACES[option], value)
    if values["compiled"]:
        _put(fields, "engine.compile", True)
    for text in values["settings"]:
        name, equals, value = text.partition("=")
        if not equals:
            raise click.BadParameter(f"{text!r}: expected FIELD=VALUE, e.g. augment.noise=0.1", param_hint="--set")
        _put(fields, name, _parsed(value))
    return build_job(model, fields)


def _parsed(text: str) -> Any:
    import json

    try:
        return json.loads(text)
    except ValueError:
        return text


def _put(fields: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for name in parents:
        fields = fields.setdefault(name, {})
    fields[last] = value


def train_and_print(job: Any, as_json: bool, quiet: bool) -> None:
    """Run a training job; what it came to goes to stdout, lines on the way to stderr."""
    from tokenshard.training.start import train as run

    outcome = run(job, (lambda text: None) if quiet else lambda text: click.echo(text, err=True))
    if as_json:
        print_json(outcome.json())
        return
    rows = [("model", outcome.output), ("samples", f"{outcome.samples:,}"), ("steps", f"{outcome.steps:,}")]
    rows += [("fingerprint", outcome.fingerprint)] if outcome.finished else []
    rows += [(name.replace("_", " "), f"{value:,.4f}") for name, value in outcome.metrics.items()]
    print_table(rows)


@click.group()
def train() -> None:
    """Train models from token shards. Run the same command again to go on with a run that was stopped.

    \b
    Example:
      tokenshard train classifier --data tokens/ --val val-tokens/ run/
      tokenshard train mtm --data tokens/ pretrained/
    """


@train.command()
@click.argument("run_folder")
@training_options
@click.option("--label", help="Column with the classes. [default: label]")
@click.option("--classes", type=click.IntRange(2), help="[default: the names of the column, else its values]")
@click.option("--from", "start", metavar="MODEL", help="Begin with the encoder of a trained model.")
def classifier(run_folder: str, data: str, as_json: bool, quiet: bool, **values: Any) -> None:
    """Train a vision transformer that tells classes apart.

    RUN_FOLDER is a folder or URL that gets the model, and below `training/` its metrics.

    \b
    Example:
      tokenshard train classifier --data tokens/ --val val-tokens/ run/ --size small --epochs 100
      tokenshard train classifier --data tokens/ run/ --from pretrained/ --lr 5e-4 --set optimizer.layer_decay=0.65
    """
    from tokenshard.spec.job import TrainClassifier

    train_and_print(build(TrainClassifier, data, run_folder, values), as_json, quiet)


@train.command()
@click.argument("run_folder")
@training_options
@click.option("--head", help="auto, tied, two-level, vq-logits, summed. [default: auto]")
@click.option("--schedule", help="truncated-normal, cosine, arccos, uniform. [default: truncated-normal]")
@click.option("--samples", type=click.IntRange(0), help="Images drawn at each validation. [default: 8]")
def mtm(run_folder: str, data: str, as_json: bool, quiet: bool, **values: Any) -> None:
    """Train a masked token model: to begin other trainings with, or to draw images.

    RUN_FOLDER is a folder or URL that gets the model, and below `training/` its metrics and drawn images.

    \b
    Example:
      tokenshard train mtm --data tokens/ --val val-tokens/ pretrained/ --size base --epochs 400
      tokenshard train mtm --data tokens/ generator/ --schedule cosine --set mask.low=0 --set mask.drop=0
    """
    from tokenshard.spec.job import TrainMtm

    train_and_print(build(TrainMtm, data, run_folder, values), as_json, quiet)
