"""The model of the `context` codec as the compiled loops index it: flat arrays, tables at cache lines."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from tokenshard.codecs.base import Ids
from tokenshard.codecs.model import MAX_CHILDREN, TOTAL, ContextModel, Step

_Scalar = TypeVar("_Scalar", bound=np.generic)


class KernelArrays(NamedTuple):
    """A model as the compiled loops index it. Nodes are numbered depth by depth, left to right; leaves follow.

    Own ids are known to the loops by the number of their leaf, so that no step of the decoder waits for ``leaves``.
    """

    nodes: NDArray[np.uint32]
    """[nodes, 4], flat: number of the first child, column of the class map in ``classes``, first entry in ``pairs``
    (or the table, where nodes have one each), first entry in ``refined``."""
    steps: NDArray[np.uint64]
    """[depth, 3]: 1 where a table has 32 entries; log2 of the row length of a pair map; clusters a first neighbour."""
    classes: NDArray[np.uint8]
    """One row an id as first neighbour, then one an id as second: its class or cluster in the maps of all steps."""
    class_rows: tuple[np.uint64, np.uint64]
    """Length of a row of ``classes``, and first entry of the rows of second neighbours."""
    refined: NDArray[np.uint8]
    """Classes of the clusters of a node: of first neighbours, then of second ones."""
    pairs: NDArray[np.uint16]
    """Table of each node and class pair; empty where every node has one table. Tables are named by their place in
    ``ends`` divided by 16."""
    ends: NDArray[np.uint16]
    """Cumulative frequencies of each table, filled up to 16 or 32 entries with 4096; 32 times 4096 come first."""
    leaves: Ids
    """Ids in leaf order."""


def kernel_arrays(model: ContextModel) -> KernelArrays:
    """A model's arrays for the loops, its invariants being checked already."""
    contexts = any(step.has_contexts for step in model.steps)
    children = np.concatenate([step.children for step in model.steps])
    nodes = np.zeros((len(children), 4), np.uint32)
    nodes[:, 0] = 1 + np.cumsum(children, dtype=np.int64) - children
    steps = np.zeros((len(model.steps), 3), np.uint64)
    refined = [np.zeros(0, np.uint8)]
    ends, pairs = [np.full(MAX_CHILDREN, TOTAL, np.uint16)], [np.zeros(0, np.uint16)]
    node = column = pair_at = refined_at = 0
    table_at = MAX_CHILDREN // 16
    for number, step in enumerate(model.steps):
        steps[number] = step.row // 32, (step.pairs.shape[2] - 1).bit_length(), step.first_refined.shape[1]
        ends.append(_ends(step))
        here = slice(node, node + len(step.children))
        nodes[here, 1] = column + step.map_of
        refined.append(np.concatenate([step.first_refined, step.second_refined], axis=1).reshape(-1))
        nodes[here, 3] = refined_at + np.arange(len(step.pairs)) * (refined[-1].size // len(step.pairs))
        refined_at += refined[-1].size
        if contexts:
            pairs.append(_padded_pairs(step, table_at))
            nodes[here, 2] = pair_at + np.arange(len(step.pairs)) * (pairs[-1].size // len(step.pairs))
        else:
            nodes[here, 2] = table_at + np.arange(len(step.pairs)) * (step.row // 16)
        node, column = here.stop, column + max(len(step.first_map), 1)
        pair_at, table_at = pair_at + pairs[-1].size, table_at + ends[-1].size // 16
    columns = zip(*((step.first_map, step.second_map) for step in model.steps), strict=True)
    first, second = (np.concatenate([_or_zeros(part) for part in parts]) for parts in columns)
    rows = first.T, second.T
    classes = np.concatenate([row.reshape(-1) for row in rows if contexts] or [np.zeros(0, np.uint8)])
    class_rows = (np.uint64(len(first)), np.uint64(first.size))
    packed = np.concatenate(refined), np.concatenate(pairs), _at_cache_line(np.concatenate(ends))
    return KernelArrays(nodes.reshape(-1), steps, _at_cache_line(classes), class_rows, *packed, model.leaves)


def _ends(step: Step) -> NDArray[np.uint16]:
    """Cumulative frequencies of a step's tables, flat."""
    lengths = step.table_lengths
    running = np.cumsum(step.frequencies, dtype=np.int64) - np.repeat(np.arange(len(lengths)) * TOTAL, lengths)
    ends = np.full((len(lengths), step.row), TOTAL, np.uint16)
    ends[np.arange(step.row) < lengths[:, None]] = running
    return ends.reshape(-1)


def _padded_pairs(step: Step, table_at: int) -> NDArray[np.uint16]:
    """Places of tables divided by 16, flat; rows are filled up to a power of two."""
    before = np.cumsum(step.tables, dtype=np.int64) - step.tables
    nodes, first, second = step.pairs.shape
    padded = np.zeros((nodes, first, 1 << (second - 1).bit_length()), np.uint16)
    padded[:, :, :second] = table_at + (step.pairs + before[:, None, None]) * (step.row // 16)
    return padded.reshape(-1)


def _or_zeros(classes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return classes if len(classes) else np.zeros((1, classes.shape[1]), np.uint8)


def _at_cache_line(array: NDArray[_Scalar]) -> NDArray[_Scalar]:
    """A copy that begins at a multiple of 64 bytes, so that a table or a row of 64 bytes lies in one cache line."""
    room = np.empty(array.nbytes + 64, np.uint8)
    begin = -room.ctypes.data % 64
    copy = room[begin : begin + array.nbytes].view(array.dtype)
    copy[:] = array
    return copy
