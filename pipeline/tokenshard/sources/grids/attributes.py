"""Attributes of files as a document holds them, exactly: text, or numbers of a numpy type."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from pydantic import JsonValue

from tokenshard.spec.grids import AttributeEntry

_SPECIAL = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def attribute_entries(attributes: Mapping[str, Any], leave_out: Iterable[str] = ()) -> tuple[AttributeEntry, ...]:
    """Those that are text or numbers; object references and the like belong to a file, not to the grid."""
    hidden = set(leave_out)
    found = (_entry(name, value) for name, value in attributes.items() if name not in hidden)
    return tuple(entry for entry in found if entry is not None)


def _entry(name: str, value: Any) -> AttributeEntry | None:
    text = as_text(value)
    if text is not None:
        return AttributeEntry(name=name, type="text", value=text)
    array = np.asarray(value)
    if array.dtype.kind not in "iuf" or array.ndim > 1:
        return None
    items = [json_number(item) for item in array.ravel()]
    return AttributeEntry(name=name, type=array.dtype.name, value=items if array.ndim else items[0])


def attribute_values(entries: Iterable[AttributeEntry]) -> dict[str, Any]:
    """Name -> text, or numpy scalar or vector: the values that were written down."""
    return {entry.name: _value(entry) for entry in entries}


def _value(entry: AttributeEntry) -> Any:
    if entry.type == "text":
        return str(entry.value)
    kind = np.dtype(entry.type)
    if isinstance(entry.value, list):
        return np.array([plain_number(item) for item in entry.value], kind)
    return kind.type(plain_number(entry.value))


def as_text(value: Any) -> str | None:
    """The text of a text attribute, however a file stores it; None for any other."""
    if isinstance(value, bytes | np.bytes_):
        return bytes(value).decode("utf-8", "replace")
    if isinstance(value, str):
        return str(value)
    array = np.asarray(value)
    if array.dtype.kind in "SU" and array.size == 1:
        return as_text(array.ravel()[0])
    return None


def json_number(value: Any) -> JsonValue:
    """A number as JSON has it; numbers that it has not as text."""
    plain = value.item() if isinstance(value, np.generic) else value
    if isinstance(plain, float) and not math.isfinite(plain):
        return "nan" if math.isnan(plain) else "inf" if plain > 0 else "-inf"
    number: JsonValue = plain
    return number


def plain_number(value: JsonValue) -> float | int:
    """The number :func:`json_number` was given."""
    if isinstance(value, str):
        return _SPECIAL[value]
    if not isinstance(value, int | float):
        raise ValueError(f"{value!r} is no number")
    return value


def number(attributes: Mapping[str, Any], name: str) -> float | None:
    """A numeric attribute of one value; None where there is none of that name."""
    array = np.asarray(attributes.get(name, ()))
    if array.dtype.kind == "S" and array.size == 1:
        try:
            return float(array.ravel()[0])
        except ValueError:
            return None
    return float(array.ravel()[0]) if array.dtype.kind in "iuf" and array.size == 1 else None


def text(attributes: Mapping[str, Any], name: str) -> str:
    """A text attribute without white space around it; empty where there is none of that name."""
    return (as_text(attributes.get(name, "")) or "").strip()
