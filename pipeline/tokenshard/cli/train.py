"""`tokenshard train`: classifiers, masked token models and token adapters, from token shards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    "images": "source.images",
    "flipped": "source.flipped",
    "most": "source.most",
    "crops": "source.crops",
    "width": "adapter.width",
    "adapt": "augment.adapt",
    "workers": "engine.workers",
    "address": "engine.address",
    "gpus": "engine.gpus",
    "device": "engine.device",
    "max_minutes": "engine.max_minutes",
    "log_every": "log.every",
    "checkpoint_every": "log.checkpoint_every",
    "tensorboard": "log.tensorboard",
    "wandb": "log.wandb",
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
    "level": "source.level",
    "seen": "source.input",
    "depth": "model.depth",
}
"""Option -> field of the job spec."""


def _grid(ctx: click.Context, parameter: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    sides = text.lower().split("x")
    most = 3 if parameter.name == "crop" else 2
    if len(sides) > most or not all(side.isdecimal() for side in sides):
        frames = ", of clips FRAMESxROWSxCOLUMNS" if most == 3 else ""
        raise click.BadParameter(f"{text!r}: expected ROWSxCOLUMNS in codes, e.g. 28x28{frames}")
    return tuple(map(int, sides if len(sides) > 1 else 2 * sides))


def model_options(command: F) -> F:
    """Options of trainers of transformers, with those of all trainers."""
    options = [
        click.option("--val", help="Token dataset to validate on, made with the same tokenizer."),
        click.option("--where", help="Learn only from samples for which this holds, e.g. \"split == 'train'\"."),
        click.option("--val-where", help="Validate on such samples (of --val, or else of --data)."),
        click.option(
            "--crop", callback=_grid, help="[FRAMESx]ROWSxCOLUMNS cut out of every token grid; where grids differ."
        ),
        click.option("--size", help="micro, nano, tiny, small, base. [default: tiny]"),
        click.option("--embedding", help="frozen (codebook of the tokenizer) or learned. [default: frozen]"),
        click.option("--stride", type=int, help="Codes a position covers along an axis: 1, 2, 4. [default: 2]"),
        click.option(
            "--grid", callback=_grid, help="ROWSxCOLUMNS the model sees; others are resized. [default: as stored]"
        ),
        click.option("--adapt", metavar="ADAPTER", help="Token adapter (`train adapt`) to augment with."),
    ]
    return training_options(_with(command, options))


def _with(command: F, options: Sequence[Callable[[F], F]]) -> F:
    for option in reversed(options):
        command = option(command)
    return command


def training_options(command: F) -> F:
    """Options that all trainers on tokens have. What is not given has the default of the job spec."""
    options = [
        click.option("--data", required=True, help="Token dataset to learn from: folder or URL."),
        click.option(
            "--batch", type=click.IntRange(1), help="Samples a step, of all workers. [default: 256, adapt: 64]"
        ),
        click.option(
            "--epochs", type=click.FloatRange(0, min_open=True), help="Passes over the data. [default: 100, adapt: 30]"
        ),
        click.option("--steps", type=click.IntRange(1), help="Instead of --epochs."),
        click.option(
            "--lr",
            type=click.FloatRange(0, min_open=True),
            help="Highest learning rate. [default: 0.001, adapt: 0.002]",
        ),
        click.option("--precision", help="fp32, or bf16: mixed precision. [default: fp32]"),
        click.option("--seed", type=click.IntRange(0), help="[default: 0]"),
        click.option("--workers", type=click.IntRange(1), help="Processes that share a batch; Ray Train above 1."),
        click.option("--address", help="Ray address (auto, HOST:PORT); none: embedded Ray."),
        click.option("--gpus", type=click.FloatRange(0), help="GPUs of one worker (Ray). [default: 0]"),
        click.option("--device", help="auto, cpu, cuda, cuda:1, mps. [default: auto]"),
        click.option("--compile", "compiled", is_flag=True, help="Compile the network with torch.compile."),
        click.option("--max-minutes", type=click.FloatRange(0), help="Stop in time, with a checkpoint to go on from."),
        click.option("--log-every", type=click.IntRange(1), help="Steps. [default: 50]"),
        click.option("--checkpoint-every", type=click.IntRange(1), help="Steps. [default: 500]"),
        click.option("--tensorboard", is_flag=True, default=None, help="Write event files for TensorBoard too."),
        click.option("--wandb", metavar="PROJECT", help="Send the metrics to Weights & Biases too."),
        click.option("--quiet", "-q", is_flag=True, help="No lines on the way."),
        click.option("--set", "settings", multiple=True, metavar="FIELD=VALUE", help="Any field of the job spec."),
    ]
    return storage_option(json_option(_with(command, options)))


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
    from tokenshard.training.distributed import is_first
    from tokenshard.training.start import train as run

    outcome = run(job, (lambda text: None) if quiet else lambda text: click.echo(text, err=True))
    if not is_first():
        return
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
      tokenshard train adapt --data tokens/ --source photos/ adapter/
      torchrun --nproc-per-node 8 -m tokenshard.cli.main train mtm --data s3://bucket/tokens/ s3://bucket/pretrained/
    """


@train.command()
@click.argument("run_folder")
@model_options
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
      tokenshard train classifier --data tokens/ run/ --adapt adapter/ --workers 8 --gpus 1 --address auto
    """
    from tokenshard.spec.job import TrainClassifier

    train_and_print(build(TrainClassifier, data, run_folder, values), as_json, quiet)


@train.command()
@click.argument("run_folder")
@model_options
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


@train.command()
@click.argument("run_folder")
@training_options
@click.option("--source", "images", metavar="IMAGES", help="Images like those of the dataset; read once.")
@click.option("--flipped", help="Instead: a token dataset of the flipped images, under the same keys.")
@click.option("--images", "most", type=click.IntRange(2), help="Use so many, spread evenly. [default: 10000]")
@click.option("--crops", type=click.IntRange(0), help="Random crops of each image to learn from. [default: 2]")
@click.option("--width", type=click.IntRange(32), help="Of the network. [default: 128]")
def adapt(run_folder: str, data: str, as_json: bool, quiet: bool, **values: Any) -> None:
    """Train an adapter: a network that flips and crops the tokens of images as if these were pixels.

    It learns once, from codes of images and of the same images moved. Every trainer takes it with --adapt. RUN_FOLDER
    is a folder or URL that gets it, and below `training/` its metrics: how many codes of held-out images it gets right,
    beside those that flipping the grid of codes gets right.

    \b
    Example:
      tokenshard train adapt --data tokens/ --source photos/ adapter/
      tokenshard train adapt --data tokens/ --flipped flipped-tokens/ adapter/ --width 64
      tokenshard train classifier --data tokens/ run/ --adapt adapter/
    """
    from tokenshard.spec.job import TrainAdapt

    if values["flipped"] is not None and values["crops"] is None:
        values["crops"] = 0
    train_and_print(build(TrainAdapt, data, run_folder, values), as_json, quiet)


@train.command("grid-sr")
@click.argument("run_folder")
@training_options
@click.option("--val", help="Dataset of grids of other regions to validate on.")
@click.option("--level", type=click.IntRange(1), help="Level to be made, from the one half as fine. [default: 1]")
@click.option("--input", "seen", help="elevation, or tokens: what of the coarser level is seen. [default: elevation]")
@click.option("--depth", type=click.IntRange(0), help="Convolutions; 0: the linear map alone. [default: 4]")
def grid_sr(run_folder: str, data: str, as_json: bool, quiet: bool, **values: Any) -> None:
    """Train a network that doubles the resolution of grids.

    It learns from datasets that hold a level and the one half as fine (`convert grids --levels 1,2`), and is measured
    beside bicubic interpolation of the same cells, in metres. RUN_FOLDER is a folder or URL that gets it, and below
    `training/` its metrics.

    \b
    Example:
      tokenshard train grid-sr --data depths/ --val other-depths/ run/
      tokenshard train grid-sr --data depths/ --input tokens --depth 0 run/
    """
    from tokenshard.spec.job import TrainGridSr
    from tokenshard.training.distributed import is_first
    from tokenshard.training.grid_sr import verdict_of
    from tokenshard.training.start import train as run

    job = build(TrainGridSr, data, run_folder, values)
    outcome = run(job, (lambda text: None) if quiet else lambda text: click.echo(text, err=True))
    if not is_first():
        return
    verdict = verdict_of(outcome)
    if as_json:
        print_json({**outcome.json(), "verdict": verdict})
        return
    rows = [("model", outcome.output), ("steps", f"{outcome.steps:,}"), ("verdict", verdict or "not at its end yet")]
    print_table(rows + [(name.replace("_", " "), f"{value:,.4f}") for name, value in outcome.metrics.items()])
