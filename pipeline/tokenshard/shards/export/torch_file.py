"""One matrix as a file that `torch.load(…, weights_only=True)` reads, made without torch.

A zip of stored members: the values, and the few pickle opcodes that say where they are (protocol 2). Source: PyTorch,
`torch/serialization.py`. Only written here, never loaded.
"""

from __future__ import annotations

import io
import struct
import zipfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

_DATE = (1980, 1, 1, 0, 0, 0)


def torch_matrix(matrix: NDArray[Any], name: str) -> bytes:
    """The file of a float32 tensor [rows, columns]; ``name``: the folder of its members."""
    values = np.ascontiguousarray(matrix, "<f4")
    rows, columns = values.shape
    pickled = b"".join(
        [
            b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((",  # the function, and two tuples begun: arguments, storage
            *(_text("storage"), b"ctorch\nFloatStorage\n", _text("0"), _text("cpu"), _int(values.size)),
            b"tQ",  # the storage with that description
            *(_int(0), _int(rows), _int(columns), b"\x86", _int(columns), _int(1), b"\x86"),  # offset, shape, strides
            b"\x89ccollections\nOrderedDict\n)RtR.",  # no gradient, no hooks: call
        ]
    )
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for member, data in {
            "data.pkl": pickled,
            "byteorder": b"little",
            "data/0": values.tobytes(),
            "version": b"3\n",
        }.items():
            archive.writestr(zipfile.ZipInfo(f"{name}/{member}", _DATE), data)
    return file.getvalue()


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def _int(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)
