"""Where the column chunks of a Parquet file lie, read from its footer (Thrift compact protocol).

Arrow ends the process on some malformed footers when asked for column metadata (its C++ exceptions are not caught
there), so shards from strangers are looked at with these few lines, which can only raise FormatError.
Source: parquet-format `parquet.thrift`, and the Thrift compact protocol specification.
"""

from __future__ import annotations

from typing import Any

from tokenshard.errors import FormatError
from tokenshard.shards.bounds import require

Span = tuple[int, int]
"""Byte range [start, end)."""
MAX_DEPTH = 16
_ROW_GROUPS, _COLUMNS, _META_DATA = 4, 1, 3
_PAGE_SIZE, _PAGE_CRC = 3, 4
_PATH, _COMPRESSED_SIZE, _DATA_PAGE, _DICTIONARY_PAGE = 3, 7, 9, 11


def column_chunks(footer: bytes) -> list[dict[str, Span]]:
    """For each row group the byte range of every top-level column, from the bytes of the Parquet footer.

    Raises FormatError when the footer is damaged.
    """
    try:
        metadata = _Thrift(footer).struct(0)
    except IndexError as error:
        raise FormatError("Parquet metadata is cut off") from error
    groups = _field(metadata, _ROW_GROUPS, list)
    return [_spans(_field(group, _COLUMNS, list)) for group in groups]


def page_at(data: bytes) -> tuple[int, int, int | None]:
    """(start, end, CRC) of the content of the page whose header ``data`` begins with; None for a page without a CRC.

    Raises FormatError when the header is damaged, or the page longer than the data.
    """
    reader = _Thrift(data)
    try:
        header = reader.struct(0)
    except IndexError as error:
        raise FormatError("page header is cut off") from error
    end = reader.place + _field(header, _PAGE_SIZE, int)
    require(reader.place <= end <= len(data), "a page longer than its column chunk")
    crc = header.get(_PAGE_CRC)
    return reader.place, end, crc & 0xFFFFFFFF if isinstance(crc, int) else None


def _spans(columns: list[Any]) -> dict[str, Span]:
    spans: dict[str, Span] = {}
    for column in columns:
        described = _field(column, _META_DATA, dict)
        path = _field(described, _PATH, list)
        require(bool(path) and isinstance(path[0], bytes), "column chunk without a name")
        name = path[0].decode(errors="replace")
        start = _field(described, _DATA_PAGE, int)
        if isinstance(dictionary := described.get(_DICTIONARY_PAGE), int):
            start = min(start, dictionary)
        end = start + _field(described, _COMPRESSED_SIZE, int)
        require(0 <= start <= end, "column chunk with a negative place or size")
        before = spans.get(name, (start, end))
        spans[name] = min(before[0], start), max(before[1], end)
    return spans


def _field(struct: Any, number: int, kind: type[Any]) -> Any:
    value = struct.get(number) if isinstance(struct, dict) else None
    require(isinstance(value, kind), f"field {number} of the Parquet metadata is missing")
    return value


class _Thrift:
    """Reads a struct as a dict from field numbers to values; every read is bounded by the data and by a depth."""

    def __init__(self, data: bytes) -> None:
        self._data, self._place = data, 0

    @property
    def place(self) -> int:
        """Where the next value begins."""
        return self._place

    def struct(self, depth: int) -> dict[int, Any]:
        require(depth < MAX_DEPTH, "Parquet metadata nested too deeply")
        fields: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._zigzag()
            kind = head & 15
            # a boolean field has its value in the type
            fields[number] = kind == 1 if kind in (1, 2) else self._value(kind, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        match kind:
            case 1 | 2 | 3:
                return self._byte()
            case 4 | 5 | 6:
                return self._zigzag()
            case 7:
                return self._bytes(8)
            case 8:
                return self._bytes(self._varint())
            case 9 | 10:
                return self._list(depth)
            case 12:
                return self.struct(depth + 1)
        raise FormatError(f"Parquet metadata of unknown type {kind}")

    def _list(self, depth: int) -> list[Any]:
        head = self._byte()
        count = head >> 4 if head >> 4 < 15 else self._varint()
        require(count <= len(self._data) - self._place, "Parquet metadata is cut off")
        require(depth < MAX_DEPTH, "Parquet metadata nested too deeply")
        return [self._value(head & 15, depth + 1) for _ in range(count)]

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    def _varint(self) -> int:
        value = self._byte()
        if value < 128:
            return value
        value &= 127
        for shift in range(7, 70, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise FormatError("Parquet metadata with an endless number")

    def _byte(self) -> int:
        place = self._place
        self._place = place + 1
        return self._data[place]

    def _bytes(self, count: int) -> bytes:
        require(count <= len(self._data) - self._place, "Parquet metadata is cut off")
        self._place += count
        return self._data[self._place - count : self._place]
