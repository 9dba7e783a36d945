"""State of a training run as tensors and JSON: a safetensors file and a document beside it. No pickle."""

from __future__ import annotations

import json
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from tokenshard.errors import FormatError
from tokenshard.store import Store

FORMAT = "tokenshard-training-state"
FORMAT_VERSION = 2
MAX_BYTES = 1 << 34


def save_state(store: Store, prefix: str, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Replace the state below ``prefix``. The document is written last and names the tensors' file, so that what is
    read back always belongs together."""
    step = int(facts["step"])
    name = f"{prefix}/state-{step:08d}.safetensors"
    content = safetensors.torch.save({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()})
    store.put(name, content)
    document = {"format": FORMAT, "format_version": FORMAT_VERSION, "tensors": name, **facts}
    store.put(f"{prefix}/state.json", json.dumps(document, indent=1, sort_keys=True).encode())
    for entry in list(store.list(prefix)):
        if entry.name.startswith(f"{prefix}/state-") and entry.name != name:
            store.delete(entry.name)


def load_state(store: Store, prefix: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and facts of the newest state, None where there is none. Raises :class:`FormatError` when damaged."""
    if not store.exists(f"{prefix}/state.json"):
        return None
    where = store.url(f"{prefix}/state.json")
    try:
        facts = json.loads(store.read(f"{prefix}/state.json"))
        if facts["format"] != FORMAT or facts["format_version"] != FORMAT_VERSION:
            raise FormatError(f"{where}: not a training state this version reads; remove it to train anew")
        if store.size(facts["tensors"]) > MAX_BYTES:
            raise FormatError(f"{where}: {facts['tensors']} is larger than the {MAX_BYTES} bytes allowed")
        return safetensors.torch.load(store.read(facts["tensors"])), facts
    except (ValueError, KeyError, TypeError, FileNotFoundError, safetensors.SafetensorError) as error:
        raise FormatError(f"{where}: damaged ({error}); remove it to train anew") from error


def optimizer_tensors(optimizer: torch.optim.Optimizer, module: nn.Module, head: str) -> dict[str, Tensor]:
    """State of the optimizer of a module, by head and name of the parameter."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return {
        f"{head}.{names[id(parameter)]}.{key}": torch.as_tensor(value)
        for parameter, values in optimizer.state.items()
        for key, value in values.items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, module: nn.Module, tensors: dict[str, Tensor], head: str) -> None:
    """The reverse of :func:`optimizer_tensors`. The step counter stays where the optimizer keeps it."""
    for name, parameter in module.named_parameters():
        inside = f"{head}.{name}."
        mine = {key.removeprefix(inside): value for key, value in tensors.items() if key.startswith(inside)}
        if mine:
            device = parameter.device
            optimizer.state[parameter] = {
                key: value.clone() if key == "step" and not optimizer.defaults.get("fused") else value.to(device)
                for key, value in mine.items()
            }
