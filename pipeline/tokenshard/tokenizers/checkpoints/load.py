"""A checkpoint of another program as a tokenizer of this one: names mapped, shapes checked, nothing left over."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tokenshard.errors import FormatError, SpecError
from tokenshard.quantizers.base import Quantizer
from tokenshard.quantizers.logits import Logits
from tokenshard.quantizers.lookup import Lookup
from tokenshard.store import Store
from tokenshard.tokenizers.checkpoints.file import Checkpoint, Weights, read_checkpoint, read_document
from tokenshard.tokenizers.checkpoints.infer import inferred_network
from tokenshard.tokenizers.checkpoints.layout import Layout, Search, Settings
from tokenshard.tokenizers.checkpoints.registry import LAYOUTS, Entry, layout_of
from tokenshard.tokenizers.conv import ConvVQ
from tokenshard.tokenizers.conv_network import AutoEncoder
from tokenshard.tokenizers.trained import MAX_CODES, ConvConfig

MANY_BLOCKS = 4
"""Residual blocks a level of published IBQ networks; those of VQGAN have two."""


class Imported(NamedTuple):
    """What an import made, and what it took it from."""

    tokenizer: ConvVQ
    layout: str
    search: str
    averaged: bool
    document: str | None


def import_checkpoint(
    path: str,
    *,
    layout: str = "auto",
    document: str | None = None,
    search: Search | None = None,
    weights: Weights = "auto",
    prefix: str | None = None,
    storage: Mapping[str, Any] | None = None,
) -> Imported:
    """The tokenizer in a checkpoint file. Missing and left-over tensors are a :class:`FormatError` that lists them.

    document: the file that describes the network, where it does not lie beside the checkpoint; search: how a code is
    chosen, where neither the layout nor the document says it; weights and prefix: see :func:`read_checkpoint`.
    """
    store, name = _file(path, storage)
    checkpoint = read_checkpoint(store, name, weights, prefix)
    try:
        entry = layout_of(checkpoint.tensors) if layout == "auto" else LAYOUTS[layout]
    except FormatError as error:
        raise FormatError(f"{store.url(name)}: {error}") from error
    described = _beside(store, name, entry) if document is None else _file(document, storage)
    settings = _settings(entry, described)
    search = search or settings.search
    try:
        tensors = _mapped(entry.layout, checkpoint.tensors)
        network = inferred_network(entry.layout, tensors, settings)
        if search is None and entry.layout.name == "taming" and "logits.weight" not in tensors:
            _sure_of_search(checkpoint, network.encoder.blocks[0])
        quantizer = _quantizer(tensors, search or entry.layout.search)
        with torch.device("meta"):
            shapes = AutoEncoder(network).state_dict()
        _check(entry.layout, checkpoint.tensors, tensors, shapes)
    except FormatError as error:
        raise FormatError(f"{store.url(name)}: {error}") from error
    modules = AutoEncoder(network)
    modules.load_state_dict({name: tensors[name].float() for name in shapes})
    chosen = "logits" if isinstance(quantizer, Logits) else search or entry.layout.search
    half = chosen == "nearest" and all(value.dtype == torch.float16 for value in tensors.values())
    record = {"layout": entry.layout.name, "file": PurePosixPath(name).name, "sha256": checkpoint.sha256}
    config = ConvConfig(
        network=network,
        quantizer=quantizer.name,
        quantizer_options=quantizer.options(),
        stored="float16" if half else "float32",
        recipe={"imported": {**record, "weights": "ema" if checkpoint.averaged else "raw"}},
    )
    return Imported(
        ConvVQ(config, modules, quantizer),
        entry.layout.name,
        chosen,
        checkpoint.averaged,
        None if described is None else described[0].url(described[1]),
    )


def _file(path: str, storage: Mapping[str, Any] | None) -> tuple[Store, str]:
    folder, _, name = path.rpartition("/")
    return Store(folder or ("/" if path.startswith("/") else "."), storage), name


def _beside(store: Store, name: str, entry: Entry) -> tuple[Store, str] | None:
    """The document of a layout in the folder of a checkpoint, where there is one."""
    path = PurePosixPath(name)
    for pattern in entry.documents:
        beside = str(path.with_name(pattern.replace("*", path.stem)))
        if store.exists(beside):
            return store, beside
    return None


def _settings(entry: Entry, described: tuple[Store, str] | None) -> Settings:
    if described is None:
        return Settings()
    where = described[0].url(described[1])
    if entry.settings is None:
        raise SpecError(f"{where}: checkpoints of the layout {entry.layout.name} need no document")
    document = read_document(*described)
    try:
        return entry.settings(document)
    except FormatError as error:
        raise FormatError(f"{where}: {error}") from error
    except (TypeError, AttributeError, KeyError) as error:
        raise FormatError(f"{where}: not the description of a {entry.layout.name} network ({error})") from error


def _mapped(layout: Layout, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under their names here; linear layers become convolutions of 1x1."""
    names, unknown = layout.renamed(tensors)
    if unknown:
        raise FormatError(f"holds what does not belong to a {layout.name} network: {_listed(unknown)}")
    if "codebook" not in names:
        raise FormatError("lacks the codebook (quantize.embedding.weight)")
    if (lone := {"logits.weight", "logits.bias"} - names.keys()) and len(lone) == 1:
        raise FormatError(f"lacks quantize.proj.{lone.pop().partition('.')[2]}")
    mapped = {here: tensors[there] for here, there in names.items()}
    for here, tensor in mapped.items():
        if not tensor.is_floating_point():
            raise FormatError(f"{names[here]} is {tensor.dtype}, not floating-point")
        if not torch.isfinite(tensor).all():
            raise FormatError(f"{names[here]} holds values that are not finite")
        if tensor.ndim == 2 and ".attention." in here:
            mapped[here] = tensor[:, :, None, None]
    return mapped


def _quantizer(tensors: Mapping[str, Tensor], search: Search) -> Quantizer:
    codebook = tensors["codebook"].float()
    if codebook.ndim != 2 or not 1 <= len(codebook) <= MAX_CODES:
        raise FormatError(f"the codebook {list(codebook.shape)} is not [at most {MAX_CODES} codes, channels]")
    if "logits.weight" in tensors:
        weight, bias = tensors["logits.weight"].float().flatten(1), tensors["logits.bias"].float()
        if weight.shape != codebook.shape or bias.shape != codebook.shape[:1]:
            raise FormatError(
                f"logits {list(weight.shape)} with biases {list(bias.shape)} do not fit a codebook "
                f"{list(codebook.shape)}"
            )
        return Logits.of(weight, bias, codebook)
    if search == "cosine":
        return Lookup.of([torch.nn.functional.normalize(codebook, dim=1)], normalized=True)
    if search == "dot":  # |z - e|² - |e|² is |z|² less twice the dot product
        return Lookup.of([codebook], [-codebook.double().square().sum(1).float()])
    return Lookup.of([codebook])


def _sure_of_search(checkpoint: Checkpoint, blocks: int) -> None:
    if checkpoint.has_averages or blocks >= MANY_BLOCKS:
        raise FormatError(
            "may be a VQGAN or an IBQ network, which choose codes differently; give the YAML file with --config, or "
            "--search nearest (VQGAN) or dot (IBQ)"
        )


def _check(
    layout: Layout, there: Mapping[str, Tensor], tensors: Mapping[str, Tensor], shapes: Mapping[str, Any]
) -> None:
    """Raise FormatError unless the tensors are exactly those of the network."""
    names, _ = layout.renamed(there)
    own = {name for name in tensors if name.startswith(("encoder.", "decoder."))}
    if missing := shapes.keys() - own:
        raise FormatError(f"lacks tensors of the network: {_listed(missing)}")
    if surplus := own - shapes.keys():
        raise FormatError(
            f"holds what does not belong to a {layout.name} network: {_listed(names[name] for name in surplus)}"
        )
    for name in sorted(own):
        if tensors[name].shape != shapes[name].shape:
            raise FormatError(
                f"{names[name]} is {list(tensors[name].shape)}; the other tensors go with {list(shapes[name].shape)}"
            )


def _listed(names: Any) -> str:
    names = sorted(names)
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
