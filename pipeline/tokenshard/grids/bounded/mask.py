"""Which cells of a tile hold a value: nothing, or a bitmap coded bit by bit from the shape of what came before it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenshard.grids.bounded.binary import (
    CODER,
    code_bit,
    counted,
    finish,
    kernel,
    learn,
    mix,
    squash_table,
    start,
    stretch_table,
)

_ALL, _NEAR = 1 << 12, 1 << 6


@kernel
def _code_mask(valid: Any, encoding: Any, data: Any, squash: Any, stretch: Any, counters: Any, weights: Any) -> Any:
    height, width = valid.shape
    framed = np.zeros((height + 2, width + 6), np.int64)
    coder, inputs = np.zeros(CODER, np.int64), np.zeros(3, np.int64)
    start(encoding, coder, data)
    for y in range(height):
        for x in range(width):
            # Twelve bits known before, the nearest last: rows 0 and 1 of the frame are above the tile.
            near = framed[y + 2, x + 2] | framed[y + 2, x + 1] << 1 | framed[y + 1, x + 2] << 2
            near |= framed[y + 1, x + 3] << 3 | framed[y + 1, x + 4] << 4 | framed[y, x + 3] << 5
            far = framed[y + 2, x] | framed[y + 1, x + 1] << 1 | framed[y + 1, x + 5] << 2
            far |= framed[y, x + 2] << 3 | framed[y, x + 4] << 4 | framed[y + 1, x] << 5
            a, b = far << 6 | near, _ALL + near
            inputs[0], inputs[1], inputs[2] = stretch[counters[a] >> 20], stretch[counters[b] >> 20], 64
            probability = mix(inputs, 3, weights, near, squash)
            bit = code_bit(np.int64(valid[y, x]), probability, encoding, coder, data)
            learn(inputs, 3, weights, near, (bit << 16) - bit - probability, 6)
            counted(counters, a, bit, 250)
            counted(counters, b, bit, 250)
            framed[y + 2, x + 3] = bit
            valid[y, x] = bit
    if encoding:
        finish(coder, data)
    return coder[3]


def _run(valid: NDArray[np.uint8], encoding: bool, data: NDArray[np.uint8]) -> int:
    counters = np.full(_ALL + _NEAR, 1 << 31, np.int64)
    weights = np.full((_NEAR, 3), 1 << 15, np.int64)
    return int(_code_mask(valid, encoding, data, squash_table(), stretch_table(), counters, weights))


def encode_mask(valid: NDArray[np.bool_]) -> bytes:
    """Bytes of a bitmap ``[h, w]``."""
    data = np.zeros(4 * valid.size + 16, np.uint8)  # a bit of probability 1 / 65536 takes two bytes
    return data[: _run(valid.astype(np.uint8), True, data)].tobytes()


def decode_mask(data: bytes, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """The bitmap of ``shape`` from its bytes; damaged ones give another bitmap of that shape."""
    valid = np.zeros(shape, np.uint8)
    _run(valid, False, np.frombuffer(bytearray(data), np.uint8))
    return valid.astype(np.bool_)
