"""`tokenshard eval`, `probe` and `predict`: what trained models are worth, and what they say."""

from __future__ import annotations

from typing import Any

import click

from tokenshard.cli.options import json_option, print_json, print_table, storage_option

_device = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
_batch = click.option("--batch", type=click.IntRange(1), default=256, show_default=True, help="Samples at a time.")


def _opened(model: str, device: str, storage: dict[str, Any], kind: str | None = None) -> Any:
    from tokenshard.store import Store
    from tokenshard.training.folder import load_model
    from tokenshard.training.setting import device_of

    found = load_model(Store(model, storage), kind)
    found.module.to(device_of(device))
    return found


def _printed(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    print_table(
        [
            (name.replace("_", " "), f"{v:.4f}" if isinstance(v, float) else f"{v:,}" if isinstance(v, int) else str(v))
            for name, v in found.items()
        ]
    )


@click.command(name="eval")
@click.argument("model")
@click.option("--data", required=True, help="Token dataset: folder or URL.")
@click.option("--where", help="Only samples for which this holds.")
@_batch
@_device
@storage_option
@json_option
def evaluate(
    model: str, data: str, where: str | None, batch: int, device: str, storage: dict[str, Any], as_json: bool
) -> None:
    """Evaluate a trained model on a token dataset: accuracy of a classifier, bits a token of a masked model.

    \b
    Example:
      tokenshard eval run/ --data val-tokens/
    """
    from tokenshard.training.evaluate import evaluate as measured
    from tokenshard.training.setting import open_tokens

    _printed(measured(_opened(model, device, storage), open_tokens(data, storage), batch, where), as_json)


@click.command()
@click.argument("model")
@click.option("--data", required=True, help="Token dataset whose labels the probe learns.")
@click.option("--val", required=True, help="Token dataset that it is measured on.")
@click.option("--kind", type=click.Choice(["linear", "knn", "attentive"]), default="linear", show_default=True)
@click.option("--label", default="label", show_default=True, help="Column with the classes.")
@click.option("--layer", default="all", show_default=True, help="Blocks before the features; all: find the best.")
@click.option(
    "--neighbours", type=click.IntRange(1), default=20, show_default=True, help="Of knn, and to find a layer."
)
@click.option("--epochs", type=click.IntRange(1), default=30, show_default=True, help="Of the attentive probe.")
@click.option("--where", help="Learn only from samples for which this holds.")
@click.option("--val-where", help="Measure only on samples for which this holds.")
@_batch
@_device
@storage_option
@json_option
def probe(model: str, data: str, val: str, as_json: bool, **values: Any) -> None:
    """Measure what the frozen encoder of a model knows, from shards alone.

    `linear`: logistic regression on its features; `knn`: their nearest neighbours; `attentive`: a learned query looks
    at its positions. The layer is chosen on a fifth of --data, never on --val.

    \b
    Example:
      tokenshard probe pretrained/ --data tokens/ --val val-tokens/ --kind linear
    """
    from tokenshard.training.evaluate import probe as measured
    from tokenshard.training.setting import open_tokens

    layer, storage = values["layer"], values["storage"]
    if layer != "all" and not layer.isdecimal():
        raise click.BadParameter(f"{layer!r}: expected a number of blocks, or all", param_hint="--layer")
    found = measured(
        _opened(model, values["device"], storage),
        open_tokens(data, storage),
        open_tokens(val, storage),
        values["kind"],
        label=values["label"],
        layer=None if layer == "all" else int(layer),
        neighbours=values["neighbours"],
        batch=values["batch"],
        epochs=values["epochs"],
        where=values["where"],
        test_where=values["val_where"],
    )
    _printed(found, as_json)


@click.command()
@click.argument("model")
@click.argument("src")
@click.option("--most", type=click.IntRange(1), default=1, show_default=True, help="Classes an image, or a clip.")
@_device
@storage_option
@json_option
def predict(model: str, src: str, most: int, device: str, storage: dict[str, Any], as_json: bool) -> None:
    """Tokenize and classify raw images or videos, with the tokenizer and the preprocessing the model learned with.

    SRC is whatever `convert images` takes, or `convert video` where the model learned from clips. One line an image, or
    a clip.

    \b
    Example:
      tokenshard predict run/ photos/
    """
    import json

    from tokenshard.errors import InputError
    from tokenshard.sources.base import Sample
    from tokenshard.training.evaluate import predict as said
    from tokenshard.training.evaluate import raw_samples

    found = _opened(model, device, storage, "classifier")
    tokenizer = found.tokenizer()
    for item in raw_samples(found, src, storage):
        if not isinstance(item, Sample):
            click.echo(f"{item.key}: left out: {item.message}", err=True)
            continue
        try:
            best = said(found, tokenizer, item.data, most)
        except InputError as error:
            click.echo(f"{item.key}: left out: {error}", err=True)
            continue
        if as_json:
            click.echo(json.dumps({"key": item.key, "classes": best}, ensure_ascii=False))
        else:
            click.echo(f"{item.key}  " + "  ".join(f"{one['name']} {one['probability']:.1%}" for one in best))
