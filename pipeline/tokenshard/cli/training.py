"""`tokenshard tokenizer train`, and training jobs of `tokenshard run`."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from typing import Any

import click

from tokenshard.cli.options import json_option, print_json, print_table, storage_option


@click.command()
@click.argument("src", nargs=-1, required=True)
@click.argument("out")
@click.option("--recipe", metavar="FILE", help="JSON recipe, as written to training/recipe.json; options change it.")
@click.option("--network", help="f4, f8, f16, patch-f8, f4x8x8, grid-f8, vqgan-f16, or a JSON file. [default: f8]")
@click.option("--encoder", metavar="NAME", help="Train around it: MODULE:FUNCTION or a transformers folder. It is run.")
@click.option("--reweight", is_flag=True, help="Components of the encoder's features count by their variance.")
@click.option("--quantizer", help="Name of the quantizer. [default: vq]")
@click.option("--codes", "-k", type=click.IntRange(2, 1 << 16), help="Codebook size. [default: 1024]")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Option of the quantizer. Repeatable.")
@click.option("--dim", type=click.IntRange(1), help="Channels of the latents. [default: the network's]")
@click.option("--crop", type=click.IntRange(8), help="Side of the square crops in pixels. [default: 128]")
@click.option("--scale", help="FROM,TO: range of random resizing. [default: 0.6,1.6]")
@click.option("--frames", type=click.IntRange(1), help="Of a clip, for networks of clips. [default: 9]")
@click.option("--fps", type=click.FloatRange(0, min_open=True), help="SRC are videos; frames a second. [default: 8]")
@click.option("--clip-seconds", type=click.FloatRange(0, min_open=True), help="SRC are videos, held in such clips.")
@click.option("--variable", help="SRC are grids: the variable or band with the values. [default: found out]")
@click.option("--step", type=click.FloatRange(0, min_open=True), help="SRC are grids: resolution of means of patches.")
@click.option("--floor", type=click.FloatRange(0, min_open=True), help="SRC are grids: least relief that has codes.")
@click.option("--batch", type=click.IntRange(1), help="Crops a step, of all workers together. [default: 64]")
@click.option("--steps", type=click.IntRange(1), help="[default: 20000]")
@click.option("--lr", type=click.FloatRange(0, min_open=True), help="Highest learning rate. [default: 0.001]")
@click.option("--warmup", type=click.IntRange(0), help="Steps until the full rate. [default: 500]")
@click.option("--l1", type=click.FloatRange(0), help="Weight of |error|. [default: 0.2]")
@click.option("--l2", type=click.FloatRange(0), help="Weight of error². [default: 1]")
@click.option("--gradient", type=click.FloatRange(0), help="Weight of errors of pixel differences. [default: 0]")
@click.option("--lpips", type=click.FloatRange(0), help="Weight of LPIPS; needs --lpips-weights. [default: 0]")
@click.option("--lpips-weights", metavar="FILE", help="Of VGG16 or AlexNet and linear layers: a file or folder.")
@click.option("--gan", type=click.FloatRange(0), help="Weight of a patch discriminator. [default: 0]")
@click.option("--decoder-only", type=click.FloatRange(0, 1, max_open=True), help="Last share of steps. [default: 0.2]")
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), help="bf16: mixed precision. [default: fp32]")
@click.option("--stored", type=click.Choice(["float16", "float32"]), help="Weights file. [default: float16]")
@click.option("--seed", type=click.IntRange(0), help="[default: 0]")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes; Ray Train above 1.")
@click.option("--address", help="Ray address (auto, HOST:PORT); none: embedded Ray.")
@click.option("--gpus", type=click.FloatRange(0), default=0.0, show_default=True, help="GPUs of one worker (Ray).")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, mps.")
@click.option("--compile", "compiled", is_flag=True, help="Compile the network with torch.compile.")
@click.option("--size", type=click.IntRange(1), help="Cut a square of this side out of each image first.")
@click.option("--images", "most", type=click.IntRange(2), help="Use so many images, spread evenly. [default: all]")
@click.option("--memory-gb", type=float, default=8.0, show_default=True, help="Most decoded pixels held, a worker.")
@click.option("--held-out", type=click.IntRange(1), default=64, show_default=True, help="Images for validation.")
@click.option("--checkpoint-every", type=click.IntRange(1), default=1000, show_default=True, help="Steps.")
@click.option("--validate-every", type=click.IntRange(1), help="Steps. [default: with each checkpoint]")
@click.option("--log-every", type=click.IntRange(1), default=100, show_default=True, help="Steps.")
@click.option("--tensorboard", is_flag=True, help="Write event files for TensorBoard too.")
@click.option("--wandb", metavar="PROJECT", help="Send the metrics to Weights & Biases too.")
@click.option("--max-minutes", type=float, default=None, help="Stop in time, with a checkpoint to go on from.")
@storage_option
@json_option
def train(src: tuple[str, ...], out: str, as_json: bool, **values: Any) -> None:
    """Train a tokenizer on raw images, videos or grids and save it.

    SRC is one or more folders, tars, manifests or URLs of images (see `convert images`), or of videos, where the
    network is one of clips (f4x8x8), or where --fps says how many frames are taken, or of grids (see `convert
    grids`), where it is one of grids (grid-f8). OUT is a folder or URL that gets the tokenizer, and below `training/`
    metrics and sample pictures. Run the same command again to resume.

    \b
    Example:
      tokenshard tokenizer train photos/ my-tokenizer/ --steps 5000
      tokenshard tokenizer train photos/ my-tokenizer/ --device cuda --precision bf16 --compile --batch 128
      tokenshard tokenizer train clips/ my-tokenizer/ --network f4x8x8 --fps 8 --batch 16
      tokenshard tokenizer train etopo/ my-tokenizer/ --network grid-f8 --l1 1 --l2 0 --gradient 0.5
      tokenshard tokenizer train s3://bucket/photos/ s3://bucket/mine/ --workers 8 --gpus 1 --address auto
      tokenshard convert images photos/ tokens/ --tokenizer my-tokenizer/
    """
    from tokenshard.spec.job import TrainTokenizer, build_job

    size = values["size"]
    source = {"path": src[0], "also": src[1:], "size": size, "fit": "center-crop" if size else "keep"}
    source |= {"images": values["most"], "held_out": values["held_out"], "memory": round(values["memory_gb"] * 1e9)}
    engine = {name: values[name] for name in ("workers", "address", "gpus", "device", "max_minutes")}
    log = {name: values[name] for name in ("checkpoint_every", "validate_every", "tensorboard", "wandb")}
    around = None
    if values["encoder"] is not None:
        around = {"name": values["encoder"], "dim": values["dim"], "reweight": values["reweight"]}
    clips = {name: values[name] for name in ("fps", "clip_seconds") if values[name] is not None}
    grids = {name: values[name] for name in ("variable", "step", "floor") if values[name] is not None}
    source |= {"clips": clips or None, "grids": grids or None}
    fields = {
        "recipe": _recipe(values),
        "encoder": around,
        "lpips_weights": values["lpips_weights"],
        "engine": {**engine, "compile": values["compiled"]},
        "log": {**log, "every": values["log_every"]},
        "storage": values["storage"],
    }
    train_and_print(build_job(TrainTokenizer, {"source": source, "output": out, **fields}), False, as_json)


def train_and_print(spec: Any, quiet: bool, as_json: bool) -> None:
    """Run a training job and say what came out."""
    from tokenshard.training.distributed import is_first
    from tokenshard.training.job import train_tokenizer

    with redirect_stdout(sys.stderr) if as_json else redirect_stdout(sys.stdout):
        result = train_tokenizer(spec, (lambda text: None) if quiet else click.echo)
    if not is_first():
        return
    if as_json:
        print_json(result.json())
    elif result.fingerprint:
        psnr = [] if result.psnr is None else [("PSNR", f"{result.psnr:.2f} dB on held-out images")]
        rows = [("tokenizer", result.output), ("fingerprint", result.fingerprint), *psnr]
        print_table([*rows, ("steps", f"{result.steps:,} in {result.seconds:.1f} s")])


def _recipe(values: dict[str, Any]) -> dict[str, Any]:
    """The recipe of the file and of the options, which come first."""
    from tokenshard.errors import SpecError
    from tokenshard.training.recipe import PRESETS

    fields = {} if values["recipe"] is None else _json_file("--recipe", values["recipe"])
    names = ["quantizer", "crop", "frames", "batch", "steps", "lr", "warmup", "decoder_only"]
    names += ["precision", "stored", "seed"]
    fields |= {name: values[name] for name in names if values[name] is not None}
    if values["network"] in PRESETS or (values["network"] is not None and values["encoder"] is not None):
        fields["network"] = values["network"]
    elif values["network"] is not None:
        fields["network"] = _json_file("--network", values["network"], f"one of {', '.join(PRESETS)}, or ")
    if values["dim"] is not None and values["encoder"] is None:
        network = fields.get("network") or "f8"
        described = PRESETS[network].model_dump(mode="json") if isinstance(network, str) else network
        fields["network"] = {**described, "dim": values["dim"]}
    if values["scale"] is not None:
        fields["scale"] = values["scale"].split(",")
    if values["quantizer"] is not None or "quantizer_options" not in fields:
        fields["quantizer_options"] = {} if fields.get("quantizer") in ("lfq", "bsq") else {"size": 1024}
    losses = {name: values[name] for name in ("l1", "l2", "gradient", "lpips", "gan") if values[name] is not None}
    try:
        fields["quantizer_options"] = {**fields["quantizer_options"], **_settings(values)}
        fields["losses"] = {**fields.get("losses", {}), **losses}
    except TypeError as error:
        raise SpecError(f"{values['recipe']}: quantizer_options and losses are objects ({error})") from error
    return fields


def _settings(values: dict[str, Any]) -> dict[str, Any]:
    """Options of the quantizer: those of --set, with --codes as ``size``."""
    import json

    options: dict[str, Any] = {}
    for text in values["settings"]:
        name, equals, value = text.partition("=")
        if not equals:
            raise click.BadParameter(f"{text!r}: expected NAME=VALUE, e.g. rate=0.1", param_hint="--set")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options | ({"size": values["codes"]} if values["codes"] else {})


def _json_file(option: str, path: str, others: str = "") -> dict[str, Any]:
    """The object in a JSON file; SpecError with the option where there is none."""
    import json
    from pathlib import Path

    from tokenshard.errors import SpecError

    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError) as error:
        raise SpecError(f"{option} {path}: {error}; use {others}a JSON file") from error
    return found
