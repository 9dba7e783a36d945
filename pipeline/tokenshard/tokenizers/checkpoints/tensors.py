"""Files of tensors by name: safetensors, or a PyTorch file of which only tensors and plain values are read.

What a pickle asks for beside those is refused, but for the callback states and arguments that trainers store: they
become empty objects of a class of ours, and no code of anyone else is imported or run.
"""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from tokenshard.errors import FormatError, SpecError
from tokenshard.store import Store

MAX_BYTES = 1 << 34
MAX_NUMBERS = 1 << 32
HARMLESS = ("pytorch_lightning.", "lightning.", "argparse.Namespace")
"""Beginnings of names of classes whose objects are left out."""
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
"""Of such files, where a whole folder is read."""

_LEGACY = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"
"""Beginning of the checkpoints of PyTorch before 1.6: their magic number as a pickle."""


class Weights(NamedTuple):
    """The tensors of a network, by name."""

    tensors: dict[str, Tensor]
    sha256: str
    """of the file; of several, that of their own SHA-256 in hexadecimal, one after the other"""


class _LeftOut:
    """Stands for an object that is not needed."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...


def read_content(store: Store, name: str, most: int = MAX_BYTES) -> tuple[Any, str]:
    """What is in a file of at most ``most`` bytes, a dict of tensors or of dicts of them, and the SHA-256 of the file.

    Raises :class:`FormatError` when the file is something else, and :class:`SpecError` when it is not there.
    """
    where = store.url(name)
    try:
        if store.size(name) > most:
            raise FormatError(f"{where}: {store.size(name)} bytes, more than the {most} allowed")
        data = store.read(name)
    except FileNotFoundError as error:
        raise SpecError(f"{where}: no such file") from error
    try:
        return _content(data), hashlib.sha256(data).hexdigest()
    except FormatError as error:
        raise FormatError(f"{where}: {error}") from error


def read_weights(path: str, storage: Mapping[str, Any] | None = None, most: int = MAX_BYTES) -> Weights:
    """The tensors of a file of at most ``most`` bytes, or of all such files in a folder together.

    Raises :class:`FormatError` when one is something else or two hold the same name, and :class:`SpecError` when
    nothing is there.
    """
    folder, _, file = path.rstrip("/").rpartition("/")
    store, names = Store(folder or ("/" if path.startswith("/") else "."), storage), [file]
    if store.is_dir(file):
        store = Store(path, storage)
        names = [entry.name for entry in store.list() if "/" not in entry.name and entry.name.endswith(SUFFIXES)]
        if not names:
            raise SpecError(f"{path}: holds no file of weights ({', '.join(SUFFIXES)})")
    tensors: dict[str, Tensor] = {}
    hashes = []
    for name in names:
        content, sha256 = read_content(store, name, most)
        try:
            found = tensors_of(content)
        except FormatError as error:
            raise FormatError(f"{store.url(name)}: {error}") from error
        if twice := sorted(tensors.keys() & found.keys()):
            raise FormatError(f"{store.url(name)}: {twice[0]} is in another file of the folder too; keep one of them")
        tensors |= found
        hashes.append(sha256)
    return Weights(tensors, hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest())


def tensors_of(content: Any) -> dict[str, Tensor]:
    """The tensors of a dict, by name. Raises :class:`FormatError` where there are none, or too large ones."""
    if not isinstance(content, Mapping):
        raise FormatError(f"holds one {type(content).__name__}, not tensors by name")
    found = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not found:
        raise FormatError(f"holds no tensors (but {', '.join(sorted(map(str, content))[:5])})")
    if sum(value.numel() for value in found.values()) > MAX_NUMBERS:
        raise FormatError(f"holds more than {MAX_NUMBERS} numbers")
    return found


def _content(data: bytes) -> Any:
    if zipfile.is_zipfile(io.BytesIO(data)):
        return _archived(data)
    if data.startswith(_LEGACY):
        return _only_tensors(data, ())
    try:
        return safetensors.torch.load(data)
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise FormatError(f"neither a safetensors file ({error}) nor a PyTorch checkpoint") from error


def _archived(data: bytes) -> Any:
    """What a checkpoint of PyTorch 1.6 or later holds."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > MAX_BYTES:
            raise FormatError(f"unpacks to more than the {MAX_BYTES} bytes allowed")
    try:
        asked = torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(data))
    except Exception as error:
        raise _no_checkpoint(error) from error
    if code := sorted(name for name in asked if not name.startswith(HARMLESS)):
        raise _runs_code(code)
    return _only_tensors(data, asked)


def _only_tensors(data: bytes, left_out: Sequence[str]) -> Any:
    """What a PyTorch checkpoint holds; nothing but tensors and plain values, and empty objects of some names."""
    stand_ins: list[Any] = [(OrderedDict if name.endswith("Dict") else _LeftOut, name) for name in left_out]
    try:
        with torch.serialization.safe_globals(stand_ins):
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make the unpickler fail in any way
        if code := re.findall(r"\bGLOBAL ([\w.]+)", str(error)):
            raise _runs_code(code) from error
        raise _no_checkpoint(error) from error


def _runs_code(names: Sequence[str]) -> FormatError:
    return FormatError(
        f"is a pickle that runs code ({', '.join(names[:3])}), which is never done; where you trust the file, load it "
        "in Python and save its state dict as safetensors"
    )


def _no_checkpoint(error: Exception) -> FormatError:
    reason = next(iter(str(error).splitlines()), "") or type(error).__name__
    return FormatError(f"not a PyTorch checkpoint of tensors ({reason[:200]})")
