"""What may come of a mutation, and what may not."""

from __future__ import annotations

from tokenshard.errors import TokenshardError

REFUSED, SAME, INSIDE, VIOLATED = "refused", "same", "inside", "VIOLATED"


class Violation(Exception):
    """Something that must never happen."""


def unclear(error: TokenshardError) -> str:
    """What is wrong with a message, or the cause behind it: "" if nothing."""
    cause = error.__cause__
    while cause is not None:
        if isinstance(cause, MemoryError):
            return f"more memory was asked for than there may be: {error}"
        if isinstance(cause, IndexError) and str(cause) == "index is out of bounds":  # numba's; numpy says more
            return f"an index left its array: {error}"
        cause = cause.__cause__
    text = str(error)
    if not 10 < len(text) < 2000 or "Traceback" in text:
        return f"unclear message {text!r}"
    return ""
