"""A fitted compressor as one safetensors file: its arrays, and its configuration as JSON in the metadata.

Equal compressors give equal bytes, so the SHA-256 of the file names the codebook.
"""

from __future__ import annotations

import json

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from tokenshard.errors import FormatError
from tokenshard.retrieval.compression.base import Compressor
from tokenshard.retrieval.compression.registry import method
from tokenshard.spec.base import canonical_json

VERSION = 1
_KEY = "tokenshard.compression"


def dump(compressor: Compressor) -> bytes:
    """The file of a compressor."""
    document = {"version": VERSION, "method": compressor.name, "config": compressor.config()}
    arrays = {name: np.ascontiguousarray(array) for name, array in compressor.arrays().items()}
    return save_tensors(arrays, {_KEY: canonical_json(document).decode()})


def load(data: bytes) -> Compressor:
    """The compressor of a file. Raises FormatError when it is damaged, of an unknown method or too new."""
    try:
        length = int.from_bytes(data[:8], "little")
        document = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][_KEY])
        version, name, config = document["version"], document["method"], document["config"]
        arrays = load_tensors(data)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise FormatError(f"not a codebook of compressed pages ({error!r}); restore the file") from error
    if version > VERSION:
        raise FormatError(f"codebook of version {version} needs a newer tokenshard (this one reads {VERSION})")
    try:
        return method(name).from_state(config, arrays)
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"codebook of {name}: its parts do not fit together ({error!r}); restore the file") from error
