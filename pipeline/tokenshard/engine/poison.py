"""Finding the input that kills its worker, by halving. Pure bookkeeping: the scheduler runs the probes."""

from __future__ import annotations


def most_deaths(rows: int) -> int:
    """Deaths a unit of that many rows may cost (three poison inputs); past that all of it is quarantined."""
    return 4 + 3 * (rows.bit_length() + 1)


class PoisonSearch:
    """Halves the rows of a unit until one row alone kills the worker.

    ``probe`` is the next range of rows to run (None: the search is over); ``record`` takes its outcome. A half that
    survives clears itself and puts the suspicion on the other one; the last row is confirmed by a probe of its own, so
    that deaths from outside (preemption, an operator's kill) convict nobody.
    """

    def __init__(self, rows: int) -> None:
        self._first, self._last = 0, rows
        self._over = rows == 0
        self.found: int | None = None
        """the row that kills"""

    @property
    def probe(self) -> tuple[int, int] | None:
        if self._over:
            return None
        if self._last - self._first == 1:
            return self._first, self._last
        return self._first, (self._first + self._last) // 2

    def record(self, died: bool) -> None:
        """Outcome of the current probe."""
        if self.probe is None:
            raise ValueError("the search is over")
        first, last = self.probe
        if last - first == 1 and self._last - self._first == 1:
            self._over = True
            self.found = first if died else None
        elif died:
            self._last = last
        else:
            self._first = last
