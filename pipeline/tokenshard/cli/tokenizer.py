"""`tokenshard tokenizer`: train, import, evaluate and list tokenizers."""

from __future__ import annotations

from typing import Any

import click

from tokenshard.cli.checkpoint import import_
from tokenshard.cli.options import encoder_option, json_option, print_json, print_table, storage_option
from tokenshard.cli.training import train


@click.group()
def tokenizer() -> None:
    """Train, import, evaluate and list tokenizers.

    \b
    Example:
      tokenshard tokenizer train photos/ my-tokenizer/
    """


tokenizer.add_command(train)
tokenizer.add_command(import_)


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


def _images(paths: tuple[str, ...], values: dict[str, Any]) -> list[Any]:
    """The decoded images of some sources; says how many could not be read."""
    return [sample.data for sample in _samples(paths, values)]


def _samples(paths: tuple[str, ...], values: dict[str, Any]) -> list[Any]:
    from tokenshard.spec.images import ImageSourceSpec
    from tokenshard.training.images import read_samples

    size = values["size"]
    fields = {"labels": "none", "size": size, "fit": "center-crop" if size else "keep"}
    sources = [ImageSourceSpec.model_validate({"path": path, **fields}) for path in paths]
    return read_samples(sources, values["storage"], lambda text: click.echo(text, err=True), values["most"])


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
