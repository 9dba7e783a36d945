"""Predicates and weights: the right samples, nothing else read, and every promise of the order kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.conftest import Rows
from tokenshard.errors import SpecError
from tokenshard.loading.loader import TokenLoader
from tokenshard.loading.order import Shuffle
from tokenshard.shards.dataset import Dataset, open_dataset
from tokenshard.shards.where import Where
from tokenshard.store import Store

Make = Callable[..., tuple[Dataset, list[Rows]]]
COUNTS = (300, 7, 500, 193)


def keys(loader: TokenLoader) -> list[str]:
    return [key for batch in loader for key in batch["key"]]


def expected(dataset: Dataset, holds: Callable[[dict[str, Any]], bool]) -> list[str]:
    return [row["key"] for row in dataset.table().to_pylist() if holds(row)]


@pytest.mark.parametrize(
    ("where", "holds"),
    [
        ("label < 3", lambda row: row["label"] < 3),
        ("label < 3 and split == 'train'", lambda row: row["label"] < 3 and row["split"] == "train"),
        ("not label == 3 or split != 'train'", lambda row: row["label"] != 3 or row["split"] != "train"),
        ("2 <= label <= 4", lambda row: 2 <= row["label"] <= 4),
        ("label in (1, 5, 99)", lambda row: row["label"] in (1, 5)),
        ("split not in ['train']", lambda row: row["split"] != "train"),
        ("caption is None", lambda row: row["caption"] is None),
        ("caption is not None and caption > 'picture 4'", lambda row: (row["caption"] or "") > "picture 4"),
        ("caption != 'picture 4'", lambda row: row["caption"] not in (None, "picture 4")),
        ("key >= 'img/000900'", lambda row: row["key"] >= "img/000900"),
        ("-1 > label", lambda row: False),
        ("label == label", lambda row: True),
    ],
)
@pytest.mark.parametrize("shuffle", [False, Shuffle(3, 2)])
def test_only_samples_for_which_it_holds_come(
    datasets: Make, where: str, holds: Callable[[dict[str, Any]], bool], shuffle: bool | Shuffle
) -> None:
    dataset, _ = datasets(*COUNTS)
    loader = TokenLoader(dataset, 40, shuffle, columns=["key"], where=where)
    found = keys(loader)
    assert sorted(found) == expected(dataset, holds)
    assert shuffle or found == sorted(found)
    assert len(loader) == -(-len(found) // 40)


def test_the_codes_are_those_of_the_samples(datasets: Make) -> None:
    dataset, _ = datasets(*COUNTS)
    for batch in TokenLoader(dataset, 40, True, columns=["codes", "key"], where="label == 7"):
        for key, codes in zip(batch["key"], batch["codes"], strict=True):
            assert np.array_equal(codes.numpy(), dataset[dataset.index(key)]["codes"])


def test_row_groups_without_a_match_are_never_read(datasets: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, _ = datasets(*COUNTS)
    read = Store.read_into
    names: list[str] = []

    def spy(self: Store, name: str, start: int, out: memoryview) -> int:
        names.append(name)
        return read(self, name, start, out)

    fresh = open_dataset(dataset.store.root)
    monkeypatch.setattr(Store, "read_into", spy)
    assert len(keys(TokenLoader(fresh, 40, columns=["codes", "key"], where="key >= 'img/000999'"))) == 1
    last = fresh.manifest.shards[-1]
    assert len(last.row_groups) > 1
    assert Counter(names)[last.path] == 3  # footer, keys of one row group, and its codes
    assert len(names) == len(fresh.manifest.shards) + 2


@given(st.integers(1, 4), st.integers(1, 30))
def test_ranks_and_states_hold_for_selections_too(datasets: Make, world: int, stop: int) -> None:
    dataset, _ = datasets(*COUNTS)
    options = {"shuffle": Shuffle(4, 2), "columns": ["key"], "global_batch_size": 16, "where": "label != 4"}
    whole = keys(TokenLoader(dataset, rank=0, world=1, **options))
    first = TokenLoader(dataset, rank=0, world=1, **options)
    batches = iter(first)
    begun = [key for _ in range(stop) for key in next(batches)["key"]]
    ranks = [TokenLoader(dataset, rank=rank, world=world, **options) for rank in range(world)]
    for loader in ranks:
        loader.load_state_dict(first.state_dict())
    rest = [key for step in zip(*ranks, strict=True) for part in step for key in part["key"]]
    assert begun + rest == whole
    with pytest.raises(SpecError, match="loader state: where is"):
        TokenLoader(dataset, shuffle=True).load_state_dict(first.state_dict())


def test_weights_say_how_often_a_sample_comes(datasets: Make) -> None:
    dataset, _ = datasets(*COUNTS)
    loader = TokenLoader(dataset, 32, True, columns=["key", "label"], weights="label", where="label < 4", threads=0)
    for _ in range(3):
        seen = Counter(
            (key, label) for batch in loader for key, label in zip(batch["key"], batch["label"].tolist(), strict=True)
        )
        assert set(seen) == {(row["key"], row["label"]) for row in dataset.table().to_pylist() if 0 < row["label"] < 4}
        assert all(count == label for (_, label), count in seen.items())
    with pytest.raises(SpecError, match="weights: column 'caption' holds string"):
        TokenLoader(dataset, weights="caption")
    with pytest.raises(SpecError, match="spill"):
        TokenLoader(dataset, weights="label", remainder="spill")


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("label <", "invalid syntax"),
        ("colour == 1", "no column 'colour'; there are key"),
        ("label == __import__('os').getpid()", "no column '__import__'"),
        ("label == label.real", "cannot be used"),
        ("label + 1 == 2", "cannot be used"),
        ("label < 'three'", "where="),
        ("label is 3", "3 cannot be used"),
        ("label in split", "cannot be used"),
        ("label", "where="),
        ("(" * 5000, "where="),
    ],
)
def test_predicates_that_make_no_sense_are_refused(datasets: Make, where: str, message: str) -> None:
    dataset, _ = datasets(*COUNTS)
    with pytest.raises(SpecError, match=message):
        TokenLoader(dataset, where=where)


VALUES = st.integers(-3, 3)
COMPARISONS = st.builds(
    lambda a, op, b, turned: (
        f"{b} {op} {a}" if turned and op != "in" else f"{a} {op} {f'({b}, 2)' if op == 'in' else b}"
    ),
    st.sampled_from(["x", "y"]),
    st.sampled_from(["<", "<=", ">", ">=", "==", "!=", "in"]),
    VALUES,
    st.booleans(),
)
PREDICATES = st.recursive(
    COMPARISONS,
    lambda inner: (
        st.builds(lambda a, op, b: f"({a} {op} {b})", inner, st.sampled_from(["and", "or"]), inner)
        | inner.map(lambda a: f"not {a}")
    ),
    max_leaves=5,
)


@given(PREDICATES, st.lists(st.tuples(VALUES | st.none(), VALUES), min_size=1, max_size=6))
def test_bounds_never_rule_out_a_row_that_holds(text: str, rows: list[tuple[int | None, int]]) -> None:
    table = pa.table({"x": pa.array([x for x, _ in rows], pa.int32()), "y": pa.array([y for _, y in rows], pa.int32())})
    where = Where.parse(text, table.schema)
    bounds = {
        name: (min(values), max(values))
        for name in ("x", "y")
        if (values := [value for value in table[name].to_pylist() if value is not None])
    }
    mask = where.mask(table)
    assert where.may_hold(bounds) or not mask.any()
    for (x, y), holds in zip(rows, mask.tolist(), strict=True):
        if x is not None:
            assert holds == eval(text, {"x": x, "y": y})
