"""Blosc frames, version 1, which Zarr arrays are packed in by default: LZ4, zstd or zlib, bytes shuffled or not.

After the header description of c-blosc (README_CHUNK_FORMAT).
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pyarrow as pa
import zstandard

HEADER = 16
_SHUFFLE, _PLAIN, _BITS = 1, 2, 4
_LZ4, _ZLIB, _ZSTD = 1, 3, 4
_LARGEST = 1 << 30
_SMALLEST_PART = 128
"""Bytes below which the bytes of values are not packed apart."""


def unpack_blosc(data: bytes, size: int) -> bytes:
    """The ``size`` bytes that a frame holds. Raises ValueError where it is damaged or packed in another way."""
    if len(data) < HEADER:
        raise ValueError("the frame is cut off")
    _, _, flags, width, total, block, length = struct.unpack("<BBBBIII", data[:HEADER])
    if total != size or length > len(data) or total > _LARGEST or width == 0:
        raise ValueError("the header of the frame is damaged")
    if flags & _PLAIN:
        return data[HEADER : HEADER + total]
    codec = flags >> 5
    if codec not in (_LZ4, _ZLIB, _ZSTD):
        raise ValueError("packed by BloscLZ or Snappy; write it with LZ4, zstd or zlib")
    if flags & _BITS:
        raise ValueError("with shuffled bits; write it with shuffled bytes")
    if block == 0 or total == 0:
        return b""
    count = -(-total // block)
    starts = np.frombuffer(data, "<u4", count, HEADER).tolist()
    out = []
    for number, start in enumerate(starts):
        plain = min(block, total - number * block)
        whole = plain == block
        split = whole and not flags & 16 and 1 < width <= 16 and plain // width >= _SMALLEST_PART
        part = _block(data, start, plain, width if split else 1, codec)
        out.append(_unshuffled(part, width) if flags & _SHUFFLE and width > 1 else part)
    return b"".join(out)


def _block(data: bytes, start: int, size: int, parts: int, codec: int) -> bytes:
    """A block: its parts one behind the other, each with its length before it."""
    found = []
    for _ in range(parts):
        (length,) = struct.unpack_from("<i", data, start)
        start += 4
        packed = data[start : start + length]
        if length < 0 or len(packed) != length:
            raise ValueError("the frame is cut off")
        start += length
        found.append(packed if length == size // parts else _unpacked(packed, size // parts, codec))
    return b"".join(found)


def _unpacked(packed: bytes, size: int, codec: int) -> bytes:
    if codec == _ZSTD:
        return zstandard.ZstdDecompressor().decompress(packed, max_output_size=size)
    if codec == _ZLIB:
        return zlib.decompressobj().decompress(packed, size)
    unpacked: bytes = pa.decompress(packed, decompressed_size=size, codec="lz4_raw", asbytes=True)
    return unpacked


def _unshuffled(data: bytes, width: int) -> bytes:
    """Values whose first bytes lie together, then their second bytes, …; what is left over follows as it is."""
    whole = len(data) // width * width
    table = np.frombuffer(data, np.uint8, whole).reshape(width, -1)
    return table.T.tobytes() + data[whole:]
