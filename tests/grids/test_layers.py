"""Layers of a tile come back as they were: values within their bound, cells without a value bit by bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tokenshard.errors import FormatError, InputError
from tokenshard.grids.bounded import Bound
from tokenshard.grids.layers import code_layer, decode_joined, decode_layer, shifted_to_shoal
from tokenshard.grids.nodata import decode_nodata, encode_nodata
from tokenshard.sources.grids.opened import valid_cells
from tokenshard.spec.grids import LayerEntry


def layer(dtype: str, *fills: Any) -> LayerEntry:
    return LayerEntry(name="z", role="elevation", dtype=dtype, fills=fills)


def same_bits(a: NDArray[Any], b: NDArray[Any]) -> bool:
    return a.dtype == b.dtype and a.tobytes() == b.tobytes()


@given(
    st.sampled_from(["int16", "uint16", "int32", "float32", "float64"]),
    st.integers(0, 300),
    st.integers(0, 2**32 - 1),
    st.floats(0, 1),
)
def test_bits_of_cells_without_value_are_exact(dtype: str, patterns: int, seed: int, share: float) -> None:
    draw = np.random.default_rng(seed)
    kind = np.dtype(dtype)
    values = np.frombuffer(draw.bytes(20 * 17 * kind.itemsize), kind).reshape(20, 17).copy()
    valid = draw.random((20, 17)) >= share
    if patterns:
        some = np.frombuffer(draw.bytes(patterns * kind.itemsize), kind)
        values[~valid] = some[draw.integers(0, patterns, int((~valid).sum()))]
    data = encode_nodata(values, valid, kind.type(0))
    found = np.where(valid, values, kind.type(0))
    decode_nodata(data, found, valid)
    assert same_bits(found, values)


def test_damaged_bits_of_cells_without_value_are_a_format_error() -> None:
    values = np.array([[1, 2], [3, 4]], np.int16)
    valid = np.zeros((2, 2), bool)
    data = encode_nodata(values, valid, np.int16(0))
    for damaged in (data[:3], data[:-2], bytes([9]) + data[1:], b"\0abc"):
        with pytest.raises(FormatError, match="cells without value"):
            decode_nodata(damaged, np.zeros((2, 2), np.int16), valid)


@pytest.mark.parametrize("dtype", ["int16", "uint8", "int32", "int64", "float32", "float64"])
def test_lossless_layers_keep_every_bit(dtype: str) -> None:
    draw = np.random.default_rng(3)
    values = np.rint(draw.normal(100, 20, (40, 50))).clip(0, 250).astype(dtype)
    own = layer(dtype, 251, 252)
    values[3:9, 4:30] = 251
    values[20, 20:25] = 252
    if values.dtype.kind == "f":
        values[30:35] = np.float32(-np.nan)
        values[36, 3] = np.inf
        values[0, 0] = -0.0
    coded = code_layer(values, valid_cells(values, own), own, Bound("lossless"))
    assert coded.max_error == 0
    for found, valid in (
        decode_layer(coded.stream, coded.nodata, own, values.shape),
        decode_joined(coded.joined(), own, values.shape),
    ):
        assert same_bits(found, values)
        assert np.array_equal(valid, valid_cells(values, own))


def test_decoded_values_are_never_taken_for_fill_values() -> None:
    draw = np.random.default_rng(4)
    for dtype in ("int16", "float32"):
        values = draw.integers(-9, 10, (32, 32)).astype(dtype)
        values[values == 0] = 1
        own = layer(dtype, 0)
        values[:4] = 0
        coded = code_layer(values, valid_cells(values, own), own, Bound("abs", 5.0))
        found, _ = decode_layer(coded.stream, coded.nodata, own, values.shape)
        assert np.array_equal(found == 0, values == 0)
        assert np.abs(found - values).max() <= 5


def test_whole_numbers_of_more_than_32_bits_are_refused() -> None:
    values = np.full((8, 8), 1 << 40, np.int64)
    with pytest.raises(InputError, match="more than 32 bits"):
        code_layer(values, np.ones((8, 8), bool), layer("int64"), Bound("lossless"))


@pytest.mark.parametrize("dtype", ["int16", "float32"])
@pytest.mark.parametrize(
    ("rising", "bound"),
    [(True, "lossless"), (False, "lossless"), (True, "abs:3"), (False, "abs:3"), (True, "tvu:1a,0.5")],
)
def test_shoalest_values_come_out_no_deeper_than_any_decoded_cell(dtype: str, rising: bool, bound: str) -> None:
    draw = np.random.default_rng(5)
    cells = np.cumsum(draw.normal(-5, 9, (64, 64)), axis=1).astype(dtype)
    blocks = cells.reshape(32, 2, 32, 2).swapaxes(1, 2).reshape(32, 32, 4)
    shoalest = blocks.max(axis=2) if rising else blocks.min(axis=2)
    wanted, valid = Bound.parse(bound), np.ones((32, 32), bool)
    moved, own = shifted_to_shoal(shoalest, valid, rising, wanted)
    found, _ = decode_layer(*_streams(moved, own), layer(dtype), (32, 32))
    decoded, _ = decode_layer(*_streams(cells, wanted), layer(dtype), (64, 64))
    decoded = decoded.reshape(32, 2, 32, 2).swapaxes(1, 2).reshape(32, 32, 4)
    sign = 1 if rising else -1
    assert (sign * found.astype(float) >= (sign * decoded.astype(float)).max(axis=2)).all()
    assert (sign * found.astype(float) >= sign * shoalest.astype(float)).all()


def _streams(values: NDArray[Any], bound: Bound) -> tuple[bytes, bytes]:
    coded = code_layer(values, np.ones(values.shape, bool), layer(values.dtype.name), bound)
    return coded.stream, coded.nodata
