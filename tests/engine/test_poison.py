"""The search for the input that kills its worker."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tokenshard.engine.poison import PoisonSearch, most_deaths


def run(rows: int, poison: set[int]) -> tuple[int | None, int, int]:
    """What the search finds, and the probes and deaths it costs."""
    search = PoisonSearch(rows)
    probes = deaths = 0
    while (probe := search.probe) is not None:
        died = any(probe[0] <= row < probe[1] for row in poison)
        search.record(died)
        probes, deaths = probes + 1, deaths + died
    return search.found, probes, deaths


@given(st.integers(1, 5000), st.data())
def test_one_poison_row_is_found_in_logarithmic_time(rows: int, data: st.DataObject) -> None:
    row = data.draw(st.integers(0, rows - 1))
    found, probes, _ = run(rows, {row})
    assert found == row
    assert probes <= (rows - 1).bit_length() + 1


@given(st.integers(1, 300), st.data())
def test_of_several_poison_rows_one_is_found(rows: int, data: st.DataObject) -> None:
    poison = data.draw(st.sets(st.integers(0, rows - 1), min_size=1))
    assert run(rows, poison)[0] in poison


@given(st.integers(0, 5000))
def test_deaths_from_outside_convict_nobody(rows: int) -> None:
    assert run(rows, set())[0] is None


@given(st.integers(2, 4096))
def test_the_deaths_allowed_suffice_for_three_poison_rows(rows: int) -> None:
    left, spent = {0, rows // 2, rows - 1}, 3
    for _ in range(len(left)):
        found, _, deaths = run(rows, left)
        left.discard(found)  # type: ignore[arg-type]
        spent += deaths + bool(left)
    assert not left
    assert spent <= most_deaths(rows)
