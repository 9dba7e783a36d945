"""Checks that methods of compression make on vectors and states."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from tokenshard.codecs.base import Ids, id_dtype
from tokenshard.errors import FormatError, InputError
from tokenshard.retrieval.compression.base import Encoded
from tokenshard.retrieval.exact import Multivectors, Vectors


def checked_vectors(pages: Multivectors, dimensions: int | None = None) -> Vectors:
    """float32 [N, d], contiguous. Raises InputError where they have another dimension or are not finite."""
    vectors = np.ascontiguousarray(pages.vectors, np.float32)
    if dimensions is not None and vectors.shape[1] != dimensions:
        raise InputError(f"vectors of {vectors.shape[1]} dimensions for a codebook of {dimensions}")
    if not np.isfinite(vectors).all():
        raise InputError("vectors that are not finite; leave them out or repair the encoder")
    return vectors


def checked_sample(sample: Multivectors) -> Vectors:
    """The vectors to fit on. Raises InputError where there are none."""
    vectors = checked_vectors(sample)
    if vectors.size == 0:
        raise InputError("no vectors to fit a codec on; the sample of pages is empty")
    return vectors


def stored(arrays: dict[str, NDArray[Any]], name: str, dtype: Any, shape: tuple[int | None, ...]) -> NDArray[Any]:
    """An array of a state. Raises FormatError unless it has this dtype and shape (None: any size)."""
    array = arrays.get(name)
    if array is None or array.dtype != np.dtype(dtype) or array.ndim != len(shape):
        raise FormatError(f"codebook: {name} is missing or of another type; restore the file")
    if any(want is not None and want != have for want, have in zip(shape, array.shape, strict=True)):
        raise FormatError(f"codebook: {name} has the shape {array.shape}, not {shape}; restore the file")
    return array


def as_ids(numbers: NDArray[np.int64], alphabet: int) -> Ids:
    """In the dtype of ids on the API."""
    return cast(Ids, numbers.astype(id_dtype(alphabet)))


def checked_ids(encoded: Encoded, alphabets: tuple[int, ...]) -> Ids:
    """[levels, N]. Raises FormatError unless they are ids of these alphabets, one a vector and level."""
    ids = encoded.ids
    if ids is None or ids.shape != (len(alphabets), encoded.offsets[-1]):
        raise FormatError(f"the pages do not have {len(alphabets)} ids a vector; the shard is damaged")
    for level, alphabet in zip(ids, alphabets, strict=True):
        if len(level) and (level.min() < 0 or level.max() >= alphabet):
            raise FormatError(f"id {level.max()} is outside the codebook of {alphabet}; the shard is damaged")
    return ids
