"""Encoders that the user names: a Python callable, or a folder of a transformers model. Importing one runs its code.

Nothing here is called for a name that a stored file holds; only for one given as an option or argument.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tokenshard.errors import SpecError
from tokenshard.tokenizers.base import Tokenizer
from tokenshard.tokenizers.clip_codebook import ClipCodebookTokenizer
from tokenshard.tokenizers.conv import ConvVQ
from tokenshard.tokenizers.frozen import FrozenEncoder, lend_encoder


def load_encoder(name: str) -> nn.Module:
    """``module:function``, a function without arguments that returns a ``torch.nn.Module`` (or such a module itself),
    or the folder of a vision transformer that transformers saved.

    The module takes images [B, 3, height, width] in [0, 1] and answers with features [B, C, rows, columns]. Modules are
    looked for where Python does, and in the working folder. Raises :class:`SpecError` where there is none.
    """
    if (Path(name) / "config.json").is_file():
        return _transformers_encoder(Path(name))
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name):
        raise SpecError(
            f"encoder {name!r}: expected MODULE:FUNCTION, or a folder that transformers' save_pretrained wrote"
        )
    module_name, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found: Any = getattr(importlib.import_module(module_name), attribute)
    except ImportError as error:
        raise SpecError(f"encoder {name!r} cannot be imported: {error}; install it or run where it lies") from error
    except AttributeError as error:
        raise SpecError(f"encoder {name!r}: {error}") from error
    if callable(found) and not isinstance(found, nn.Module):
        found = found()
    if not isinstance(found, nn.Module):
        raise SpecError(f"encoder {name!r}: expected a torch.nn.Module, not a {type(found).__name__}")
    return found


def with_encoder(tokenizer: Tokenizer, name: str | None) -> Tokenizer:
    """The tokenizer, ready to encode: with the encoder of that name where it needs one.

    Raises :class:`SpecError` when it needs one and none is named, or the other way round, and
    :class:`~tokenshard.errors.FormatError` when the encoder has other weights than the one it was trained with.
    """
    if isinstance(tokenizer, ClipCodebookTokenizer):
        return tokenizer.with_encoder(name)
    encoder = tokenizer.network.encoder if isinstance(tokenizer, ConvVQ) else None
    if not isinstance(encoder, FrozenEncoder):
        if name is not None:
            raise SpecError(f"encoder {name!r}: the tokenizer has an encoder of its own; leave the option out")
        return tokenizer
    if name is None:
        raise SpecError(
            f"the tokenizer needs the encoder it was trained with, {encoder.config.encoder!r}, which is not part of "
            "it; give it with --encoder (in a job spec: encoder)"
        )
    lend_encoder(encoder, load_encoder(name), name)
    return tokenizer


class TransformersEncoder(nn.Module):
    """The patch features of a vision transformer of the transformers library, images normalized as it was trained."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, patch: int, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.model, self.patch = model, patch
        interpolates = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
        self._options = {"interpolate_pos_encoding": True} if interpolates else {}
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        rows, columns = (side // self.patch for side in images.shape[2:])
        pixels = (images - self.mean) / self.std
        tokens: Tensor = self.model(pixel_values=pixels, **self._options).last_hidden_state
        patches = tokens[:, tokens.shape[1] - rows * columns :]  # class and register tokens come first
        return patches.transpose(1, 2).reshape(len(images), -1, rows, columns)


def _transformers_encoder(folder: Path) -> TransformersEncoder:
    try:
        from transformers import AutoModel
    except ImportError as error:
        raise SpecError(f"{folder}: reading it needs transformers: pip install 'tokenshard[documents]'") from error
    try:
        model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise SpecError(f"{folder}: transformers cannot load it: {str(error).splitlines()[0]}") from error
    config = getattr(model.config, "vision_config", model.config)
    model = getattr(model, "vision_model", model)
    patch = getattr(config, "patch_size", None)
    if not isinstance(patch, int):
        raise SpecError(f"{folder}: {type(model).__name__} has no patches; only vision transformers can be used")
    processor = folder / "preprocessor_config.json"
    settings = json.loads(processor.read_text()) if processor.is_file() else {}
    mean, std = settings.get("image_mean", [0.5] * 3), settings.get("image_std", [0.5] * 3)
    return TransformersEncoder(model, patch, mean, std)
