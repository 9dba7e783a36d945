"""Checks that every codec makes on a block before its compiled loops see it."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from tokenshard.codecs.base import Bytes, Grids, Ids, Lengths, id_dtype
from tokenshard.errors import FormatError, InputError

_Scalar = TypeVar("_Scalar", bound=np.generic)


def check_ids(ids: Ids, sizes: NDArray[np.int64], alphabet: int) -> None:
    """Raises InputError unless ``ids`` are those of samples of these sizes and all lie in ``[0, alphabet)``."""
    if ids.ndim != 1 or len(ids) != sizes.sum():
        raise InputError(f"{ids.shape} ids for samples of {int(sizes.sum())} ids together; pass them flat")
    if len(ids) and (ids.min() < 0 or ids.max() >= alphabet):
        raise InputError(f"id {int(ids.min())} or {int(ids.max())} is outside the alphabet of {alphabet}")


def check_lengths(data: Bytes, lengths: Lengths, grids: Grids) -> NDArray[np.int64]:
    """The first byte of each stream (int64 [samples]). Raises FormatError when lengths, data and grids do not match."""
    if len(lengths) != len(grids):
        raise FormatError(f"{len(lengths)} stream lengths for {len(grids)} samples; the shard is damaged")
    stops = np.cumsum(lengths, dtype=np.int64)
    if lengths.min(initial=0) < 0 or lengths.sum(dtype=np.int64) != len(data):
        raise FormatError(f"stream lengths do not add up to the {len(data)} bytes of the block; the shard is damaged")
    return stops - lengths


def ids_buffer(out: Ids | None, size: int, alphabet: int) -> Ids:
    """``out``, checked, or a new array of ``size`` ids."""
    if out is None:
        return np.empty(size, id_dtype(alphabet))
    if out.shape != (size,) or out.dtype != id_dtype(alphabet) or not out.flags.c_contiguous:
        raise ValueError(f"out must be a contiguous {np.dtype(id_dtype(alphabet))} array of {size} ids")
    return out


def read_only(array: NDArray[_Scalar]) -> NDArray[_Scalar]:
    """A contiguous read-only view: compiled loops then see one array type whoever owns the buffer."""
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view
