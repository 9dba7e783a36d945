"""Order-0 models of two steps by slot: tables that `rans_vectors` looks symbols up in, where the other loops search."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tokenshard.codecs.model import TOTAL, ContextModel

FREQUENCY_BITS = 13


class SlotTables(NamedTuple):
    """What slots stand for. A *move* is how a symbol moves a state: its frequency in the low 13 bits, and above them
    the slot less the first one of the symbol, modulo 4096."""

    roots: NDArray[np.uint32]
    """[4096]: the move of each slot in the first step, in 25 bits, and above it the node that it leads to."""
    ids: NDArray[np.uint16]
    """[nodes * 4096 + 1]: the id of each slot of each node, and an entry that is read along with the last."""
    moves: NDArray[np.uint32]
    """[alphabet]: the move of each id in the second step, less its slot."""


def slot_tables(model: ContextModel) -> SlotTables | None:
    """The tables of an order-0 model of two steps (at most 1,024 ids, 276 kB); None for any other."""
    if len(model.steps) != 2 or any(step.has_contexts for step in model.steps):
        return None
    frequencies, below = (step.frequencies.astype(np.int64) for step in model.steps)
    nodes = np.arange(len(frequencies))
    roots = np.repeat(_moves(frequencies) + (nodes << 25), frequencies) + (np.arange(TOTAL) << FREQUENCY_BITS)
    moves = np.empty(model.alphabet, np.int64)
    moves[model.leaves] = _moves(below)
    ids = np.append(np.repeat(model.leaves, below), 0)
    return SlotTables(roots.astype(np.uint32), ids.astype(np.uint16), moves.astype(np.uint32))


def _moves(frequencies: NDArray[np.int64]) -> NDArray[np.int64]:
    """The move by each symbol of some tables, less its slot."""
    firsts = (np.cumsum(frequencies) - frequencies) % TOTAL
    return frequencies - (firsts << FREQUENCY_BITS)
