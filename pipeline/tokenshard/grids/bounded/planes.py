"""A plane of integers ⇄ bytes: the scan and the predictors that suit it, coded from the prior."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tokenshard.errors import FormatError
from tokenshard.grids.bounded import wire
from tokenshard.grids.bounded.binary import squash_table, stretch_table
from tokenshard.grids.bounded.cells import distribution_table
from tokenshard.grids.bounded.predictors import LARGEST, OWN_BITS, choose, unguided
from tokenshard.grids.bounded.prior import MODES, Prior, State
from tokenshard.grids.bounded.scan import CAUSAL, CENTRES, NEAR_OFFSETS, NEAR_WEIGHTS, OFFSETS, TAPS, code_plane
from tokenshard.grids.bounded.values import HIGHEST, Plane

LEVELS = 5
"""Halvings of the hierarchical scan."""
REPEATS = 64
"""What a stream calls the causal scan that asks for copies."""
FOLLOWS = 128
"""What is added to the name of a scan that has a guide."""
SHARE_OF_COPIES = 0.2
"""Cells that must equal the one to their left for it to be tried."""


@dataclass(frozen=True)
class Scan:
    """How a plane is coded: ``levels`` 0 for the causal scan, ``top`` the largest number, ``slack`` what each may be
    wrong by, ``repeats`` whether copies are asked for, ``predictors`` int64 ``[KINDS, TAPS]``."""

    levels: int
    top: int
    slack: int
    repeats: bool
    predictors: Plane


@dataclass(frozen=True)
class CodedPlane:
    """Bytes of a plane, what scanned it, and what a decoder gets, int64 ``[h, w]``."""

    data: bytes
    predictor: str
    decoded: Plane


def encode_plane(
    plane: Plane, valid: NDArray[np.bool_], slack: int, prior: Prior, guide: Plane | None = None
) -> CodedPlane:
    """The smaller of both scans of ``plane`` (``[h, w]``, valid cells from 0 on), each number to within ``slack``.

    ``guide``: another guess of the plane that the decoder will have too.
    """
    top = int(plane[valid].max(initial=0))
    guide = None if guide is None else np.clip(guide, 0, top)
    coded = [_encode(plane, valid, levels, slack, top, prior, guide) for levels in (0, LEVELS)]
    return min(coded, key=lambda one: len(one.data))


def decode_plane(reader: wire.Reader, valid: NDArray[np.bool_], prior: Prior, guide: Plane | None = None) -> Plane:
    """The plane of the valid cells, int64 ``[h, w]``, 0 elsewhere."""
    levels, slack, top, number = (reader.unsigned() for _ in range(4))
    if guide is not None:
        levels, guide = levels - FOLLOWS, np.clip(guide, 0, top)
    repeats, levels = levels == REPEATS, 0 if levels == REPEATS else levels
    if (
        levels not in (0, LEVELS)
        or (repeats and slack)
        or slack > HIGHEST
        or top > HIGHEST
        or number >> 1 >= len(prior.predictors)
    ):
        raise FormatError(wire.DAMAGED.format("its plane is coded in an unknown way"))
    own = None
    if number & 1:
        own = np.clip([[reader.signed() for _ in range(TAPS)] for _ in range(2 if levels else 1)], -LARGEST, LARGEST)
    data = np.frombuffer(bytearray(reader.section()), np.uint8)
    plane = np.zeros(valid.shape, np.int64)
    code(
        plane,
        valid,
        Scan(levels, top, slack, repeats, _weights(number >> 1, own, prior, guide is not None)),
        _state(prior, levels),
        data,
        False,
        guide,
    )
    return plane


def _encode(
    plane: Plane,
    valid: NDArray[np.bool_],
    levels: int,
    slack: int,
    top: int,
    prior: Prior,
    guide: Plane | None,
) -> CodedPlane:
    number, own = choose(plane, valid, levels, slack, prior.predictors, guide)
    repeats = levels == 0 and slack == 0 and alike(plane, valid) > SHARE_OF_COPIES
    scan = Scan(levels, top, slack, repeats, _weights(number, own, prior, guide is not None))
    size, room = -1, int(valid.sum()) * 2 + 64
    while size < 0 or size > room:
        room = max(size, room)
        data = np.zeros(room, np.uint8)
        decoded = np.where(valid, plane, 0)
        size = code(decoded, valid, scan, _state(prior, levels), data, True, guide)
    name = (REPEATS if repeats else levels) + (0 if guide is None else FOLLOWS)
    fields = (name, slack, top, number << 1 | int(own is not None))
    header = b"".join(map(wire.unsigned, fields)) + b"".join(
        wire.signed(int(weight)) for weight in (own.flat if own is not None else ())
    )
    return CodedPlane(header + wire.section(data[:size].tobytes()), MODES[min(levels, 1)], decoded)


def alike(plane: Plane, valid: NDArray[np.bool_]) -> float:
    """Share of the cells beside a valid one that equal it."""
    both = valid[:, 1:] & valid[:, :-1]
    return float(np.mean((plane[:, 1:] == plane[:, :-1])[both])) if both.any() else 0.0


def _weights(number: int, own: Plane | None, prior: Prior, guided: bool) -> Plane:
    """The predictors of a scan, int64 ``[KINDS, TAPS]``: a set of the prior, a plane's own in its finest pass."""
    weights: Plane = unguided(prior.predictors[number]) if guided else prior.predictors[number].copy()
    if own is not None:
        first = CENTRES if len(own) == 2 else CAUSAL
        weights[first : first + len(own)] = own << 16 - OWN_BITS
    return weights


def _state(prior: Prior, levels: int) -> State:
    return prior.states[MODES[min(levels, 1)]].copy()


def code(
    plane: Plane,
    valid: NDArray[np.bool_],
    scan: Scan,
    state: State,
    data: NDArray[np.uint8],
    encoding: bool,
    guide: Plane | None = None,
) -> int:
    """Code a plane in place, with a state that is changed; returns the bytes that takes, which may be more than
    ``data`` has."""
    tables = (squash_table(), stretch_table(), distribution_table())
    geometry = (OFFSETS, NEAR_OFFSETS, NEAR_WEIGHTS)
    model = (state.weights, *state.counters)
    adapting = (scan.predictors, scan.predictors.copy(), state.ratios)
    cells, fields = valid.astype(np.uint8), (scan.levels, scan.top, scan.slack, scan.repeats)
    beside = np.zeros((0, 0), np.int64) if guide is None else guide
    return int(code_plane(plane, cells, *fields, encoding, data, tables, geometry, adapting, model, beside))
