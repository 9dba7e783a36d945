"""The tensors of the tokenizer in a checkpoint file, wherever its trainer put them, and the document beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import yaml
from torch import Tensor

from tokenshard.errors import FormatError, SpecError
from tokenshard.store import Store
from tokenshard.tokenizers.checkpoints.tensors import read_content, tensors_of

MAX_DOCUMENT_BYTES = 1 << 20
Weights = Literal["auto", "raw", "ema"]
"""Which of the weights of a checkpoint: `auto` (averaged ones where there are any), `raw` or `ema`."""


class Checkpoint(NamedTuple):
    """Tensors of a file, by name."""

    tensors: dict[str, Tensor]
    averaged: bool
    """whether they are moving averages over the training"""
    has_averages: bool
    """whether the file holds moving averages"""
    sha256: str


def read_checkpoint(store: Store, name: str, weights: Weights = "auto", prefix: str | None = None) -> Checkpoint:
    """The tensors of the tokenizer in a file; where it is part of a larger model, those below ``prefix``.

    Raises :class:`FormatError` when the file is something else, and :class:`SpecError` when it is not there, or holds
    several networks and no prefix is given.
    """
    where = store.url(name)
    if store.is_dir(name):
        raise SpecError(f"{where}: is a folder; give the file in it that holds the weights")
    content, sha256 = read_content(store, name)
    try:
        state, averages = _chosen(content, weights)
        tensors = _part(state, prefix)
        tensors, averaged, has_averages = _averages_put_in(tensors, weights)
        if weights == "ema" and not (averaged or averages):
            raise SpecError("holds no moving averages of its weights; leave --weights out")
    except FormatError as error:
        raise FormatError(f"{where}: {error}") from error
    except SpecError as error:
        raise SpecError(f"{where}: {error}") from error
    return Checkpoint(tensors, averaged or averages, has_averages or averages, sha256)


def read_document(store: Store, name: str) -> dict[str, Any]:
    """A YAML or JSON file with an object. Raises :class:`FormatError` when it is something else."""
    where = store.url(name)
    try:
        if store.size(name) > MAX_DOCUMENT_BYTES:
            raise FormatError(f"{where}: larger than the {MAX_DOCUMENT_BYTES} bytes allowed")
        text = store.read(name).decode()
        found = json.loads(text) if name.endswith(".json") else yaml.safe_load(text)
    except FileNotFoundError as error:
        raise SpecError(f"{where}: no such file") from error
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise FormatError(f"{where}: cannot be read as a document ({str(error).splitlines()[0]})") from error
    if not isinstance(found, dict):
        raise FormatError(f"{where}: not an object")
    return found


def _chosen(content: Any, weights: Weights) -> tuple[dict[str, Tensor], bool]:
    """The state dict, wherever trainers put it, and whether it is the averaged one beside another."""
    names = ("state_dict", "model") if weights == "raw" else ("ema", "state_dict", "model")
    for name in names if isinstance(content, Mapping) else ():
        inner = content.get(name)
        if isinstance(inner, Mapping) and any(isinstance(value, Tensor) for value in inner.values()):
            return tensors_of(inner), name == "ema"
    return tensors_of(content), False


_FIRST = "encoder.conv_in.weight"
"""Every layout has a tensor of this name."""


def _part(tensors: dict[str, Tensor], prefix: str | None) -> dict[str, Tensor]:
    """The tensors of the tokenizer: those below the prefix before its first convolution."""
    if prefix is None:
        prefixes = sorted(name.removesuffix(_FIRST) for name in tensors if name.endswith(_FIRST))
        if len(prefixes) > 1 and "" not in prefixes:
            raise SpecError(f"holds several networks; choose one with --prefix: {', '.join(prefixes)}")
        prefix = "" if not prefixes or "" in prefixes else prefixes[0]
    found = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    if not found:
        raise SpecError(f"no tensor has a name that begins with {prefix!r}")
    return found


_AVERAGES = "model_ema."


def _averages_put_in(tensors: dict[str, Tensor], weights: Weights) -> tuple[dict[str, Tensor], bool, bool]:
    """Averages of Lightning modules (names without dots below `model_ema.`) in the places of what they average."""
    raw = {name: value for name, value in tensors.items() if not name.startswith(_AVERAGES)}
    averages = {
        name: tensors[_AVERAGES + name.replace(".", "")] for name in raw if _AVERAGES + name.replace(".", "") in tensors
    }
    if weights == "raw" or not averages:
        return raw, False, bool(averages)
    return raw | averages, True, True
