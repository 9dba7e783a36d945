"""What compressed pages weigh: ids as the shards' codec writes them, streams as they are, and the codebook."""

from __future__ import annotations

import numpy as np

from tokenshard.codecs.choose import choose_codec
from tokenshard.codecs.multiset import MultisetCodec
from tokenshard.retrieval.compression.base import Compressor, Encoded
from tokenshard.retrieval.compression.state import dump
from tokenshard.retrieval.exact import Multivectors
from tokenshard.shards.drift import BYTES, ERROR


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


def squared_error(compressor: Compressor, pages: Multivectors, encoded: Encoded) -> float:
    """Mean squared distance of vectors and what their codes stand for."""
    vectors = pages.vectors if encoded.order is None else pages.vectors[encoded.order]
    apart = np.square(vectors - compressor.decode(encoded).vectors, dtype=np.float64)
    return float(apart.sum() / max(1, len(vectors)))


def usual(compressor: Compressor, sample: Multivectors, held_out: Multivectors) -> dict[str, float]:
    """What the description of a codebook states of vectors like those it was trained on, by which shards of others are
    known later: the bytes that one of the sample takes, or the squared error of one that training has not seen. Nothing
    of methods that treat all vectors alike."""
    if compressor.variable_rate and len(sample.vectors):
        return {BYTES: round(code_bytes(compressor, compressor.encode(sample)) / len(sample.vectors), 3)}
    if compressor.learned and len(held_out.vectors):
        return {ERROR: round(squared_error(compressor, held_out, compressor.encode(held_out)), 6)}
    return {}


def state_bytes(compressor: Compressor) -> int:
    """Bytes of the codebook file."""
    return len(dump(compressor))
