"""`tokenshard tokenizer import`: checkpoints of other programs."""

from __future__ import annotations

from typing import Any

import click

from tokenshard.cli.options import json_option, print_json, print_table, storage_option


@click.command(name="import")
@click.argument("file")
@click.argument("out")
@click.option(
    "--layout",
    type=click.Choice(["auto", "taming", "llamagen", "diffusers", "maskgit"]),
    default="auto",
    show_default=True,
    help="Whose names the tensors have; auto tells it by them.",
)
@click.option("--config", metavar="FILE", help="YAML or JSON description. [default: the one beside FILE, if any]")
@click.option(
    "--search",
    type=click.Choice(["nearest", "cosine", "dot"]),
    help="How a code is chosen. [default: what the description or the layout says]",
)
@click.option(
    "--weights",
    type=click.Choice(["auto", "raw", "ema"]),
    default="auto",
    show_default=True,
    help="auto: moving averages (EMA) where the checkpoint has them.",
)
@click.option("--prefix", help="Take only tensors below this name, of a larger model. [default: found by itself]")
@storage_option
@json_option
def import_(file: str, out: str, as_json: bool, **values: Any) -> None:
    """Make a tokenizer of a VQGAN checkpoint of another program.

    FILE is a safetensors file or a PyTorch checkpoint: of taming-transformers, latent diffusion or IBQ (taming), of
    LlamaGen or Janus (llamagen), of diffusers' VQModel (diffusers), of MAGE or MaskGIT in PyTorch (maskgit). OUT is the
    folder or URL that gets the tokenizer. Tensors that are missing or left over are an error. No pickled code is run.

    \b
    Example:
      tokenshard tokenizer import vq_ds16_c2i.pt my-tokenizer/
      tokenshard tokenizer import last.ckpt my-tokenizer/ --config model.yaml
      tokenshard convert images photos/ tokens/ --tokenizer my-tokenizer/
    """
    from tokenshard.store import Store
    from tokenshard.tokenizers.checkpoints.load import import_checkpoint
    from tokenshard.tokenizers.folder import save_tokenizer

    storage = values["storage"]
    made = import_checkpoint(
        file,
        layout=values["layout"],
        document=values["config"],
        search=values["search"],
        weights=values["weights"],
        prefix=values["prefix"],
        storage=storage,
    )
    save_tokenizer(made.tokenizer, Store(out, storage), "")
    spec, size = made.tokenizer.spec, sum(tensor.nbytes for tensor in made.tokenizer.tensors().values())
    facts = {
        "tokenizer": out,
        "fingerprint": spec.fingerprint,
        "layout": made.layout,
        "search": made.search,
        "weights": "ema" if made.averaged else "raw",
        "config": made.document,
        "codes": list(spec.levels),
        "downsample": list(spec.downsample),
        "bytes": size,
    }
    if as_json:
        print_json(facts)
        return
    rows = [
        ("tokenizer", out),
        ("fingerprint", spec.fingerprint),
        ("layout", f"{made.layout}, {facts['weights']} weights"),
    ]
    rows += [
        ("described by", made.document or "its tensors"),
        ("codes", f"{spec.levels[0]:,}, chosen by {made.search}"),
    ]
    print_table(
        [*rows, ("token", f"{spec.downsample[0]} x {spec.downsample[1]} pixels"), ("weights", f"{size:,} bytes")]
    )
