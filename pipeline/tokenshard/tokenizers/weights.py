"""Weights of tokenizers as bytes: the content of ``model.safetensors``. No pickle is ever written or read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import DTypeLike, NDArray

from tokenshard.errors import FormatError


def weights_to_bytes(tensors: dict[str, NDArray[Any]]) -> bytes:
    """A safetensors file. Equal tensors give equal bytes."""
    # safetensors writes the memory of an array as it lies there, whatever its strides
    return safetensors.numpy.save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()})


def weights_from_bytes(data: bytes) -> dict[str, NDArray[Any]]:
    """The arrays of a safetensors file. Raises :class:`FormatError` when it is anything else."""
    try:
        return safetensors.numpy.load(data)
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise FormatError(f"not a safetensors file: {error}") from error


def weights_sha256(data: bytes) -> str:
    """Hex SHA-256 of a weights file, as ``tokenizer.json`` records it."""
    return hashlib.sha256(data).hexdigest()


def check_tensors(
    tensors: Mapping[str, NDArray[Any]], expected: Mapping[str, tuple[DTypeLike, tuple[int, ...]]]
) -> None:
    """Raise :class:`FormatError` unless the tensors are exactly those expected, by name, dtype and shape."""
    for what, names in {
        "the weights lack": expected.keys() - tensors.keys(),
        "the weights hold what does not belong there:": tensors.keys() - expected.keys(),
    }.items():
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            raise FormatError(f"{what} {', '.join(sorted(names)[:5])}{more}")
    for name, (dtype, shape) in expected.items():
        found = tensors[name]
        if found.dtype != np.dtype(dtype) or found.shape != shape:
            raise FormatError(
                f"tensor {name} is {found.dtype} {list(found.shape)}; expected {np.dtype(dtype)} {list(shape)}"
            )
