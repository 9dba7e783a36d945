"""Plans: what is cut where, and that it depends on the inputs alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenshard.engine.job_folder import JobFolder, Plan
from tokenshard.engine.plan import UNITS_PER_PART, make_plan, read_unit, unit_places
from tokenshard.errors import SpecError
from tokenshard.shards.keys import KeySet
from tokenshard.sources.base import SourceColumn
from tokenshard.sources.images.files import Files
from tokenshard.sources.images.folder import FolderSource
from tokenshard.sources.plan import Input, plan_batches
from tokenshard.spec.job import ConvertImages
from tokenshard.store import Entry, Store


class Listed:
    """A source of given inputs, cut into plan batches of a given length."""

    def __init__(self, sizes: list[int], batch: int = 1000) -> None:
        self.sizes, self.batch = sizes, batch

    def plan(self) -> Iterator[pa.RecordBatch]:
        inputs = (Input(key=f"k{row:06d}", uri=f"k{row:06d}.png", bytes=size) for row, size in enumerate(self.sizes))
        for batch in plan_batches(inputs):
            for start in range(0, batch.num_rows, self.batch):
                yield batch.slice(start, self.batch)

    def columns(self) -> tuple[SourceColumn, ...]:
        return ()

    def state(self) -> dict[str, Any]:
        return {}

    def read(self, inputs: pa.Table) -> Iterator[Any]:
        return iter(())


class Bucket(Store):
    """A bucket with a made-up listing of 100,000 images of ten classes."""

    listed = 0

    def list(self, prefix: str = "", skipped: object = None) -> Iterator[Entry]:
        for self.listed in range(1, 100_001):
            yield Entry(f"class{self.listed // 10_001}/{self.listed:06d}.jpg", 1000)


def plan_of(source: Listed, root: Path, **options: Any) -> tuple[Plan, list[list[str]]]:
    """The plan and the keys of its units."""
    unit = {name: options.pop(name) for name in ("samples", "bytes") if name in options}
    spec = ConvertImages.model_validate({"source": {"path": "x"}, "output": str(root), "unit": unit})
    folder = JobFolder(Store(root), 1)
    plan = make_plan(spec, source, folder, **options)
    units = [read_unit(folder.output, place).column("key").to_pylist() for place in unit_places(plan)]
    return plan, units


@given(st.lists(st.integers(0, 50), min_size=1, max_size=200), st.integers(1, 40), st.integers(1, 200))
def test_units_hold_all_inputs_in_order_within_the_limits(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], samples: int, limit: int
) -> None:
    plan, units = plan_of(Listed(sizes), tmp_path_factory.mktemp("plan"), samples=samples, bytes=limit)
    assert [key for unit in units for key in unit] == [f"k{row:06d}" for row in range(len(sizes))]
    assert (plan.inputs, plan.units, plan.raw_bytes) == (len(sizes), len(units), sum(sizes))
    for unit in units:
        assert 1 <= len(unit) <= samples
        assert len(unit) == 1 or sum(sizes[int(key[1:])] for key in unit) <= limit


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_the_plan_does_not_depend_on_how_the_source_streams(tmp_path: Path, batch: int) -> None:
    sizes = [row % 13 for row in range(500)]
    one, _ = plan_of(Listed(sizes), tmp_path / "one", samples=64, bytes=300)
    other, _ = plan_of(Listed(sizes, batch), tmp_path / "other", samples=64, bytes=300)
    assert one.sha256 == other.sha256


def test_many_units_are_spread_over_plan_files(tmp_path: Path) -> None:
    plan, units = plan_of(Listed([1] * (2 * UNITS_PER_PART + 5)), tmp_path, samples=1)
    assert [part.units for part in plan.parts] == [UNITS_PER_PART, UNITS_PER_PART, 5]
    assert [len(unit) for unit in units] == [1] * plan.units


def test_a_finished_plan_is_not_made_again(tmp_path: Path) -> None:
    first, _ = plan_of(Listed([1, 2, 3]), tmp_path)
    again, units = plan_of(Listed([1]), tmp_path)
    assert again == first
    assert len(units[0]) == 3


def test_keys_the_dataset_has_are_left_out(tmp_path: Path) -> None:
    known = KeySet()
    known.add(["k000001", "k000003"])
    _, units = plan_of(Listed([1] * 5), tmp_path, known_keys=known)
    assert units == [["k000000", "k000002", "k000004"]]


def test_a_retry_plans_the_rejects_and_names_those_that_are_gone(tmp_path: Path) -> None:
    plan, units = plan_of(Listed([1] * 5), tmp_path, retried={"k000002": "k000002.png", "lost": "lost.png"})
    assert units == [["k000002", "lost"]]
    assert plan.retried == 2
    table = read_unit(Store(tmp_path), next(unit_places(plan)))
    assert table.column("error").to_pylist() == [None, "no longer among the inputs"]


def test_nothing_to_plan_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no inputs found"):
        plan_of(Listed([]), tmp_path)


def test_of_a_long_listing_no_more_is_listed_than_the_limit_needs(tmp_path: Path) -> None:
    spec = ConvertImages.model_validate({"source": {"path": "s3://bucket"}, "output": str(tmp_path), "limit": 25_000})
    bucket = Bucket("s3://bucket")
    plan = make_plan(spec, FolderSource(spec.source, Files(bucket, "folder")), JobFolder(Store(tmp_path), 1))
    assert plan.inputs == 25_000
    assert bucket.listed <= 32_000, "25,000 in batches of 10,000, and what is looked at ahead"
    (label,) = plan.columns
    assert label.names == ("class0", "class1", "class2")
