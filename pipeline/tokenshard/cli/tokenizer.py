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
@click.option("--size", type=click.IntRange(1), help="Resize and cut each image to a square of this side first.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda (conv tokenizers).")
@encoder_option
@click.option(
    "--numerics", type=click.Choice(["fp32", "bf16", "int8"]), help="Of a conv tokenizer. [default: as it was saved]"
)
@click.option("--codes", metavar="FILE", help="Write a CSV: how often each code occurs, and in which images most.")
@click.option("--top", type=click.IntRange(0), default=3, show_default=True, help="Images a code in --codes.")
@click.option("--lpips", metavar="FILE", help="Measure LPIPS, with weights of a file or folder.")
@click.option("--rfid", metavar="FILE", help="Measure rFID with the Inception weights of a file.")
@storage_option
@json_option
def evaluate(tokenizer: str, src: str, codes: str | None, as_json: bool, **values: Any) -> None:
    """Measure a tokenizer on images: PSNR, SSIM, use of the codes, and bits as stored.

    TOKENIZER is `default`, the folder of a saved tokenizer, or NAME:OPTIONS to be fitted on these very images. LPIPS
    and rFID are measured where you have the published weights; nothing is downloaded.

    \b
    Example:
      tokenshard tokenizer eval default kodak/
      tokenshard tokenizer eval patch:8x8,k=1024 kodak/ --codes codes.csv
      tokenshard tokenizer eval default imagenet-val/ --size 256 --rfid pt_inception-2015-12-05-6726825d.pth
    """
    from tokenshard.errors import SpecError
    from tokenshard.report.tokenizer_quality import tokenizer_quality

    features = _feature_measures(values)
    samples = _samples((src,), values)
    images = [sample.data for sample in samples]
    found, tables = saved_or_fitted(tokenizer, images, values)
    if found.spec.modality == "video":
        raise SpecError(
            f"{tokenizer}: is a tokenizer of clips, and these are images; `show` draws clips with their PSNR"
        )
    quality = tokenizer_quality(found, images, tables, [sample.key for sample in samples], values["top"], features)
    if codes is not None:
        _write_codes(codes, quality.uses)
    if "rfid" in quality.features and quality.images < 2048:
        click.echo(
            f"rFID of {quality.images:,} images is far too high: there are fewer than its 2,048 features. Compare it "
            "with that of equally many images only; published figures are of 50,000",
            err=True,
        )
    if as_json:
        print_json(quality.json())
        return
    stored = "+".join(quality.codecs) + (", with the tokenizer's tables" if any(quality.tables) else "")
    print_table(
        [
            ("images", f"{quality.images:,} ({quality.pixels:,} pixels, {quality.tokens:,} tokens)"),
            ("PSNR", f"{quality.psnr:.2f} dB"),
            ("SSIM", f"{quality.ssim:.4f}"),
            ("MS-SSIM", "no image of 176 pixels" if quality.ms_ssim is None else f"{quality.ms_ssim:.4f}"),
            *_feature_rows(quality.features, quality.images),
            ("codes used", f"{quality.usage:.1%} (perplexity {quality.perplexity:.0f})"),
            ("entropy", f"{quality.order0_entropy:.2f} bits a token without context"),
            ("given one", f"{quality.left_entropy:.2f} bits given the left, {quality.up_entropy:.2f} the upper token"),
            ("stored", f"{quality.bits_per_token:.2f} bits a token ({stored})"),
            ("bits per pixel", f"{quality.bits_per_pixel:.4f}"),
            ("encode", f"{quality.encode_images_per_second:.1f} images/s"),
            ("decode", f"{quality.decode_images_per_second:.1f} images/s"),
        ]
    )


@tokenizer.command()
@click.argument("tokenizer")
@click.argument("src", nargs=-1, required=True)
@click.argument("out")
@click.option("--images", "most", type=click.IntRange(1), help="Use so many images, spread evenly. [default: all]")
@click.option("--size", type=click.IntRange(1), help="Resize and cut each image to a square of this side first.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda.")
@encoder_option
@storage_option
@json_option
def tables(tokenizer: str, src: tuple[str, ...], out: str, as_json: bool, **values: Any) -> None:
    """Save a tokenizer with entropy tables fitted on images.

    TOKENIZER is the folder of a saved conv tokenizer. OUT gets the same tokenizer with a codec model beside it, which
    conversions take where it is cheaper than one of their own: with few images.

    \b
    Example:
      tokenshard tokenizer tables my-tokenizer/ photos/ my-tokenizer-with-tables/
    """
    from tokenshard.errors import SpecError
    from tokenshard.store import Store
    from tokenshard.tokenizers.conv import ConvVQ
    from tokenshard.tokenizers.folder import save_tokenizer
    from tokenshard.tokenizers.tables import fit_tables

    images = read_images(src, values)
    found, _ = saved_or_fitted(tokenizer, images, values)
    if not isinstance(found, ConvVQ):
        raise SpecError(f"{tokenizer}: only conv tokenizers are saved with tables; those of {found.spec.kind} are not")
    fitted = fit_tables(found, images)
    made = found.with_tables(fitted)
    save_tokenizer(made, Store(out, values["storage"]), "", fitted)
    if as_json:
        print_json({"tokenizer": out, "fingerprint": made.spec.fingerprint, "table_bytes": [*map(len, fitted)]})
        return
    sizes = ", ".join(f"{len(table):,}" for table in fitted)
    print_table([("tokenizer", out), ("fingerprint", made.spec.fingerprint), ("tables", f"{sizes} bytes")])


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


def read_images(paths: tuple[str, ...], values: dict[str, Any]) -> list[Any]:
    """The decoded images of some sources; says how many could not be read."""
    return [sample.data for sample in _samples(paths, values)]


def _samples(paths: tuple[str, ...], values: dict[str, Any]) -> list[Any]:
    from tokenshard.spec.images import ImageSourceSpec
    from tokenshard.training.images import read_samples

    size = values["size"]
    fields = {"labels": "none", "size": size, "fit": "center-crop" if size else "keep"}
    sources = [ImageSourceSpec.model_validate({"path": path, **fields}) for path in paths]
    return read_samples(sources, values["storage"], lambda text: click.echo(text, err=True), values["most"])


def saved_or_fitted(text: str, images: list[Any], values: dict[str, Any]) -> tuple[Any, tuple[bytes, ...]]:
    """A tokenizer, fitted on the images or saved, and the entropy tables that come with it."""
    from tokenshard.errors import SpecError
    from tokenshard.tokenizers.conv import ConvVQ
    from tokenshard.tokenizers.encoders import with_encoder
    from tokenshard.tokenizers.folder import load_tokenizer, read_tables
    from tokenshard.tokenizers.packaged import saved_tokenizer
    from tokenshard.tokenizers.registry import KINDS, parse_tokenizer, trainable_class

    if text.partition(":")[0] in KINDS:
        kind, options = parse_tokenizer(text)
        return trainable_class(kind).fit(images, 0, **options), ()
    saved = saved_tokenizer(text, values["storage"])
    found = with_encoder(load_tokenizer(saved), values["encoder"])
    tables, numerics = read_tables(saved, found.spec), values.get("numerics")
    if values["device"] == "cpu" and numerics is None:
        return found, tables
    if not isinstance(found, ConvVQ):
        raise SpecError(f"{text}: device and numerics are for conv tokenizers")
    return found.on(values["device"], numerics), tables


def _feature_measures(values: dict[str, Any]) -> Any:
    """What --lpips and --rfid ask for; None where neither is given."""
    if values["lpips"] is None and values["rfid"] is None:
        return None
    from tokenshard.report.features import FeatureMeasures
    from tokenshard.report.inception import load_inception
    from tokenshard.training.perceptual import load_lpips

    lpips = None if values["lpips"] is None else load_lpips(values["lpips"], values["storage"])
    inception = None if values["rfid"] is None else load_inception(values["rfid"], values["storage"])
    return FeatureMeasures(lpips, inception, values["device"])


def _feature_rows(features: dict[str, Any], images: int) -> list[tuple[str, str]]:
    """LPIPS and rFID, with the beginning of the SHA-256 of their weights."""
    rows = []
    if "lpips" in features:
        weights = f"{features['lpips_network']}, weights {features['lpips_weights'][:8]}"
        rows.append(("LPIPS", f"{features['lpips']:.4f} ({weights})"))
    if "rfid" in features:
        rows.append(("rFID", f"{features['rfid']:.3f} ({images:,} images, weights {features['rfid_weights'][:8]})"))
    return rows


def _write_codes(path: str, uses: Any) -> None:
    """The use of each code as CSV."""
    import csv

    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ("level", "code", "count", "samples"), lineterminator="\n")
        writer.writeheader()
        for level, use in enumerate(uses):
            writer.writerows(use.rows(level))
