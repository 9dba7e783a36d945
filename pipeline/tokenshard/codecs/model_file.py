"""The `.tsm` container that codec models are stored in: magic, version, JSON header, compressed arrays, checksum.

Specified in `schemas/shard-format-streams.md`; what the header and the arrays mean is the codec's.
"""

from __future__ import annotations

import hashlib
import struct
from typing import TypeVar

import zstandard
from pydantic import ValidationError

from tokenshard.errors import FormatError
from tokenshard.spec.base import StoredDocument, canonical_json

_PREFIX = struct.Struct("<8sII")
_DIGEST_BYTES = 32
_Header = TypeVar("_Header", bound=StoredDocument)


def require(condition: bool, problem: str) -> None:
    """Raises FormatError unless the condition holds."""
    if not condition:
        raise FormatError(f"codec model: {problem}; restore the file below models/ or convert again")


def pack_model(magic: bytes, version: int, header: StoredDocument, payload: bytes) -> bytes:
    """A `.tsm` file; equal parts give equal bytes."""
    text = canonical_json(header.model_dump(mode="json"))
    body = _PREFIX.pack(magic, version, len(text)) + text + zstandard.compress(payload, 19)
    return body + hashlib.sha256(body).digest()


def open_model(data: bytes, magic: bytes, version: int, header: type[_Header]) -> tuple[_Header, bytes]:
    """Header and zstd frame of a file. Raises FormatError when it is damaged, of another codec or too new."""
    require(len(data) >= _PREFIX.size + _DIGEST_BYTES and data[:8] == magic, "not a .tsm file")
    _, found, length = _PREFIX.unpack_from(data)
    if found > version:
        raise FormatError(f"codec model: version {found} needs a newer tokenshard (this one reads {version})")
    require(hashlib.sha256(data[:-_DIGEST_BYTES]).digest() == data[-_DIGEST_BYTES:], "the checksum does not match")
    end = _PREFIX.size + length
    require(found == version and end <= len(data) - _DIGEST_BYTES, "the header is damaged")
    try:
        parsed = header.model_validate_json(data[_PREFIX.size : end])
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise FormatError(f"codec model: header field {place or '(all)'}: {first['msg']}") from None
    return parsed, data[end:-_DIGEST_BYTES]


def unpacked(frame: bytes, size: int) -> bytes:
    """The arrays of a file, which must have this size. Raises FormatError where they have not."""
    try:
        stated = zstandard.get_frame_parameters(frame).content_size
        require(stated == size, f"{size} bytes of arrays expected, {stated} found")
        payload = zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise FormatError(f"codec model: the arrays cannot be decompressed ({error})") from None
    require(len(payload) == size, f"{size} bytes of arrays expected, {len(payload)} found")
    return payload
