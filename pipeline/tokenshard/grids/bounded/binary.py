"""Binary arithmetic coding with mixed predictions: the lowest floor of the coder of grids.

Every decision is coded by a carry-less binary range coder. Its probability comes from several inputs in the logistic
domain (expert distributions and adaptive counters), weighted by a mixer that learns online, after Mahoney's
"Adaptive weighing of context models for lossless data compression" (2005). All of it is 64-bit integer arithmetic and
integer tables: encoder and decoder agree on every machine, whatever its floating point does.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Context, Decimal
from functools import cache
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from tokenshard.compiled import kernel as compiled

_Compiled = Callable[[Callable[..., Any]], Callable[..., Any]]
inline: _Compiled = njit(forceinline=True, error_model="numpy")
kernel: _Compiled = compiled(error_model="numpy")

LOGITS = 2048
"""Logits lie in ``[-LOGITS, LOGITS)``, in units of 1 / 256."""
CODER = 5
"""Entries of a coder's state: both ends of the interval, the bytes of the code that are read, the place of the next
byte, and the end of the buffer."""

LOW, HIGH, CODE, AT, END = range(CODER)
_MASK = (1 << 32) - 1


@cache
def squash_table() -> NDArray[np.int64]:
    """``[2 * LOGITS]``: probability of a logit in 1 / 65536, between 1 and 65535. Decimal arithmetic is exact."""
    exact = Context(prec=30)
    logits = (Decimal(-i) / 256 for i in range(-LOGITS, LOGITS))
    odds = (exact.exp(logit) for logit in logits)
    return np.array([min(max(int(65536 / (1 + odd)), 1), 65535) for odd in odds], np.int64)


@cache
def stretch_table() -> NDArray[np.int64]:
    """``[4096]``: logit of a probability in 1 / 4096, the inverse of :func:`squash_table`."""
    places = np.searchsorted(squash_table(), 16 * np.arange(4096) + 8)
    return np.clip(places - LOGITS, 1 - LOGITS, LOGITS - 1).astype(np.int64)


@inline
def code_bit(bit: Any, probability: Any, encoding: Any, coder: Any, data: Any) -> Any:
    """Code one bit of ``probability`` / 65536 to be 1; returns it. Never reads or writes beyond the buffer's end."""
    low, high = coder[LOW], coder[HIGH]
    middle = low + ((high - low) * probability >> 16)
    if not encoding:
        bit = 1 if coder[CODE] <= middle else 0
    if bit:
        high = middle
    else:
        low = middle + 1
    while (low ^ high) & 0xFF000000 == 0:
        at = coder[AT]
        if encoding:
            if at < coder[END]:
                data[at] = high >> 24
        else:
            byte = np.int64(data[at]) if at < coder[END] else 0
            coder[CODE] = (coder[CODE] << 8 & _MASK) | byte
        coder[AT] = at + 1
        low = low << 8 & _MASK
        high = (high << 8 & _MASK) | 255
    coder[LOW], coder[HIGH] = low, high
    return bit


@inline
def start(encoding: Any, coder: Any, data: Any) -> None:
    """Prepare ``coder`` to read or write ``data`` (uint8) from its first byte on."""
    coder[LOW], coder[HIGH], coder[CODE], coder[AT], coder[END] = 0, _MASK, 0, 0, data.shape[0]
    if not encoding:
        for i in range(4):
            coder[CODE] = coder[CODE] << 8 | (np.int64(data[i]) if i < data.shape[0] else 0)
        coder[AT] = 4


@inline
def finish(coder: Any, data: Any) -> None:
    """Write the fewest bytes that, with zeros behind them, lie in the interval."""
    for num_bytes in range(5):
        rest = _MASK >> 8 * num_bytes
        value = coder[LOW] + rest & ~rest
        if value <= coder[HIGH]:
            for i in range(num_bytes):
                if coder[AT] < coder[END]:
                    data[coder[AT]] = value >> (24 - 8 * i) & 255
                coder[AT] += 1
            break


@inline
def mix(inputs: Any, num_inputs: Any, weights: Any, row: Any, squash: Any) -> Any:
    """Probability in 1 / 65536 of the weighted logits (weights in 1 / 65536)."""
    total = 0
    for i in range(num_inputs):
        total += weights[row, i] * inputs[i]
    return squash[min(max((total + 32768) >> 16, -LOGITS), LOGITS - 1) + LOGITS]


@inline
def learn(inputs: Any, num_inputs: Any, weights: Any, row: Any, error: Any, rate: Any) -> None:
    """Move the weights along the gradient of the coding cost. ``error``: bit - probability, in 1 / 65536."""
    step = error * rate
    for i in range(num_inputs):
        weights[row, i] += (inputs[i] * step + (1 << 19)) >> 20


@inline
def counted(counters: Any, place: Any, bit: Any, limit: Any) -> None:
    """Move a counter (probability in 22 bits, then 10 bits of how often it moved) towards ``bit``."""
    state = counters[place]
    number, probability = state & 1023, state >> 10
    target = (1 << 22) - 1 if bit else 0
    probability += (target - probability) * 2 // (2 * number + 3)
    counters[place] = probability << 10 | (number + 1 if number < limit else number)
