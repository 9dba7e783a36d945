"""What compressed pages weigh: ids as the shards' codec writes them, streams as they are, and the codebook."""

from __future__ import annotations

import numpy as np

from tokenshard.codecs.choose import choose_codec
from tokenshard.codecs.multiset import MultisetCodec
from tokenshard.retrieval.compression.base import Compressor, Encoded
from tokenshard.retrieval.compression.state import dump
from tokenshard.retrieval.exact import Multivectors
from tokenshard.shards.drift import TRAINED


def code_bytes(compressor: Compressor, encoded: Encoded) -> int:
    """Bytes of the code columns and streams of some pages, with the model files of the codecs.

    Codecs are fitted on these pages, as a job fits them on its pilot.
    """
    total = sum(len(stream.data) for stream in encoded.streams.values())
    if encoded.ids is None or not encoded.offsets[-1]:
        return total
    grids = encoded.lengths.astype(np.int32)[:, None]
    for level, alphabet in zip(encoded.ids, compressor.alphabets, strict=True):
        ids = np.ascontiguousarray(level)
        if compressor.order_free:
            codec = MultisetCodec.fit(ids, grids, alphabet)
            total += len(codec.encode(ids, grids)[0]) + len(codec.model_bytes())
        else:
            total += round(min(choose_codec(ids, grids, alphabet).sizes.values()) * len(ids) / 8)
    return total


def trained_bytes(compressor: Compressor, sample: Multivectors) -> dict[str, float]:
    """What the description of a codebook states of the vectors it was trained on: the bytes that one takes, by which
    shards of other vectors are known later. Nothing of methods whose bytes tell nothing."""
    if not compressor.variable_rate or not len(sample.vectors):
        return {}
    return {TRAINED: round(code_bytes(compressor, compressor.encode(sample)) / len(sample.vectors), 3)}


def state_bytes(compressor: Compressor) -> int:
    """Bytes of the codebook file."""
    return len(dump(compressor))
