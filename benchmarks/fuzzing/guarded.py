"""Arrays that end where a page begins that may be neither read nor written: to touch what follows ends the process."""

from __future__ import annotations

import ctypes
import mmap
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

_Scalar = TypeVar("_Scalar", bound=np.generic)
_PROT_NONE = 0
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def guarded(array: NDArray[_Scalar]) -> NDArray[_Scalar]:
    """A copy of a flat array whose last byte is the last of its page."""
    pages = -(-array.nbytes // mmap.PAGESIZE)
    memory = mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE)
    whole = np.frombuffer(memory, np.uint8)
    end = pages * mmap.PAGESIZE
    if _libc.mprotect(whole.ctypes.data + end, mmap.PAGESIZE, _PROT_NONE):
        raise OSError(ctypes.get_errno(), "mprotect failed")
    copy = whole[end - array.nbytes : end].view(array.dtype)
    copy[:] = array
    return copy
