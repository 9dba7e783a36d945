"""Files of named arrays (NetCDF 3 and 4, Zarr) as the CF reader sees them. One file a backend."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Variable:
    """A named array; ``read`` takes one slice (start and stop, no step) an axis and gives stored values."""

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    attributes: Mapping[str, Any]
    read: Callable[[tuple[slice, ...]], NDArray[Any]]

    def whole(self) -> NDArray[Any]:
        return self.read(tuple(slice(0, size) for size in self.shape))


@dataclass(frozen=True)
class ArrayFile:
    """An opened file of arrays."""

    form: Literal["netcdf3", "netcdf4", "zarr"]
    variables: Mapping[str, Variable]
    attributes: Mapping[str, Any]
    close: Callable[[], None] = field(default=lambda: None)
