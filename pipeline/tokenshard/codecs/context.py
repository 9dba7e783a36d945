"""The `context` codec: an id is a short path through a tree, each step rANS-coded by a table its neighbours choose.

With one table a node it is an order-0 coder. One 32-bit state a sample (3 bytes on average), so that a sample decodes
alone; throughput comes from decoding eight samples in lockstep, or 64 in vectors by an order-0 model of two steps.
Streams and model: `schemas/shard-format.md`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from tokenshard.codecs.base import Bytes, Grids, Ids, Lengths, RandomAccess, ReadsAhead, id_dtype, sample_sizes
from tokenshard.codecs.blocks import check_ids, check_lengths, ids_buffer, read_only
from tokenshard.codecs.fit import Earlier, fit_contexts
from tokenshard.codecs.kernel_arrays import kernel_arrays
from tokenshard.codecs.model import ContextModel
from tokenshard.codecs.neighbours import neighbour_strides
from tokenshard.codecs.slot_tables import SlotTables, slot_tables
from tokenshard.codecs.tree import fit_order0
from tokenshard.errors import FormatError, InputError

_WORD_BITS = 16
_SYMBOL_BITS = 12
"""The most a symbol can cost: a frequency of 1 in 4096."""


Places = NDArray[np.uint64]
_ZERO = np.zeros(1, np.int64)


class ContextCodec(RandomAccess, ReadsAhead):
    """Codec over a :class:`ContextModel`; an alphabet of one id needs no bytes at all."""

    name: ClassVar[Literal["context"]] = "context"
    layout: ClassVar[Literal["binary"]] = "binary"
    group: ClassVar[int] = 1

    def __init__(self, model: ContextModel, data: bytes | None = None) -> None:
        self.model = model
        self._data = data
        self.alphabet = model.alphabet
        # Own ids and those beside them have one dtype, so that there are only two versions of each loop to compile.
        self._ids = np.dtype(id_dtype(max(model.alphabet, model.earlier_alphabet or 0)))
        arrays = kernel_arrays(model)
        self._arrays = tuple(arrays._replace(leaves=arrays.leaves.astype(self._ids, copy=False)))
        self._tree = tree_of(model)
        self.needs_earlier = model.earlier_alphabet is not None

    @classmethod
    def fit(
        cls,
        ids: Ids,
        grids: Grids,
        alphabet: int,
        contexts: Literal["auto", "none"] = "auto",
        earlier: Earlier | None = None,
        expected_ids: int | None = None,
    ) -> ContextCodec:
        """Fit to the samples of a pilot (fewer than 2^31 ids). Equal pilots give equal models.

        ``auto`` gives each step the contexts that pay on samples held out from the fit, when the model's bytes are
        spread over ``expected_ids`` (by default those of the pilot); ``none`` makes an order-0 model. ``earlier``: the
        level before of the same samples, which may serve as a neighbour.
        """
        check_ids(ids, sample_sizes(grids), alphabet)
        if earlier is not None:
            check_ids(earlier.ids, sample_sizes(grids), earlier.alphabet)
        if contexts == "none":
            return cls(fit_order0(np.bincount(ids, minlength=alphabet), len(grids)))
        return cls(fit_contexts(ids, grids, alphabet, earlier, expected_ids))

    @classmethod
    def from_model(cls, data: bytes) -> ContextCodec:
        """The codec of a `.tsm` file. Raises :class:`FormatError` when the file is damaged."""
        return cls(ContextModel.from_bytes(data), data)

    def __reduce__(self) -> tuple[object, ...]:
        return (ContextCodec.from_model, (self.model_bytes(),))

    def model_bytes(self) -> bytes:
        if self._data is None:  # those it was read from are kept: another zstd may compress to other bytes
            self._data = self.model.to_bytes()
        return self._data

    def encode(self, ids: Ids, grids: Grids, earlier: Ids | None = None) -> tuple[Bytes, Lengths]:
        sizes = sample_sizes(grids)
        check_ids(ids, sizes, self.alphabet)
        num_words = np.zeros(len(sizes), np.int64)
        if self.alphabet == 1 or len(ids) == 0:
            return np.zeros(0, np.uint8), num_words.astype(np.int32)
        from tokenshard.codecs import rans_kernels

        depth = len(self.model.steps)
        # Two words of state, one that the loop writes and takes back, and the dearest symbols throughout.
        rooms = np.where(sizes > 0, 3 + (sizes * depth * _SYMBOL_BITS + _WORD_BITS - 1) // _WORD_BITS, 0)
        stops = np.cumsum(rooms)
        scratch = np.empty(int(stops[-1]), np.uint16)
        places = neighbour_strides(grids, self.model.neighbours)
        layout = (np.cumsum(sizes) - sizes, sizes, *places, _alike(sizes > 0, sizes))
        own = ids.astype(self._ids, copy=False)
        beside, tree = read_only(self._beside(own, earlier)), self._tree
        state = np.empty(rans_kernels.LANES * rans_kernels.STATE, np.uint64)
        rans_kernels.encode(read_only(own), beside, layout, self._arrays, tree, scratch, stops, num_words, state)
        words = np.empty(int(num_words.sum()), np.uint16)
        rans_kernels.gather(scratch, stops, num_words, words)
        return words.astype("<u2", copy=False).view(np.uint8), (2 * num_words).astype(np.int32)

    def decode(
        self, data: Bytes, lengths: Lengths, grids: Grids, out: Ids | None = None, earlier: Ids | None = None
    ) -> Ids:
        return _undamaged(*self.try_decode(data, lengths, grids, out, earlier))

    @property
    def ahead(self) -> int:
        from tokenshard.codecs import rans_kernels

        return 2 * (rans_kernels.BLOCK * len(self.model.steps) + 1)

    def decode_ahead(
        self, data: Bytes, lengths: Lengths, grids: Grids, out: Ids | None = None, earlier: Ids | None = None
    ) -> Ids:
        first_bytes = _first_bytes(data[: len(data) - self.ahead], lengths, grids)
        return _undamaged(*self._decode_words(data.view("<u2"), first_bytes, lengths, grids, out, earlier))

    def try_decode(
        self, data: Bytes, lengths: Lengths, grids: Grids, out: Ids | None = None, earlier: Ids | None = None
    ) -> tuple[Ids, NDArray[np.bool_]]:
        """Like :meth:`decode`, but says which streams are damaged (bool [samples]) instead of raising.

        The ids of a damaged stream are meaningless but inside the alphabet. Lengths that do not fit the data still
        raise :class:`FormatError`.
        """
        first_bytes = _first_bytes(data, lengths, grids)
        words = self.padded(np.ascontiguousarray(data).view("<u2"))
        return self._decode_words(words, first_bytes, lengths, grids, out, earlier)

    def _decode_words(
        self,
        words: NDArray[np.uint16],
        first_bytes: NDArray[np.int64],
        lengths: Lengths,
        grids: Grids,
        out: Ids | None,
        earlier: Ids | None,
    ) -> tuple[Ids, NDArray[np.bool_]]:
        """:meth:`try_decode` of ``words`` as :meth:`padded` makes them, lengths being checked."""
        sizes = sample_sizes(grids)
        ids = ids_buffer(out, int(sizes.sum()), self.alphabet)
        if self.alphabet == 1 or not lengths.any():
            ids.fill(0)
            return ids, (lengths > 0) | (sizes > 0) & (self.alphabet > 1)
        from tokenshard.codecs import rans_kernels, rans_vectors

        own = ids.astype(self._ids, copy=False)
        beside = self._decoded_beside(own, earlier)
        damaged = np.where(sizes > 0, lengths < 4, lengths > 0)
        started = np.flatnonzero((sizes > 0) & ~damaged)
        damaged[started] = words[first_bytes[started] // 2 + 1] == 0  # a state below 2^16
        first_ids, order = np.cumsum(sizes) - sizes, _alike((sizes > 0) & ~damaged, sizes)
        for sample in np.flatnonzero(damaged & (sizes > 0)):
            own[first_ids[sample] : first_ids[sample] + sizes[sample]] = 0
        streams = words, first_bytes // 2, lengths.astype(np.int64) // 2
        if rans_vectors.pays(len(order), len(words)) and self._slots is not None:
            layout, scratch = (first_ids, sizes, order), rans_vectors.scratch()
            rans_vectors.decode(*streams, layout, tuple(self._slots), own, damaged, *scratch)
        else:
            places = neighbour_strides(grids, self.model.neighbours)
            state = np.empty(rans_kernels.LANES * rans_kernels.STATE, np.uint64)
            rans_kernels.decode(*streams, (first_ids, sizes, *places, order), self._arrays, own, beside, damaged, state)
        if own is not ids:
            ids[:] = own
        return ids, damaged

    @cached_property
    def _slots(self) -> SlotTables | None:
        return slot_tables(self.model) if self._ids == np.uint16 else None

    def open_block(self, data: Bytes, lengths: Lengths, grids: Grids) -> _OpenBlock:
        first_bytes = _first_bytes(data, lengths, grids)
        words = np.ascontiguousarray(data).view("<u2")
        places = neighbour_strides(grids, self.model.neighbours)
        return _OpenBlock(self, words, first_bytes // 2, lengths.astype(np.int64) // 2, sample_sizes(grids), *places)

    def decode_sample(
        self, words: NDArray[np.uint16], size: int, strides: Places, periods: Places, earlier: Ids | None
    ) -> Ids:
        """One sample of ``size`` ids from its stream; ``strides`` and ``periods`` [1, 2] of :func:`neighbour_strides`.

        Raises FormatError on damage.
        """
        from tokenshard.codecs import rans_kernels

        own = np.zeros(size, self._ids)
        if size == 0 or self.alphabet == 1:
            damaged = len(words) > 0
        elif not (damaged := len(words) < 2 or words[1] == 0):
            found, sizes, state = np.zeros(1, np.bool_), np.array([size]), np.empty(rans_kernels.STATE, np.uint64)
            layout = (_ZERO, sizes, strides, periods, _ZERO)
            beside = self._decoded_beside(own, earlier)
            stream = self.padded(words), _ZERO, np.array([len(words)])
            rans_kernels.decode(*stream, layout, self._arrays, own, beside, found, state)
            damaged = bool(found[0])
        if damaged:
            raise FormatError("the stream of a sample is damaged; restore the shard or convert it again")
        return own.astype(id_dtype(self.alphabet), copy=False)

    def padded(self, words: NDArray[np.uint16]) -> NDArray[np.uint16]:
        """The words of some streams, and after them as many as the compiled loops may read of damaged ones."""
        out = np.zeros(len(words) + self.ahead // 2, np.uint16)
        out[: len(words)] = words
        return out

    def _decoded_beside(self, own: Ids, earlier: Ids | None) -> Ids:
        try:
            return self._beside(own, earlier)
        except InputError as error:
            raise FormatError(f"{error}; the shard or its model is damaged") from None

    def _beside(self, own: Ids, earlier: Ids | None) -> Ids:
        """Where the second neighbours are: ids of the level before (checked), or of the same level."""
        alphabet = self.model.earlier_alphabet
        if alphabet is None:
            return own
        if earlier is None or earlier.shape != own.shape:
            raise InputError("this level is coded with the ids of the level before; pass those of the same samples")
        if len(earlier) and (earlier.min() < 0 or earlier.max() >= alphabet):
            raise InputError(f"an id of the level before is outside its alphabet of {alphabet}")
        return np.require(earlier, self._ids, ["C", "W"])


def tree_of(model: ContextModel) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """The node of each id's leaf [alphabet], and the parent of each node, as encoding loops need them."""
    children = np.concatenate([step.children for step in model.steps])
    parents = np.zeros(len(children) + model.alphabet, np.uint32)
    parents[1:] = np.repeat(np.arange(len(children), dtype=np.uint32), children)
    leaf_nodes = np.empty(model.alphabet, np.uint32)
    leaf_nodes[model.leaves] = np.arange(len(children), len(children) + model.alphabet, dtype=np.uint32)
    return leaf_nodes, parents


@dataclass(frozen=True)
class _OpenBlock:
    codec: ContextCodec
    words: NDArray[np.uint16]
    first_words: NDArray[np.int64]
    num_words: NDArray[np.int64]
    sizes: NDArray[np.int64]
    strides: Places
    periods: Places

    def sample(self, row: int, earlier: Ids | None = None) -> Ids:
        first, mine = self.first_words[row], slice(row, row + 1)
        words = self.words[first : first + self.num_words[row]]
        return self.codec.decode_sample(words, int(self.sizes[row]), self.strides[mine], self.periods[mine], earlier)


def _undamaged(ids: Ids, damaged: NDArray[np.bool_]) -> Ids:
    if damaged.any():
        raise FormatError(
            f"{int(damaged.sum())} of {len(damaged)} streams are damaged, the first is that of sample "
            f"{int(damaged.argmax())} of its block; restore the shard or convert it again"
        )
    return ids


def _alike(chosen: NDArray[np.bool_], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """The samples chosen, such of like size together, as they go through the compiled loops."""
    order = np.flatnonzero(chosen)
    return order[np.argsort(sizes[order], kind="stable")]


def _first_bytes(data: Bytes, lengths: Lengths, grids: Grids) -> NDArray[np.int64]:
    first_bytes = check_lengths(data, lengths, grids)
    if len(lengths) and (lengths & 1).any():
        raise FormatError("a stream of an odd number of bytes; the shard is damaged")
    return first_bytes
