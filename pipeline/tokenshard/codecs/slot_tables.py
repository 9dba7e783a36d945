"""Order-0 models of two steps by slot: tables that `rans_vectors` looks symbols up in, where the other loops search."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tokenshard.codecs.model import TOTAL, ContextModel

SLOT_BITS = 12
FREQUENCY_BITS = 13
NARROW_BITS = 11
"""Bits of a frequency, and of a slot less the first of its symbol, where an entry has an id of ten bits beside them."""


class SlotTables(NamedTuple):
    """What slots stand for. A *move* is how a symbol moves a state: its frequency in the low 13 bits, and above them
    the slot less the first one of the symbol, modulo 4096."""

    roots: NDArray[np.uint32]
    """[4096]: the move of each slot in the first step, in 25 bits, and above it the node that it leads to."""
    ids: NDArray[np.uint16] | NDArray[np.uint32]
    """[nodes * 4096 + 1]: the id of each slot of each node, and an entry that is read along with the last. In uint32
    where all frequencies are below 2048: then with the slot's move, which takes the low 22 bits."""
    shift: np.uint64
    """Bits below an id: 22 or 0."""
    moves: NDArray[np.uint32]
    """[alphabet]: the move of each id in the second step, less its slot."""


def slot_tables(model: ContextModel) -> SlotTables | None:
    """The tables of an order-0 model of two steps (at most 1,024 ids, 545 kB); None for any other."""
    if len(model.steps) != 2 or any(step.has_contexts for step in model.steps):
        return None
    frequencies, below = (step.frequencies.astype(np.int64) for step in model.steps)
    nodes = np.arange(len(frequencies))
    roots = np.repeat(_moves(frequencies) + (nodes << 25), frequencies) + (np.arange(TOTAL) << FREQUENCY_BITS)
    moves = np.empty(model.alphabet, np.int64)
    moves[model.leaves] = _moves(below)
    ids, shift = np.repeat(model.leaves.astype(np.int64), below), 0
    if below.max() < 1 << NARROW_BITS:
        rest = np.arange(len(ids)) - np.repeat(np.cumsum(below) - below, below)
        ids, shift = ids << 2 * NARROW_BITS | rest << NARROW_BITS | np.repeat(below, below), 2 * NARROW_BITS
    of_slots = np.append(ids, 0)
    return SlotTables(
        roots.astype(np.uint32),
        of_slots.astype(np.uint32) if shift else of_slots.astype(np.uint16),
        np.uint64(shift),
        moves.astype(np.uint32),
    )


def _moves(frequencies: NDArray[np.int64]) -> NDArray[np.int64]:
    """The move by each symbol of some tables, less its slot."""
    firsts = (np.cumsum(frequencies) - frequencies) % TOTAL
    return frequencies - (firsts << FREQUENCY_BITS)
