"""Tensors of a checkpoint file: safetensors, or a PyTorch file of which only tensors and plain values are read.

What a pickle asks for beside those is refused, but for the callback states and arguments that trainers store: they
become empty objects of a class of ours, and no code of anyone else is imported or run.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import safetensors
import safetensors.torch
import torch
import yaml
from torch import Tensor

from tokenshard.errors import FormatError, SpecError
from tokenshard.store import Store

MAX_BYTES = 1 << 34
MAX_NUMBERS = 1 << 32
MAX_DOCUMENT_BYTES = 1 << 20
HARMLESS = ("pytorch_lightning.", "lightning.", "argparse.Namespace")
"""Beginnings of names of classes whose objects are left out."""
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


class _LeftOut:
    """Stands for an object that is not needed."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...


def read_checkpoint(store: Store, name: str, weights: Weights = "auto", prefix: str | None = None) -> Checkpoint:
    """The tensors of the tokenizer in a file; where it is part of a larger model, those below ``prefix``.

    Raises :class:`FormatError` when the file is something else, and :class:`SpecError` when it is not there, or holds
    several networks and no prefix is given.
    """
    where = store.url(name)
    if store.is_dir(name):
        raise SpecError(f"{where}: is a folder; give the file in it that holds the weights")
    try:
        if store.size(name) > MAX_BYTES:
            raise FormatError(f"{where}: {store.size(name)} bytes, more than the {MAX_BYTES} allowed")
        data = store.read(name)
    except FileNotFoundError as error:
        raise SpecError(f"{where}: no such file") from error
    try:
        state, averages = _chosen(_content(data), weights)
        tensors = _part(state, prefix)
        tensors, averaged, has_averages = _averages_put_in(tensors, weights)
    except FormatError as error:
        raise FormatError(f"{where}: {error}") from error
    except SpecError as error:
        raise SpecError(f"{where}: {error}") from error
    return Checkpoint(tensors, averaged or averages, has_averages or averages, hashlib.sha256(data).hexdigest())


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


def _content(data: bytes) -> Any:
    """What is in the file: a dict of tensors, or of dicts of them."""
    if not zipfile.is_zipfile(io.BytesIO(data)):
        try:
            return safetensors.torch.load(data)
        except (safetensors.SafetensorError, KeyError, ValueError) as error:
            raise FormatError(
                f"neither a safetensors file ({error}) nor a PyTorch checkpoint (older than PyTorch 1.6? load it there "
                "and save its state dict as safetensors)"
            ) from error
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > MAX_BYTES:
            raise FormatError(f"unpacks to more than the {MAX_BYTES} bytes allowed")
    try:
        asked = torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(data))
        code = sorted(name for name in asked if not name.startswith(HARMLESS))
        if code:
            raise FormatError(
                f"is a pickle that runs code ({', '.join(code[:3])}), which is never done; where you trust the file, "
                "load it in Python and save its state dict as safetensors"
            )
        stand_ins: list[Any] = [(OrderedDict if name.endswith("Dict") else _LeftOut, name) for name in asked]
        with torch.serialization.safe_globals(stand_ins):
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise FormatError(f"not a PyTorch checkpoint of tensors ({str(error).splitlines()[0][:200]})") from error


def _chosen(content: Any, weights: Weights) -> tuple[dict[str, Tensor], bool]:
    """The state dict, wherever trainers put it, and whether it is the averaged one beside another."""
    if not isinstance(content, Mapping):
        raise FormatError(f"holds one {type(content).__name__}, not tensors by name")
    for name in ("state_dict", "model") if weights == "raw" else ("ema", "state_dict", "model"):
        inner = content.get(name)
        if isinstance(inner, Mapping) and any(isinstance(value, Tensor) for value in inner.values()):
            return _tensors(inner), name == "ema"
    found = _tensors(content)
    if not found:
        raise FormatError(f"holds no tensors (but {', '.join(sorted(map(str, content))[:5])})")
    return found, False


def _tensors(state: Mapping[Any, Any]) -> dict[str, Tensor]:
    found = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    if sum(value.numel() for value in found.values()) > MAX_NUMBERS:
        raise FormatError(f"holds more than {MAX_NUMBERS} numbers")
    return found


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
