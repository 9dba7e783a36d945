"""Bytes of a tile's header: variable-length integers and float64, read with every length checked."""

from __future__ import annotations

import struct

from tokenshard.errors import FormatError

DAMAGED = "the bounded stream of a tile is damaged: {}; restore the shard from a copy or convert its source again"


class Reader:
    """Fields of a stream in order; FormatError where it ends too early."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        """The next ``size`` bytes."""
        if size > len(self.data) - self.at:
            raise FormatError(DAMAGED.format("it ends within a field"))
        self.at += size
        return self.data[self.at - size : self.at]

    def unsigned(self) -> int:
        """An integer below 2**64: seven bits a byte, low ones first."""
        value = 0
        for shift in range(0, 70, 7):
            byte = self.take(1)[0]
            value |= (byte & 127) << shift
            if byte < 128 and value < 1 << 64:
                return value
        raise FormatError(DAMAGED.format("an integer is too long"))

    def signed(self) -> int:
        """An integer whose lowest bit is its sign."""
        value = self.unsigned()
        return ~(value >> 1) if value & 1 else value >> 1

    def real(self) -> float:
        """A float64."""
        return float(struct.unpack("<d", self.take(8))[0])

    def section(self) -> bytes:
        """Bytes behind their length."""
        return self.take(self.unsigned())


def unsigned(value: int) -> bytes:
    """What :meth:`Reader.unsigned` reads."""
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def signed(value: int) -> bytes:
    """What :meth:`Reader.signed` reads."""
    return unsigned(~value << 1 | 1 if value < 0 else value << 1)


def real(value: float) -> bytes:
    """What :meth:`Reader.real` reads."""
    return struct.pack("<d", value)


def section(data: bytes) -> bytes:
    """What :meth:`Reader.section` reads."""
    return unsigned(len(data)) + data
