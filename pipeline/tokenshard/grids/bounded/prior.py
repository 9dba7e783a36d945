"""What coders know before they have seen a cell: predictors, scales, mixers and counters trained on real grids.

`prior.npz` beside this file is part of the format: streams of version 1 are coded from it. It is made by
`benchmarks/gridding/train_prior.py`, from grids that the benchmark does not measure.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tokenshard.grids.bounded.cells import initial_model
from tokenshard.grids.bounded.scan import KINDS, RATIOS, TAPS

Integers = NDArray[np.int64]
FILE = Path(__file__).parent / "prior.npz"
MODES = ("causal", "hierarchical")
"""What a plane is scanned by; ``levels`` is 0 for the first and above 0 for the second."""


@dataclass(frozen=True)
class State:
    """All that adapts while a plane is coded, as the kernels take it."""

    weights: Integers
    counters: tuple[Integers, Integers, Integers]
    ratios: Integers

    def copy(self) -> State:
        """A state that may be changed."""
        return State(
            self.weights.copy(),
            (self.counters[0].copy(), self.counters[1].copy(), self.counters[2].copy()),
            self.ratios.copy(),
        )


@dataclass(frozen=True)
class Prior:
    """``predictors``: int64 ``[sets, KINDS, TAPS]``, weights of taps in 1 / 65536; a state by mode."""

    predictors: Integers
    states: dict[str, State]


def untrained() -> Prior:
    """Predictors from the nearest cells alone; experts alike and counters at one half."""
    predictors = np.zeros((1, KINDS, TAPS), np.int64)
    predictors[0, 0, :3] = 65536, 65536, -65536
    predictors[0, 1:, :4] = 16384
    weights, first, second, third = initial_model()
    ratios = np.tile(np.array([256, 256, 1], np.int64), (2 * KINDS * RATIOS, 1))
    state = State(weights, (first, second, third), ratios)
    return Prior(predictors, dict.fromkeys(MODES, state))


@cache
def trained() -> Prior:
    """The prior of the package."""
    with np.load(FILE) as arrays:
        return unpacked({name: arrays[name].astype(np.int64) for name in arrays.files})


def unpacked(arrays: dict[str, Integers]) -> Prior:
    """A prior from the arrays of its file."""

    def state(mode: str) -> State:
        own = {name.partition(".")[2]: array for name, array in arrays.items() if name.startswith(f"{mode}.")}
        return State(own["weights"], (own["counters0"], own["counters1"], own["counters2"]), own["ratios"])

    return Prior(arrays["predictors"], {mode: state(mode) for mode in MODES})


def packed(prior: Prior) -> dict[str, NDArray[np.signedinteger | np.unsignedinteger]]:
    """The arrays of a prior's file; :func:`unpacked` reads them."""
    arrays: dict[str, NDArray[np.signedinteger | np.unsignedinteger]] = {
        "predictors": prior.predictors.astype(np.int32)
    }
    for mode, state in prior.states.items():
        arrays[f"{mode}.weights"] = state.weights.astype(np.int32)
        arrays[f"{mode}.ratios"] = state.ratios
        for number, counters in enumerate(state.counters):
            arrays[f"{mode}.counters{number}"] = counters.astype(np.uint32)
    return arrays
