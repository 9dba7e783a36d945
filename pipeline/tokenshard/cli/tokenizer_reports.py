"""`tokenshard tokenizer numerics` and `sensitivity`: what shorter numbers do to ids and pixels."""

from __future__ import annotations

from typing import Any

import click

from tokenshard.cli.options import encoder_option, json_option, print_columns, print_json, storage_option
from tokenshard.cli.tokenizer import read_images, saved_or_fitted, tokenizer


@tokenizer.command()
@click.argument("tokenizer_", metavar="TOKENIZER")
@click.argument("src")
@click.option("--modes", default="bf16,int8", show_default=True, help="Modes to compare with fp32, by commas.")
@click.option("--images", "most", type=click.IntRange(1), default=32, show_default=True, help="Spread evenly.")
@click.option("--size", type=click.IntRange(1), help="Resize and cut each image to a square of this side first.")
@click.option("--device", default="cpu", show_default=True, help="Where the modes run: cpu, cuda. fp32 is on the CPU.")
@encoder_option
@storage_option
@json_option
def numerics(tokenizer_: str, src: str, modes: str, as_json: bool, **values: Any) -> None:
    """Say what share of the ids and how many dB a numerics mode changes.

    TOKENIZER is `default` or the folder of a saved conv tokenizer. Each mode is compared with fp32 on the CPU.

    \b
    Example:
      tokenshard tokenizer numerics default photos/
      tokenshard tokenizer numerics default photos/ --modes fp32,bf16 --device cuda
    """
    from tokenshard.report.numerics import compare_modes
    from tokenshard.tokenizers.trained import NUMERICS

    names = [mode for name in modes.split(",") for mode in NUMERICS if mode == name.strip()]
    if len(names) != len(modes.split(",")):
        raise click.BadParameter(f"{modes!r}: expected some of {', '.join(NUMERICS)}", param_hint="--modes")
    images = read_images((src,), values)
    reports = compare_modes(_conv(tokenizer_, values), images, names, values["device"])
    if as_json:
        print_json({"images": len(images), "modes": [report.json() for report in reports]})
        return
    heads = ("mode", "ids changed", "images changed", "PSNR, dB", "change", "encoded/s", "decoded/s")
    rows = [
        (
            report.numerics, f"{report.ids_changed:.2%}", f"{report.images_changed:.1%}", f"{report.psnr:.2f}",
            f"{report.psnr_change:+.3f}", f"{report.encode_images_per_second:.1f}",
            f"{report.decode_images_per_second:.1f}",
        )
        for report in reports
    ]  # fmt: skip
    print_columns(heads, rows)


@tokenizer.command()
@click.argument("tokenizer_", metavar="TOKENIZER")
@click.argument("src")
@click.option("--images", "most", type=click.IntRange(1), default=8, show_default=True, help="Spread evenly.")
@click.option("--size", type=click.IntRange(1), help="Resize and cut each image to a square of this side first.")
@encoder_option
@storage_option
@json_option
def sensitivity(tokenizer_: str, src: str, as_json: bool, **values: Any) -> None:
    """Rank the layers of a conv tokenizer by what int8 does to each alone.

    TOKENIZER is `default` or the folder of a saved conv tokenizer. The first layers of the list are those to leave in
    a wider format.

    \b
    Example:
      tokenshard tokenizer sensitivity default photos/
    """
    from tokenshard.report.numerics import layer_sensitivity

    images = read_images((src,), values)
    reports = layer_sensitivity(_conv(tokenizer_, values), images)
    if as_json:
        print_json({"images": len(images), "layers": [report.json() for report in reports]})
        return
    rows = [
        (
            f"{report.part}.{report.layer}", f"{report.pixel_change:.3f}", f"{report.ids_changed:.2%}",
            f"{report.psnr_change:+.3f}",
        )
        for report in reports
    ]  # fmt: skip
    print_columns(("layer", "pixels change by", "ids changed", "PSNR change, dB"), rows)


def _conv(text: str, values: dict[str, Any]) -> Any:
    """The saved conv tokenizer of that name, on the CPU; SpecError where it is another kind."""
    from tokenshard.errors import SpecError
    from tokenshard.tokenizers.conv import ConvVQ
    from tokenshard.tokenizers.registry import KINDS

    found = None if text.partition(":")[0] in KINDS else saved_or_fitted(text, [], {**values, "device": "cpu"})[0]
    if not isinstance(found, ConvVQ):
        raise SpecError(f"{text}: numerics modes are those of conv tokenizers, e.g. default or the folder of one")
    return found
