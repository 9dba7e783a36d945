"""What is wanted of the loader, beside what was measured: ratios between rows of one run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

Row = Mapping[str, Any]
OURS = "tokenshard "
PREFETCH_MB = (256 << 20) / 1e6
"""`prefetch_bytes` where nothing is said."""


@dataclass(frozen=True)
class Goal:
    what: str
    measured: float
    sign: str
    """`<=` or `>=`"""
    wanted: float

    @property
    def kept(self) -> bool:
        return self.measured <= self.wanted if self.sign == "<=" else self.measured >= self.wanted

    def json(self) -> dict[str, Any]:
        return {**asdict(self), "kept": self.kept}

    def __str__(self) -> str:
        verdict = "kept" if self.kept else "MISSED"
        return f"{self.what:58}{self.measured:>10.3g} {self.sign} {self.wanted:<8.4g}{verdict}"


def goals(rows: Sequence[Row]) -> list[Goal]:
    """Those that the rows at hand can answer. CPU of two rows is compared by what each is of its own memory map."""
    return list(_goals({row["peer"]: row for row in rows}))


def _goals(rows: Mapping[str, Row]) -> Iterator[Goal]:
    pack, order0, context = (rows.get(OURS + codec) for codec in ("pack", "order-0", "context"))
    if pack is not None:
        yield Goal("pack: CPU, x memory map", pack["times_memmap"], "<=", 3)
    yield from _shares("CPU", "times_memmap", "pack", pack, {"ffcv": 1.2}, rows)
    yield from _shares("bytes", "bytes", "pack", pack, {"ffcv": 0.85}, rows)
    parts = {"mosaic": 1 / 10, "mosaic, 2 workers": 1 / 10, "litdata tokens": 1 / 4, "hf arrow": 1 / 8}
    yield from _shares("CPU", "times_memmap", "order-0", order0, parts, rows)
    if context is not None and context["ids"] >= 1024:
        yield Goal("context: samples a second of CPU", 1e6 / context["cpu_us"], ">=", 25_000)
    ours = [row for row in (pack, order0, context) if row is not None]
    others = [row for name, row in rows.items() if not name.startswith(OURS)]
    if others:
        least = min(others, key=lambda row: row["bytes"])
        for row in ours:
            yield Goal(
                f"{_codec(row)}: bytes, x the least peer's ({least['peer']})", row["bytes"] / least["bytes"], "<=", 1
            )
    for row in ours:
        yield Goal(f"{_codec(row)}: first batch, ms", row["first_batch_ms"], "<=", 100)
        yield Goal(f"{_codec(row)}: memory above the interpreter, MB", row["peak_growth_mb"], "<=", 150 + PREFETCH_MB)
        yield Goal(f"{_codec(row)}: resumes exactly (1 = yes)", float(row["resume"]), ">=", 1)
        yield Goal(f"{_codec(row)}: bytes of a state", row["state_bytes"], "<=", 200)
        yield Goal(f"{_codec(row)}: one sample by number, us", row["sample_us"], "<=", 60)


def _shares(
    what: str, field: str, codec: str, row: Row | None, wanted: Mapping[str, float], rows: Mapping[str, Row]
) -> Iterator[Goal]:
    for name, share in wanted.items():
        if row is not None and name in rows:
            yield Goal(f"{codec}: {what}, x {name}", row[field] / rows[name][field], "<=", share)


def _codec(row: Row) -> str:
    return str(row["peer"]).removeprefix(OURS)
