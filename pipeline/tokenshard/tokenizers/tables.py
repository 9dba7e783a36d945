"""Entropy tables that come with a tokenizer: codec models fitted on ids of many images, so that few need none of their
own.

A dataset of a few pictures is too small to learn from what its ids cost, and pays for every byte of a model. Tables
lie in the tokenizer's folder like its weights; a conversion takes them where they are cheaper than a model of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenshard.codecs.base import Ids, id_dtype
from tokenshard.codecs.context import ContextCodec
from tokenshard.codecs.fit import Earlier
from tokenshard.errors import InputError
from tokenshard.tokenizers.base import Tokenizer

EXPECTED_IDS = 100_000_000
"""Ids that share the tables, once for all datasets: large ones pay."""


def fit_tables(tokenizer: Tokenizer, images: Iterable[NDArray[np.uint8]]) -> tuple[bytes, ...]:
    """A `.tsm` model of each level for the ids of images uint8 [height, width, 3] of any sizes.

    Equal images give equal bytes on one machine. Raises :class:`InputError` without images.
    """
    planes: list[list[NDArray[Any]]] = [[] for _ in tokenizer.spec.levels]
    grids: list[tuple[int, int]] = []
    for image in images:
        codes = tokenizer.encode(image[None])[0]
        grids.append((codes.shape[1], codes.shape[2]))
        for level, plane in zip(planes, codes, strict=True):
            level.append(plane.ravel())
    if not grids:
        raise InputError("there are no images to fit tables on")
    tables: list[bytes] = []
    earlier: Earlier | None = None
    for level, alphabet in zip(planes, tokenizer.spec.levels, strict=True):
        ids: Ids = np.concatenate(level).astype(id_dtype(alphabet), copy=False)
        codec = ContextCodec.fit(ids, np.array(grids, np.int32), alphabet, earlier=earlier, expected_ids=EXPECTED_IDS)
        tables.append(codec.model_bytes())
        earlier = Earlier(ids, alphabet)
    return tuple(tables)
