"""Opens one grid in whatever format it is. A new format is a file of its own and a line here."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace

from tokenshard.errors import InputError, SpecError
from tokenshard.sources.grids.opened import OpenGrid
from tokenshard.spec.grids import GridSourceSpec
from tokenshard.store import Store

HDF5 = b"\x89HDF\r\n\x1a\n"
_BLOCK = 4 << 20


def open_grid(store: Store, name: str, spec: GridSourceSpec) -> OpenGrid:
    """The grid of a file or Zarr folder.

    Raises InputError where it is none, is damaged, or does not have what the spec asks for; SpecError where what reads
    it is not installed.
    """
    try:
        opened = _open(store, name, spec)
    except ImportError as error:
        raise SpecError(f"reading grids needs {error.name}: pip install 'tokenshard[grids]'") from error
    return replace(opened, entry=opened.entry.model_copy(update={"uri": name}))


def _open(store: Store, name: str, spec: GridSourceSpec) -> OpenGrid:
    if is_zarr(name):
        from tokenshard.sources.grids.cf import open_cf
        from tokenshard.sources.grids.zarr_arrays import open_zarr

        return open_cf(open_zarr(store, name), spec)
    head = store.read(name, 0, 8)
    if head[:3] == b"CDF":
        from tokenshard.sources.grids.cf import open_cf
        from tokenshard.sources.grids.netcdf3 import open_netcdf3

        return open_cf(open_netcdf3(store.open(name), store.size(name)), spec)
    if head == HDF5:
        return _open_hdf5(store, name, spec)
    if not head:
        raise InputError("an empty file; copy it again")
    from tokenshard.sources.grids.raster import open_raster

    return open_raster(store, name, spec)


def _open_hdf5(store: Store, name: str, spec: GridSourceSpec) -> OpenGrid:
    from tokenshard.sources.grids.bag import ROOT, open_bag, open_hdf5
    from tokenshard.sources.grids.s102 import COVERAGE, open_s102

    with open_hdf5(store, name) as file:
        names = set(file)
    if ROOT in names:
        return open_bag(store, name, spec)
    if COVERAGE in names:
        return open_s102(store, name, spec)
    from tokenshard.sources.grids.cf import open_cf
    from tokenshard.sources.grids.netcdf4 import open_netcdf4

    return open_cf(open_netcdf4(store.open(name)), spec)


def is_zarr(name: str) -> bool:
    return name.rstrip("/").lower().endswith(".zarr")


def file_sha256(store: Store, names: Iterable[str]) -> tuple[int, str]:
    """Bytes of some files, and the SHA-256 of their content back to back."""
    total, digest = 0, hashlib.sha256()
    for name in names:
        with store.open(name) as file:
            while block := file.read(_BLOCK):
                digest.update(block)
                total += len(block)
    return total, digest.hexdigest()
