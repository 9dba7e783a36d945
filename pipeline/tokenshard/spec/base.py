"""The base of every metadata document: strict, frozen, versioned pydantic models with a stable hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue


class Document(BaseModel):
    """A metadata document. Unknown fields are refused, so that a typing error never passes silently."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, protected_namespaces=())


class SourceSpec(Document):
    """Raw inputs of a conversion job; one subclass a kind of source."""

    path: str = Field(min_length=1, description="file, folder, glob or URL of the raw inputs")

    def output_fields(self) -> dict[str, JsonValue]:
        """The fields that decide the output: all but the place the inputs are read from."""
        return self.model_dump(mode="json", exclude={"path"})


class StoredDocument(BaseModel):
    """A document read back from a dataset. Unknown fields are ignored: a later minor version may add some."""

    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys and no white space: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest(value: Any) -> str:
    """SHA-256 (hex) of :func:`canonical_json`."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def digest_streamed(value: Mapping[str, Any], name: str, pieces: Iterable[bytes]) -> str:
    """:func:`digest` of ``value`` with one field more, a list: what is between its brackets comes in pieces."""
    found, first = hashlib.sha256(b"{"), True
    for field in sorted({*value, name}):
        found.update((b"" if first else b",") + canonical_json(field) + b":")
        first = False
        if field != name:
            found.update(canonical_json(value[field]))
            continue
        found.update(b"[")
        for piece in pieces:
            found.update(piece)
        found.update(b"]")
    found.update(b"}")
    return found.hexdigest()
