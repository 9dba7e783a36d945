"""NetCDF 4: arrays in HDF5 with named dimensions."""

from __future__ import annotations

from functools import partial
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from tokenshard.errors import InputError
from tokenshard.sources.grids.arrays import ArrayFile, Variable

CHUNK_CACHE = 64 << 20
"""Bytes of decompressed chunks kept of each array: tiles of a row share them."""


def open_netcdf4(file: BinaryIO) -> ArrayFile:
    """The arrays at the root of a file. Raises InputError where it is damaged or ends too early.

    Windows are read by h5py itself: h5netcdf opens an array anew for each, and its chunks would not be kept.
    """
    import h5netcdf
    import h5py

    try:
        opened = h5netcdf.File(file, "r", phony_dims="sort")
        arrays = h5py.File(file, "r", rdcc_nbytes=CHUNK_CACHE)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(f"damaged or truncated NetCDF file ({_reason(error)}); copy it again") from error
    variables = {}
    for name, variable in opened.variables.items():
        kind = variable.dtype
        if not isinstance(kind, np.dtype):
            continue  # strings
        variables[name] = Variable(
            name,
            tuple(variable.dimensions),
            tuple(variable.shape),
            kind.newbyteorder("="),
            dict(variable.attrs),
            partial(_read, arrays[name]),
        )

    def close() -> None:
        opened.close()
        arrays.close()
        file.close()

    return ArrayFile("netcdf4", variables, dict(opened.attrs), close)


def _read(variable: Any, window: tuple[slice, ...]) -> NDArray[Any]:
    try:
        found: NDArray[Any] = np.asarray(variable[window])
    except (OSError, RuntimeError) as error:
        raise InputError(f"damaged or truncated NetCDF file ({_reason(error)}); copy it again") from error
    return found.astype(found.dtype.newbyteorder("="), copy=False)


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
