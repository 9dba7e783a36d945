"""Tiles of the bounded layer: every bound holds, bits come back, damage is refused."""

from __future__ import annotations

import hashlib
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from tokenshard.errors import FormatError, InputError, SpecError
from tokenshard.grids.bounded import Bound, decode_tile, encode_tile
from tokenshard.grids.bounded.binary import squash_table, stretch_table
from tokenshard.grids.bounded.bound import ORDERS
from tokenshard.grids.bounded.cells import distribution_table
from tokenshard.grids.bounded.prior import FILE

SHAPES = array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=24)
TILES = st.one_of(
    arrays(np.float32, SHAPES, elements=st.floats(width=32)),
    arrays(np.float64, SHAPES, elements=st.floats(width=64, allow_subnormal=True)),
    arrays(np.float32, SHAPES, elements=st.sampled_from([np.nan, -0.0, 0.0, 1e-45, -12.5, 3.25, 1e6])),
    arrays(np.float64, SHAPES, elements=st.integers(-400, 400).map(lambda k: 980_000 + k / 100)),
    arrays(np.int16, SHAPES, elements=st.integers(-32768, 32767)),
    arrays(np.int32, SHAPES, elements=st.integers(-(2**31), 2**31 - 1)),
    arrays(np.uint8, SHAPES, elements=st.integers(0, 3)),
)
BOUNDS = st.sampled_from(["lossless", "abs:0.05", "abs:0.5", "abs:5", "abs:25", "tvu:1a,0.1", "tvu:special,0.05"])


def same_bits(a: NDArray[Any], b: NDArray[Any]) -> bool:
    return a.dtype == b.dtype and a.tobytes() == b.tobytes()


def terrain(side: int = 96, seed: int = 0) -> NDArray[np.float64]:
    """A surface like a sea floor: -3,000 m on the whole, rough at all scales."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    frequency[0, 0] = 1
    waves = (rng.normal(size=frequency.shape) + 1j * rng.normal(size=frequency.shape)) / frequency**1.9
    surface = np.fft.irfft2(waves, s=(side, side))
    return surface / surface.std() * 800 - 3000


def check_bound(z: NDArray[Any], text: str, nodata: float | None = None) -> None:
    """Encode, decode, and hold every valid cell against the bound in float64 (twice that range where it could
    overflow)."""
    tile = encode_tile(z, text, nodata=nodata)
    decoded, valid = decode_tile(tile.stream, z.shape)
    assert decoded.dtype == z.dtype
    empty = np.zeros(z.shape, bool) if nodata is None else z == z.dtype.type(nodata)
    empty |= np.isnan(z) if z.dtype.kind == "f" else False
    assert (valid == ~empty).all()
    bound, exact, found = Bound.parse(text), z[valid], decoded[valid]
    if bound.kind == "lossless" or not np.isfinite(exact).all():
        assert same_bits(found, exact)
        return
    wide, back = exact.astype(np.longdouble), found.astype(np.longdouble)
    most = bound.allowed(exact).astype(np.longdouble) * (1 + 1e-9)
    if bound.kind == "abs" and z.dtype.kind == "f":
        most += np.spacing(np.abs(exact))
    assert (np.abs(wide - back) <= most).all()
    assert tile.max_error == pytest.approx(float(np.abs(wide - back).max(initial=0)))


@settings(max_examples=500, deadline=None)
@given(TILES, BOUNDS)
def test_every_bound_holds_on_any_grid(z: NDArray[Any], text: str) -> None:
    with np.errstate(over="ignore"):
        check_bound(z, text)


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8", ">i2", ">f4"])
def test_all_dtypes_come_back_bit_for_bit_without_loss(dtype: str) -> None:
    z = terrain(40).astype(np.float64)
    z = (z % 100 if dtype[-1] == "1" else np.abs(z)).astype(dtype)
    tile = encode_tile(z, "lossless")
    decoded, valid = decode_tile(tile.stream)
    assert valid.all()
    assert same_bits(decoded, z.astype(z.dtype.newbyteorder("=")))
    assert tile.max_error == 0


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (2, 2), (3, 97), (64, 64)])
@pytest.mark.parametrize("text", ["lossless", "abs:5", "tvu:2,0.2"])
def test_thin_and_ragged_tiles_keep_the_bound(shape: tuple[int, int], text: str) -> None:
    check_bound(terrain(320)[: shape[0], : shape[1]].astype(np.float32), text)


def test_constant_and_empty_tiles_take_a_few_bytes() -> None:
    constant = encode_tile(np.full((256, 256), -12.25, np.float32), "abs:0.1")
    assert len(constant.stream) < 150
    check_bound(np.full((256, 256), -12.25, np.float32), "lossless")
    for z, nodata in ((np.full((256, 256), np.nan), None), (np.full((256, 256), -32767, np.int16), -32767)):
        tile = encode_tile(z, "abs:1", nodata=nodata)
        decoded, valid = decode_tile(tile.stream)
        assert same_bits(decoded, z)
        assert not valid.any()
        assert len(tile.stream) < 32
        assert (tile.predictor, tile.bits_per_cell) == ("none", 0)


def test_nodata_is_restored_and_never_coded() -> None:
    z = terrain(96).astype(np.float32)
    y, x = np.mgrid[:96, :96]
    disc = (y - 40) ** 2 + (x - 50) ** 2 < 30**2
    z[~disc] = 1e6
    tile = encode_tile(z, "abs:1", nodata=1e6)
    decoded, valid = decode_tile(tile.stream)
    assert (valid == disc).all()
    assert same_bits(decoded[~disc], z[~disc])
    assert np.abs(decoded - z)[disc].max() <= 1
    assert len(tile.stream) < len(encode_tile(np.where(disc, z, z[40, 50]), "abs:1").stream) * 1.3
    given = encode_tile(z, "abs:1", valid=disc)
    decoded, valid = decode_tile(given.stream)
    assert (valid == disc).all()
    assert np.isnan(decoded[~disc]).all()


def test_nan_beside_a_fill_value_stays_nan_with_its_own_bits() -> None:
    z = terrain(40).astype(np.float32)
    z[:10], z[30:, 5:20] = 1e6, np.uint32(0xFFC00001).view(np.float32)
    for nodata in (1e6, None):
        for text in ("lossless", "abs:1"):
            decoded, valid = decode_tile(encode_tile(z, text, nodata=nodata).stream)
            empty = np.isnan(z) | (z == nodata)
            assert (valid == ~empty).all()
            assert same_bits(decoded[empty], z[empty])
    only_empty = np.where(np.isnan(z), z, np.float32(1e6))
    decoded, valid = decode_tile(encode_tile(only_empty, "abs:1", nodata=1e6).stream)
    assert same_bits(decoded, only_empty)
    assert not valid.any()


def test_decimal_lattices_are_found_and_cost_less_than_their_floats() -> None:
    z = (np.round(terrain(128, 3) * 10) / 100).astype(np.float32)
    lattice = encode_tile(z, "lossless")
    assert lattice.mapping in ("lattice", "table")
    rough = encode_tile(z + np.float32(1e-4) * np.random.default_rng(0).random(z.shape).astype(np.float32), "lossless")
    assert rough.mapping == "bits"
    assert len(lattice.stream) < 0.8 * len(rough.stream)


def test_values_that_repeat_are_coded_as_copies() -> None:
    coarse = np.round(terrain(64, 5)).astype(np.int16)
    z = coarse[np.arange(128) // 2][:, np.arange(128) // 2]
    assert len(encode_tile(z, "lossless").stream) < 1.1 * len(encode_tile(coarse, "lossless").stream)


def test_uncertainty_bounds_follow_the_depth() -> None:
    z = np.linspace(50, -9000, 128 * 128).reshape(128, 128) + terrain(128) / 50
    for dtype in (np.float64, np.float32, np.int16):
        deep = z.astype(dtype)
        tile = encode_tile(deep, "tvu:1a,0.1")
        error = np.abs(decode_tile(tile.stream)[0].astype(np.float64) - deep)
        a, b = ORDERS["1a"]
        share = error / np.sqrt(a * a + (b * np.maximum(-deep.astype(np.float64), 0)) ** 2)
        assert share.max() <= 0.1
        assert error.max() > 2
    assert len(encode_tile(z, "tvu:1a,0.1").stream) < 0.7 * len(encode_tile(z, "abs:0.05").stream)


def test_a_bound_below_the_rounding_of_the_dtype_ends_lossless() -> None:
    z = (980_000 + terrain(32)).astype(np.float32)
    tile = encode_tile(z, "abs:0.001")
    assert same_bits(decode_tile(tile.stream)[0], z)


def test_wrong_bounds_and_tiles_are_refused_with_a_remedy() -> None:
    for text in ("abs", "abs:-1", "abs:nan", "tvu:1c,0.1", "tvu:1a", "tvu:1a,0", "tvu:1a,2", "lossless:1", "near:3"):
        with pytest.raises(SpecError, match=r"tvu:1a,0\.1"):
            Bound.parse(text)
    assert [str(Bound.parse(text)) for text in ("abs:0.05", "tvu:1a,0.1")] == ["abs:0.05", "tvu:1a,0.1"]
    with pytest.raises(InputError, match="cast it"):
        encode_tile(np.zeros((2, 2), np.int64), "lossless")
    with pytest.raises(InputError, match="two dimensions"):
        encode_tile(np.zeros(4, np.int16), "lossless")
    with pytest.raises(InputError, match="fill value"):
        encode_tile(np.zeros((2, 2), np.int16), "lossless", nodata=1e6)


# -- the stream ------------------------------------------------------------------------------------------------------


def streams() -> list[bytes]:
    z = terrain(24)
    holes = np.where(terrain(24, 1) > -3000, z, np.nan)
    ints = np.round(z).astype(np.int16)
    coarse = (ints // 100 * 100 + (ints % 3)).astype(np.float32)
    made = [encode_tile(z, "abs:5"), encode_tile(holes, "tvu:1a,0.1"), encode_tile(ints, "lossless")]
    made += [encode_tile(coarse, "lossless"), encode_tile(z, "lossless"), encode_tile(ints, "tvu:2,0.5")]
    assert {tile.mapping for tile in made} == {"steps", "rungs", "lattice", "table", "bits"}
    return [tile.stream for tile in made]


def test_any_changed_or_cut_stream_is_refused() -> None:
    for stream in streams():
        for at in range(1, len(stream), max(len(stream) // 40, 1)):
            changed = bytearray(stream)
            changed[at] ^= 16
            with pytest.raises(FormatError):
                decode_tile(bytes(changed))
            with pytest.raises(FormatError):
                decode_tile(stream[:at])
    with pytest.raises(FormatError, match="update"):
        decode_tile(b"\x09" + streams()[0][1:])
    with pytest.raises(FormatError, match="shape"):
        decode_tile(streams()[0], (24, 25))


def test_forged_streams_with_a_right_checksum_never_end_in_anything_but_a_grid_or_a_format_error() -> None:
    rng = np.random.default_rng(0)
    for stream in streams():
        for _ in range(120):
            body = bytearray(stream[:-4])
            for _ in range(int(rng.integers(1, 4))):
                # Fields stand at the front: half of the changes go there.
                end = min(48, len(body)) if rng.random() < 0.5 else len(body)
                body[int(rng.integers(1, end))] = int(rng.integers(256))
            if rng.random() < 0.2:
                del body[int(rng.integers(2, len(body))) :]
            forged = bytes(body) + zlib.crc32(bytes(body)).to_bytes(4, "little")
            try:
                z, valid = decode_tile(forged, (24, 24))
            except FormatError:
                continue
            assert z.shape == valid.shape == (24, 24)


def test_a_forged_size_is_refused_before_memory_is_taken() -> None:
    body = bytes([1, 6]) + b"\xff\xff\xff\xff\x0f" * 2 + b"\x00"
    with pytest.raises(FormatError, match="shape"):
        decode_tile(body + zlib.crc32(body).to_bytes(4, "little"))


def test_tables_and_prior_are_those_of_the_format() -> None:
    """A change here is a new version of the stream: older files would decode to something else."""
    digests = [
        hashlib.sha256(table.astype("<i8").tobytes()).hexdigest()[:16]
        for table in (squash_table(), stretch_table(), distribution_table())
    ]
    with np.load(FILE) as arrays:
        prior = hashlib.sha256(b"".join(arrays[name].astype("<i8").tobytes() for name in sorted(arrays.files)))
    assert [*digests, prior.hexdigest()[:16]] == GOLDEN


GOLDEN = ["9258cf039c409762", "c00d9c525580ed67", "fd640ff237e64b51", "15a189ffef8a278a"]

STREAMS = {"lossless": "b06feafa29ea5409", "abs:3": "533bad7df76b62c5", "tvu:1a,0.1": "51a9a4b97bc7d403"}


def whole_numbers(side: int = 80) -> NDArray[np.int32]:
    """A rough surface by integer arithmetic alone: the same on every machine."""
    noise = np.random.default_rng(7).integers(-9, 10, (side, side))
    rough = np.cumsum(np.cumsum(noise, 0), 1) // 8
    return (rough - rough.max() - 200).astype(np.int32)


@pytest.mark.parametrize(("text", "digest"), STREAMS.items())
def test_streams_are_the_same_bytes_on_every_machine(text: str, digest: str) -> None:
    z = whole_numbers()
    stream = encode_tile(z / 4 if text.startswith("tvu") else z, text).stream
    assert hashlib.sha256(stream).hexdigest()[:16] == digest


# -- real grids ------------------------------------------------------------------------------------------------------


@pytest.mark.data
def test_a_survey_with_empty_cells_keeps_its_bounds(data_dir: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    with rasterio.open(data_dir / "bathymetry" / "F00788_SR_8m.tif") as raster:
        z, nodata = raster.read(1), raster.nodata
    for text in ("lossless", "abs:0.05", "abs:0.5", "tvu:special,0.1"):
        check_bound(z, text, nodata)
    assert encode_tile(z, "abs:0.05", nodata=nodata).bits_per_cell < 4
