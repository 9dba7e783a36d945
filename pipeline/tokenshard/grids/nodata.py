"""What stands in cells without a value, where that is not the fill value alone: several fill values, special NaNs.

b"": the bits of the fill value stand in all of them. Else one byte for the number of different bit patterns and the
patterns; where there are several, the number of each cell's pattern follows, compressed by zstd. A count of 0: too many
patterns to number; those of all cells follow one by one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from tokenshard.errors import FormatError

LEVEL = 19


def encode_nodata(stored: NDArray[Any], valid: NDArray[np.bool_], fill: Any) -> bytes:
    """What :func:`decode_nodata` needs beside the mask. ``fill``: the fill value, in the type of ``stored``."""
    unsigned = f"u{stored.dtype.itemsize}"
    bits = np.ascontiguousarray(stored).view(unsigned)[~valid]
    patterns, numbers = np.unique(bits, return_inverse=True)
    if not len(patterns) or (len(patterns) == 1 and patterns[0] == np.array(fill, stored.dtype).view(unsigned)):
        return b""
    if len(patterns) > 255:
        return bytes([0]) + _compressed(bits.tobytes())
    numbered = _compressed(numbers.astype(np.uint8).tobytes()) if len(patterns) > 1 else b""
    return bytes([len(patterns)]) + patterns.tobytes() + numbered


def decode_nodata(data: bytes, stored: NDArray[Any], valid: NDArray[np.bool_]) -> None:
    """Put the bits of cells without value into ``stored``. Raises FormatError where the data are not theirs."""
    if not data:
        return
    size, total = stored.dtype.itemsize, int((~valid).sum())
    unsigned, count = f"u{size}", data[0]
    if count == 0:
        found = np.frombuffer(_decompressed(data[1:], total * size), unsigned)
    else:
        head, rest = data[1 : 1 + count * size], data[1 + count * size :]
        if len(head) != count * size:
            raise FormatError("cells without value: cut off")
        patterns = np.frombuffer(head, unsigned)
        numbers = np.frombuffer(_decompressed(rest, total) if count > 1 else bytes(total), np.uint8)
        if total and int(numbers.max()) >= count:
            raise FormatError("cells without value: damaged")
        found = patterns[numbers]
    stored.view(unsigned)[~valid] = found


def _compressed(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=LEVEL).compress(data)


def _decompressed(data: bytes, size: int) -> bytes:
    try:
        found = zstandard.ZstdDecompressor().decompress(data, max_output_size=max(1, size))
    except zstandard.ZstdError as error:
        raise FormatError(f"cells without value: damaged ({error})") from error
    if len(found) != size:
        raise FormatError(f"cells without value: {len(found)} bytes instead of {size}")
    return found
