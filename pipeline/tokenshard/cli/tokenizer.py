"""`tokenshard tokenizer`: train, import, evaluate and list tokenizers."""

from __future__ import annotations

from typing import Any

import click

from tokenshard.cli.checkpoint import import_
from tokenshard.cli.options import encoder_option, json_option, print_json, print_table, storage_option


@click.group()
def tokenizer() -> None:
    """Train, import, evaluate and list tokenizers.

    \b
    Example:
      tokenshard tokenizer train photos/ my-tokenizer/
    """


tokenizer.add_command(import_)


@tokenizer.command()
@click.argument("src", nargs=-1, required=True)
@click.argument("out")
@click.option("--recipe", metavar="FILE", help="JSON recipe, as written to training/recipe.json; options change it.")
@click.option("--network", help="f4, f8, f16, patch-f8, vqgan-f16, or a JSON file. [default: f8]")
@click.option("--encoder", metavar="NAME", help="Train around it: MODULE:FUNCTION or a transformers folder. It is run.")
@click.option("--reweight", is_flag=True, help="Components of the encoder's features count by their variance.")
@click.option("--quantizer", help="Name of the quantizer. [default: vq]")
@click.option("--codes", "-k", type=click.IntRange(2, 1 << 16), help="Codebook size. [default: 1024]")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Option of the quantizer. Repeatable.")
@click.option("--dim", type=click.IntRange(1), help="Channels of the latents. [default: the network's]")
@click.option("--crop", type=click.IntRange(8), help="Side of the square crops in pixels. [default: 128]")
@click.option("--scale", help="FROM,TO: range of random resizing. [default: 0.6,1.6]")
@click.option("--batch", type=click.IntRange(1), help="Crops a step. [default: 64]")
@click.option("--steps", type=click.IntRange(1), help="[default: 20000]")
@click.option("--lr", type=click.FloatRange(0, min_open=True), help="Highest learning rate. [default: 0.001]")
@click.option("--warmup", type=click.IntRange(0), help="Steps until the full rate. [default: 500]")
@click.option("--l1", type=click.FloatRange(0), help="Weight of |error|. [default: 0.2]")
@click.option("--l2", type=click.FloatRange(0), help="Weight of error². [default: 1]")
@click.option("--gradient", type=click.FloatRange(0), help="Weight of errors of pixel differences. [default: 0]")
@click.option("--decoder-only", type=click.FloatRange(0, 1, max_open=True), help="Last share of steps. [default: 0.2]")
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), help="bf16: mixed precision. [default: fp32]")
@click.option("--stored", type=click.Choice(["float16", "float32"]), help="Weights file. [default: float16]")
@click.option("--seed", type=click.IntRange(0), help="[default: 0]")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, mps.")
@click.option("--compile", "compiled", is_flag=True, help="Compile the network with torch.compile.")
@click.option("--size", type=click.IntRange(1), help="Cut a square of this side out of each image first.")
@click.option("--images", "most", type=click.IntRange(2), help="Use so many images, spread evenly. [default: all]")
@click.option("--memory-gb", type=float, default=8.0, show_default=True, help="Most decoded pixels held.")
@click.option("--held-out", type=click.IntRange(1), default=64, show_default=True, help="Images for validation.")
@click.option("--checkpoint-every", type=click.IntRange(1), default=1000, show_default=True, help="Steps.")
@click.option("--log-every", type=click.IntRange(1), default=100, show_default=True, help="Steps.")
@click.option("--max-minutes", type=float, default=None, help="Stop in time, with a checkpoint to go on from.")
@storage_option
def train(src: tuple[str, ...], out: str, **values: Any) -> None:
    """Train a conv tokenizer on raw images and save it.

    SRC is one or more folders, tars, manifests or URLs of images (see `convert images`). OUT is a folder or URL that
    gets the tokenizer, and below `training/` metrics and sample pictures. Run the same command again to resume.

    \b
    Example:
      tokenshard tokenizer train photos/ my-tokenizer/ --steps 5000
      tokenshard tokenizer train photos/ my-tokenizer/ --device cuda --precision bf16 --compile --batch 128
      tokenshard convert images photos/ tokens/ --tokenizer my-tokenizer/
    """
    from tokenshard.store import Store
    from tokenshard.tokenizers.encoders import load_encoder
    from tokenshard.training.frozen import preparation
    from tokenshard.training.tokenizer import TokenizerTraining

    encoder = None if values["encoder"] is None else load_encoder(values["encoder"])
    recipe = _recipe(values, encoder)
    store = Store(out, values["storage"])
    if store.exists("tokenizer.json"):
        click.echo(f"{out}: holds a trained tokenizer already; nothing was done")
        return
    pool, held_out = _pools(src, values)
    click.echo(f"{len(pool):,} images to train on, {len(held_out):,} held out")
    options = {"device": _device(values["device"]), "compiled": values["compiled"], "say": click.echo}
    if encoder is not None:
        options["prepare"] = preparation(encoder, values["encoder"], pool, recipe)
    training = TokenizerTraining(recipe, pool, held_out, store, **options)
    minutes = values["max_minutes"]
    made = training.run(
        checkpoint_every=values["checkpoint_every"],
        log_every=values["log_every"],
        **({} if minutes is None else {"max_seconds": 60 * minutes}),
    )
    if made is not None:
        size = sum(tensor.nbytes for tensor in made.tensors().values())
        print_table([("tokenizer", out), ("fingerprint", made.spec.fingerprint), ("weights", f"{size:,} bytes")])


@tokenizer.command(name="eval")
@click.argument("tokenizer")
@click.argument("src")
@click.option("--images", "most", type=click.IntRange(1), help="Use so many images, spread evenly. [default: all]")
@click.option("--size", type=click.IntRange(1), help="Cut a square of this side out of each image first.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda (conv tokenizers).")
@encoder_option
@storage_option
@json_option
def evaluate(tokenizer: str, src: str, as_json: bool, **values: Any) -> None:
    """Measure a tokenizer on images: PSNR, SSIM, use of the codes, and bits as stored.

    TOKENIZER is `default`, the folder of a saved tokenizer, or NAME:OPTIONS to be fitted on these very images.

    \b
    Example:
      tokenshard tokenizer eval default kodak/
      tokenshard tokenizer eval patch:8x8,k=1024 kodak/
    """
    from tokenshard.report.tokenizer_quality import tokenizer_quality

    images = _images((src,), values)
    quality = tokenizer_quality(_tokenizer(tokenizer, images, values), images)
    if as_json:
        print_json(quality.json())
        return
    print_table(
        [
            ("images", f"{quality.images:,} ({quality.pixels:,} pixels, {quality.tokens:,} tokens)"),
            ("PSNR", f"{quality.psnr:.2f} dB"),
            ("SSIM", f"{quality.ssim:.4f}"),
            ("codes used", f"{quality.usage:.1%} (perplexity {quality.perplexity:.0f})"),
            ("entropy", f"{quality.order0_entropy:.2f} bits a token without context"),
            ("stored", f"{quality.bits_per_token:.2f} bits a token ({'+'.join(quality.codecs)})"),
            ("bits per pixel", f"{quality.bits_per_pixel:.4f}"),
            ("encode", f"{quality.encode_images_per_second:.1f} images/s"),
            ("decode", f"{quality.decode_images_per_second:.1f} images/s"),
        ]
    )


@tokenizer.command(name="list")
@json_option
def list_(as_json: bool) -> None:
    """List kinds of tokenizers, quantizers and networks.

    \b
    Example:
      tokenshard tokenizer list
    """
    from tokenshard.quantizers.registry import QUANTIZERS
    from tokenshard.tokenizers.packaged import PACKAGED
    from tokenshard.tokenizers.registry import KINDS
    from tokenshard.training.recipe import PRESETS

    facts = {
        "tokenizers": {name: {"example": kind.example, "fitted": kind.trainable} for name, kind in KINDS.items()},
        "packaged": dict(PACKAGED),
        "quantizers": list(QUANTIZERS),
        "networks": {name: network.model_dump(mode="json") for name, network in PRESETS.items()},
    }
    if as_json:
        print_json(facts)
        return
    rows = [("fitted on the input", ", ".join(kind.example for kind in KINDS.values() if kind.trainable))]
    rows += [(name, what) for name, what in PACKAGED.items()]
    rows += [("kinds of saved ones", ", ".join(KINDS)), ("quantizers", ", ".join(QUANTIZERS))]
    print_table([*rows, ("networks", ", ".join(PRESETS))])


def _recipe(values: dict[str, Any], encoder: Any) -> Any:
    """The recipe of the file and of the options, which come first; SpecError where they contradict each other."""
    from pydantic import ValidationError

    from tokenshard.errors import SpecError
    from tokenshard.tokenizers.networks import first_error
    from tokenshard.training.recipe import PRESETS, TokenizerRecipe

    fields = {} if values["recipe"] is None else _json_file("--recipe", values["recipe"])
    names = ("quantizer", "crop", "batch", "steps", "lr", "warmup", "decoder_only", "precision", "stored", "seed")
    fields |= {name: values[name] for name in names if values[name] is not None}
    if encoder is not None:
        fields["network"] = _network_around(encoder, values, fields)
    elif values["network"] in PRESETS or (values["network"] is None and "network" not in fields):
        fields["network"] = PRESETS[values["network"] or "f8"].model_dump()
    elif values["network"] is not None:
        fields["network"] = _json_file("--network", values["network"], f"one of {', '.join(PRESETS)}, or ")
    if encoder is None and values["dim"] is not None and isinstance(fields["network"], dict):
        fields["network"]["dim"] = values["dim"]
    if values["scale"] is not None:
        fields["scale"] = tuple(values["scale"].split(","))
    if values["quantizer"] is not None or "quantizer_options" not in fields:
        fields["quantizer_options"] = {} if fields.get("quantizer") in ("lfq", "bsq") else {"size": 1024}
    try:
        fields["quantizer_options"] = {**fields["quantizer_options"], **_settings(values)}
        losses = {name: values[name] for name in ("l1", "l2", "gradient") if values[name] is not None}
        fields["losses"] = {**fields.get("losses", {}), **losses}
        return TokenizerRecipe.model_validate(fields)
    except ValidationError as error:
        place, message = first_error(error)
        raise SpecError(f"{place or 'recipe'}: {message}") from error
    except TypeError as error:
        raise SpecError(f"{values['recipe']}: quantizer_options and losses are objects ({error})") from error


def _network_around(encoder: Any, values: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    """The network of the recipe's file where it is one for this encoder, else a new one."""
    from tokenshard.tokenizers.frozen import frozen_network
    from tokenshard.training.frozen import decoder_for

    network = fields.get("network")
    if values["network"] is None and isinstance(network, dict) and network.get("architecture") == "frozen":
        return network
    name = values["encoder"]
    decoder = decoder_for(encoder, name, values["network"])
    return frozen_network(name, encoder, decoder, values["dim"], values["reweight"]).model_dump()


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


def _source(path: str, values: dict[str, Any]) -> Any:
    from tokenshard.spec.images import ImageSourceSpec

    size = values["size"]
    return ImageSourceSpec(path=path, labels="none", size=size, fit="center-crop" if size else "keep")


def _images(paths: tuple[str, ...], values: dict[str, Any]) -> list[Any]:
    """The decoded images of some sources; says how many could not be read."""
    import os

    from tokenshard.errors import SpecError
    from tokenshard.sources.base import Sample
    from tokenshard.sources.images.decoded import decoded_images

    images: list[Any] = []
    rejected, held, limit = 0, 0, values.get("memory_gb", 64.0) * 1e9
    for path in paths:
        source = _source(path, values)
        for item in decoded_images(source, values["storage"], most=values["most"], threads=os.cpu_count() or 4):
            if not isinstance(item, Sample):
                rejected += 1
            elif held + item.data.nbytes <= limit:
                images.append(item.data)
                held += item.data.nbytes
    if rejected:
        click.echo(f"{rejected:,} images could not be read and are left out", err=True)
    if not images:
        raise SpecError(f"{', '.join(paths)}: no image could be read")
    return images


def _pools(paths: tuple[str, ...], values: dict[str, Any]) -> tuple[Any, Any]:
    """Images to train on, and images spread evenly over all that are held out."""
    from tokenshard.errors import SpecError
    from tokenshard.training.crops import PixelPool

    images = _images(paths, values)
    if len(images) < 2:
        raise SpecError(f"{', '.join(paths)}: one image is too few; the one held out must be another")
    count = min(values["held_out"], max(1, len(images) // 4))
    chosen = {place * len(images) // count for place in range(count)}
    held_out = PixelPool.of(image for place, image in enumerate(images) if place in chosen)
    return PixelPool.of(image for place, image in enumerate(images) if place not in chosen), held_out


def _device(name: str) -> str:
    import torch

    return name if name != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")


def _tokenizer(text: str, images: list[Any], values: dict[str, Any]) -> Any:
    from tokenshard.tokenizers.conv import ConvVQ
    from tokenshard.tokenizers.encoders import with_encoder
    from tokenshard.tokenizers.folder import load_tokenizer
    from tokenshard.tokenizers.packaged import saved_tokenizer
    from tokenshard.tokenizers.registry import KINDS, parse_tokenizer, trainable_class

    if text.partition(":")[0] in KINDS:
        kind, options = parse_tokenizer(text)
        return trainable_class(kind).fit(images, 0, **options)
    found = with_encoder(load_tokenizer(saved_tokenizer(text, values["storage"])), values["encoder"])
    return found.on(values["device"]) if isinstance(found, ConvVQ) and values["device"] != "cpu" else found
