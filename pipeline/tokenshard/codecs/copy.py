"""The `copy` codec, for clips: an id mostly repeats the one of the frame before, on its left, or above it.

One symbol says which, by a table that the pattern of equal ids around it chooses; ids that repeat none of them are
coded as the `context` codec codes all. Where nothing moves, an id costs a few thousandths of a bit. One state a sample,
so that a clip decodes alone. Streams and model: `schemas/shard-format.md`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from tokenshard.codecs.base import Bytes, Grids, Ids, Lengths, RandomAccess, id_dtype, sample_sizes
from tokenshard.codecs.blocks import check_ids, check_lengths, ids_buffer, read_only
from tokenshard.codecs.context import tree_of
from tokenshard.codecs.copy_model import CONTEXT_BITS, CopyModel
from tokenshard.codecs.fit import fit_contexts
from tokenshard.codecs.kernel_arrays import kernel_arrays
from tokenshard.codecs.tree import quantize
from tokenshard.errors import FormatError, InputError

_WHICH = {"previous": 0, "left": 1, "up": 2}
_PRIOR = (0.4, 0.2, 0.2, 0.2)
"""Occurrences of each source in a context, before any was seen."""


class CopyCodec(RandomAccess):
    """Codec over a :class:`CopyModel`, for samples of rank 3."""

    name: ClassVar[Literal["copy"]] = "copy"
    layout: ClassVar[Literal["binary"]] = "binary"
    group: ClassVar[int] = 1
    needs_earlier: ClassVar[bool] = False

    def __init__(self, model: CopyModel, data: bytes | None = None) -> None:
        self.model, self._data = model, data
        self.alphabet = model.others.alphabet
        self._ids = np.dtype(id_dtype(self.alphabet))
        arrays = kernel_arrays(model.others)
        self._arrays = tuple(arrays._replace(leaves=arrays.leaves.astype(self._ids, copy=False)))
        self._which = np.array([_WHICH[name] for name in model.others.neighbours], np.uint64)
        self._tree = tree_of(model.others)

    @classmethod
    def fit(cls, ids: Ids, grids: Grids, alphabet: int, expected_ids: int | None = None) -> CopyCodec:
        """Fit to the samples of a pilot. Equal pilots give equal models; ``expected_ids`` as in the context codec."""
        from tokenshard.codecs import copy_kernels

        _check_rank(grids)
        sizes = sample_sizes(grids)
        check_ids(ids, sizes, alphabet)
        keys, sources = np.empty(len(ids), np.uint16), np.empty(len(ids), np.uint8)
        copy_kernels.observe(read_only(ids), _layout(grids, sizes), alphabet, keys, sources)
        contexts = 1 << CONTEXT_BITS
        cells = np.bincount(keys.astype(np.int64) * 4 + sources, minlength=4 * contexts).reshape(contexts, 4)
        overall = cells.sum(axis=0) + 1
        prior = np.array(_PRIOR) + overall / overall.sum()
        weights = np.rint((cells + prior) * 1024).astype(np.int64)
        frequencies = quantize(weights.reshape(-1), np.full(contexts, 4)).reshape(contexts, 4)
        others = sources == 3
        share = max(int(others.sum()), 1) / max(len(ids), 1)
        expected = round((expected_ids or len(ids)) * share)
        tree = fit_contexts(ids, grids, alphabet, expected_ids=max(expected, 1), coded=others)
        return cls(CopyModel(frequencies.astype(np.uint16), tree))

    @classmethod
    def from_model(cls, data: bytes) -> CopyCodec:
        """The codec of a `.tsm` file. Raises FormatError when the file is damaged."""
        return cls(CopyModel.from_bytes(data), data)

    def __reduce__(self) -> tuple[object, ...]:
        return (CopyCodec.from_model, (self.model_bytes(),))

    def model_bytes(self) -> bytes:
        if self._data is None:
            self._data = self.model.to_bytes()
        return self._data

    def encode(self, ids: Ids, grids: Grids, earlier: Ids | None = None) -> tuple[Bytes, Lengths]:
        from tokenshard.codecs import copy_kernels, rans_kernels

        _check_rank(grids)
        sizes = sample_sizes(grids)
        check_ids(ids, sizes, self.alphabet)
        symbols = 1 + len(self.model.others.steps)
        rooms = np.where(sizes > 0, 3 + (12 * sizes * symbols + 15) // 16, 0)
        stops, num_words = np.cumsum(rooms), np.zeros(len(sizes), np.int64)
        scratch = np.empty(int(stops[-1]) if len(stops) else 0, np.uint16)
        own = read_only(ids.astype(self._ids, copy=False))
        tables = self.model.ends, self._arrays, self._tree, self._which
        copy_kernels.encode(own, _layout(grids, sizes), *tables, scratch, stops, num_words)
        words = np.empty(int(num_words.sum()), np.uint16)
        rans_kernels.gather(scratch, stops, num_words, words)
        return words.astype("<u2", copy=False).view(np.uint8), (2 * num_words).astype(np.int32)

    def decode(
        self, data: Bytes, lengths: Lengths, grids: Grids, out: Ids | None = None, earlier: Ids | None = None
    ) -> Ids:
        ids, damaged = self.try_decode(data, lengths, grids, out, earlier)
        if damaged.any():
            raise FormatError(
                f"{int(damaged.sum())} of {len(damaged)} streams are damaged, the first is that of sample "
                f"{int(damaged.argmax())} of its block; restore the shard or convert it again"
            )
        return ids

    def try_decode(
        self, data: Bytes, lengths: Lengths, grids: Grids, out: Ids | None = None, earlier: Ids | None = None
    ) -> tuple[Ids, NDArray[np.bool_]]:
        """Like :meth:`decode`, but says which streams are damaged (bool [samples]) instead of raising.

        The ids of a damaged stream are meaningless but inside the alphabet.
        """
        from tokenshard.codecs import copy_kernels, rans_kernels

        if grids.shape[1] != 3:
            raise FormatError("the copy codec stores clips, grids of rank 3; the shard is damaged")
        first_bytes = check_lengths(data, lengths, grids)
        if len(lengths) and (lengths & 1).any():
            raise FormatError("a stream of an odd number of bytes; the shard is damaged")
        sizes = sample_sizes(grids)
        ids = ids_buffer(out, int(sizes.sum()), self.alphabet)
        ids.fill(0)
        own = ids.astype(self._ids, copy=False)
        words = np.zeros(len(data) // 2 + rans_kernels.BLOCK * (2 + len(self.model.others.steps)), np.uint16)
        words[: len(data) // 2] = np.ascontiguousarray(data).view("<u2")
        damaged = np.where(sizes > 0, lengths < 4, lengths > 0)
        state = np.flatnonzero((sizes > 0) & ~damaged)
        damaged[state] = words[first_bytes[state] // 2 + 1] == 0  # a state below 2^16
        streams = words, first_bytes // 2, lengths.astype(np.int64) // 2
        tables = self.model.ends, self._arrays, self._which
        copy_kernels.decode(*streams, _layout(grids, sizes), *tables, own, damaged)
        if own is not ids:
            ids[:] = own
        return ids, damaged

    def open_block(self, data: Bytes, lengths: Lengths, grids: Grids) -> _OpenBlock:
        return _OpenBlock(self, data, check_lengths(data, lengths, grids), lengths, grids)


@dataclass(frozen=True)
class _OpenBlock:
    codec: CopyCodec
    data: Bytes
    first_bytes: NDArray[np.int64]
    lengths: Lengths
    grids: Grids

    def sample(self, row: int, earlier: Ids | None = None) -> Ids:
        first, mine = int(self.first_bytes[row]), slice(row, row + 1)
        stream = self.data[first : first + int(self.lengths[row])]
        return self.codec.decode(stream, self.lengths[mine], self.grids[mine])


def _layout(grids: Grids, sizes: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    return np.cumsum(sizes) - sizes, sizes, np.ascontiguousarray(grids[:, 1:], np.int64)


def _check_rank(grids: Grids) -> None:
    if grids.shape[1] != 3:
        raise InputError(f"the copy codec is for clips, grids of rank 3, not of rank {grids.shape[1]}")
