"""Figures as people read them, the same in progress bars, tables and charts."""

from __future__ import annotations


def readable_bytes(count: float) -> str:
    """Bytes with a decimal unit and three significant digits: ``12.3 MB``."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5 or unit == "TB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" or count >= 99.95 else f"{count:.{1 if count >= 9.995 else 2}f} {unit}"
