"""What a benchmark was to reach, and whether it did."""

from __future__ import annotations

from collections.abc import Sequence


def kept(promises: Sequence[tuple[str, bool]]) -> int:
    """Print each promise with its outcome; exit code of the benchmark: 1 where one was missed."""
    print()
    for what, ok in promises:
        print(f"{'ok    ' if ok else 'MISSED'} {what}")
    return int(not all(ok for _, ok in promises))
