"""What else keeps a largest error: SZ3, LERC, ZFP, and lossless image codecs on quantised integers.

Each takes a grid and its valid cells and returns bytes and what they decode to. SZ3, ZFP and JPEG XL know no empty
cells: they get the nearest valid value there, and the bytes of our bitmap are added to theirs. They come with the extra
``bench``, and are imported where they are used.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from tokenshard.grids.bounded.mask import encode_mask
from tokenshard.grids.bounded.quantise import lattice

Grid = NDArray[Any]
Valid = NDArray[np.bool_]
Peer = Callable[[Grid, Valid, float], tuple[int, Grid] | None]


def filled(z: Grid, valid: Valid) -> Grid:
    """Empty cells take the value of the nearest one that is not."""
    if valid.all():
        return z
    from scipy import ndimage

    rows, columns = ndimage.distance_transform_edt(~valid, return_distances=False, return_indices=True)
    nearest: Grid = z[rows, columns]
    return nearest


def mask_bytes(valid: Valid) -> int:
    return 0 if valid.all() else len(encode_mask(valid))


def _zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=19).compress(data)


def sz3(z: Grid, valid: Valid, most: float) -> tuple[int, Grid]:
    import pysz

    config = pysz.szConfig()
    config.errorBoundMode = pysz.szErrorBoundMode.ABS
    config.absErrorBound = most
    source = np.ascontiguousarray(filled(z, valid).astype(np.float64 if z.dtype == np.float64 else np.float32))
    data, _ = pysz.sz.compress(source, config)
    decoded, _ = pysz.sz.decompress(data, source.dtype, source.shape)
    return data.nbytes + mask_bytes(valid), decoded


def zfp(z: Grid, valid: Valid, most: float) -> tuple[int, Grid]:
    """With the loosest tolerance, by factors of two, that still keeps the bound: its own promise is cautious."""
    import zfpy

    source = np.ascontiguousarray(filled(z, valid).astype(np.float64 if z.dtype == np.float64 else np.float32))
    for factor in (4, 2, 1):
        data = zfpy.compress_numpy(source, tolerance=factor * most)
        decoded = zfpy.decompress_numpy(data)
        if np.abs(decoded.astype(np.float64) - source)[valid].max() <= most:
            break
    return len(data) + mask_bytes(valid), decoded


def lerc_zstd(z: Grid, valid: Valid, most: float) -> tuple[int, Grid]:
    import lerc

    source = np.where(valid, z, 0).astype(z.dtype)
    mask = None if valid.all() else valid
    size = lerc.encode(source, 1, mask is not None, mask, most, 0, False)[1]
    data = bytes(lerc.encode(source, 1, mask is not None, mask, most, size, False)[2])
    return len(_zstd(data)), lerc.decode(data, False)[1]


def jpeg_xl(z: Grid, valid: Valid, most: float) -> tuple[int, Grid] | None:
    """Quantised as ours, on the lattice of the source where that is wider; None where 16 bits are too few."""
    import imagecodecs

    source = filled(z, valid).reshape(-1)
    found = lattice(source)
    wide, step = 0, 0.0
    if found:
        step = found[0].stride / found[0].denominator
        wide = 2 * math.floor(most / step * (1 + 1e-9)) + 1
    if found and (z.dtype.kind in "iu" or wide * step >= 2 * most * (1 - 1e-9)):
        number = found[1] // wide
        decoded = found[0].values(number * wide + wide // 2, z.dtype)
    else:
        low = float(source.min())
        number = np.rint((source.astype(np.float64) - low) / (2 * most)).astype(np.int64)
        decoded = number * (2 * most) + low
    if number.max() >= 65536:
        return None
    data = imagecodecs.jpegxl_encode(number.reshape(z.shape).astype(np.uint16), lossless=True, effort=7)
    return len(data) + mask_bytes(valid), decoded.reshape(z.shape)


def shuffled_zstd(z: Grid) -> int:
    """The bytes of all values, plane by plane, under zstd 19; lossless."""
    planes = np.ascontiguousarray(z).view(np.uint8).reshape(-1, z.itemsize).T
    return len(_zstd(planes.tobytes()))


MODULES = {"LERC+zstd": "lerc", "ZFP": "zfpy", "SZ3": "pysz", "JPEG XL": "imagecodecs"}
PEERS: dict[str, Peer] = {"LERC+zstd": lerc_zstd, "ZFP": zfp, "SZ3": sz3, "JPEG XL": jpeg_xl}


def installed() -> dict[str, Peer]:
    """The peers that can run here."""
    return {name: peer for name, peer in PEERS.items() if find_spec(MODULES[name]) is not None}
