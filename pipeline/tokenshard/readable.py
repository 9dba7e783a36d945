"""Figures as people read them, the same in progress bars, tables and charts."""

from __future__ import annotations

from collections.abc import Mapping


def readable_seconds(seconds: float) -> str:
    """A duration in two units at most: ``40 s``, ``3 min 20 s``, ``5 h 10 min``, ``12 d 4 h``."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    for large, small, size in (("d", "h", 3600), ("h", "min", 60), ("min", "s", 1)):
        whole = {"d": 86400, "h": 3600, "min": 60}[large]
        if seconds >= whole:
            return f"{int(seconds // whole)} {large} {int(seconds % whole // size)} {small}"
    return f"{seconds:.0f} s"


def readable_bytes(count: float) -> str:
    """Bytes with a decimal unit and three significant digits: ``12.3 MB``."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5 or unit == "TB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" or count >= 99.95 else f"{count:.{1 if count >= 9.995 else 2}f} {unit}"


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number of things: ``1 shard``, ``20 shards``, ``0 indices``."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def tallied(counts: Mapping[str, int]) -> str:
    """How often each occurs: ``3 x death, 1 x poison``."""
    return ", ".join(f"{number:,} x {what}" for what, number in counts.items())


def printable(value: object) -> str:
    """Text as it may be shown: without control characters, surrogates, and marks that turn what follows around."""
    text = str(value)
    if text.isprintable() and not set(_TURNING) & set(text):
        return text
    text = text.encode("utf-8", "replace").decode()
    return "".join(c if c in "\n\t" or (c.isprintable() and c not in _TURNING) else "\ufffd" for c in text)


_TURNING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
