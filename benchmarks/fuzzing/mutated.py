"""Mutations of bytes and of JSON documents."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

HOSTILE_VALUES = (
    *(None, True, -1, 0, 1, 2, 3, 255, 65_537, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63, 2**64, 10**30),
    *(1.5, -0.0, 1e300, "", "x", "codes", "codes_1", "key", "data/../../x", "data/golden-000001.parquet", "\0"),
    *("0" * 64, "A" * 64, "manifest/.."),
    *([], [0], [None], [2**31 - 1, 2**31 - 1], {}),
)  # fmt: skip


def mutated(data: bytes, rng: np.random.Generator, keep_length: bool = False) -> bytes:
    """Flipped bits, overwritten bytes, extreme values, a removed, moved or repeated piece, or a cut-off end."""
    out = bytearray(data)
    place, kind = int(rng.integers(max(len(out), 1))), int(rng.integers(5 if keep_length else 8))
    size = int(rng.integers(1, 9))
    if not out:
        return b"" if keep_length else rng.bytes(size)
    if kind == 0:
        for flip in rng.integers(0, len(out), rng.integers(1, 4)).tolist():
            out[flip] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        out[place : place + size] = rng.bytes(len(out[place : place + size]))
    elif kind == 2:
        out[place : place + size] = bytes([rng.choice([0, 255, 127, 128])]) * len(out[place : place + size])
    elif kind == 3:
        other = int(rng.integers(len(out)))
        piece = out[other : other + size][: len(out) - place]
        out[place : place + len(piece)] = piece
    elif kind == 4:
        out[place] = int(rng.integers(256))
    elif kind == 5:
        del out[place : place + int(rng.integers(1, 20))]
    elif kind == 6:
        out[place:place] = out[place : place + int(rng.integers(1, 20))]
    else:
        del out[place:]
    return bytes(out)


def change_value(rng: np.random.Generator, document: Any) -> None:
    """Replaces, removes or doubles one value somewhere in a JSON document."""
    node, parents = document, []
    while isinstance(node, dict | list) and len(node) and (not parents or rng.random() < 0.85):
        key = list(node)[rng.integers(len(node))] if isinstance(node, dict) else int(rng.integers(len(node)))
        parents.append((node, key))
        node = node[key]
    holder, key = parents[-1]
    way = rng.random()
    if way < 0.1:
        del holder[key]
    elif way < 0.2 and isinstance(holder, list):
        holder.append(copy.deepcopy(node))
    elif way < 0.5 and isinstance(node, int):
        holder[key] = node + int(rng.choice([-1, 1, 2, 16, -8, 1 << 20, node or 1]))
    else:
        holder[key] = copy.deepcopy(HOSTILE_VALUES[rng.integers(len(HOSTILE_VALUES))])
