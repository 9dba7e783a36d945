"""What `clean` may remove: files that no version lists, and nothing while a job goes on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tokenshard.engine.clean import leftovers
from tokenshard.engine.job_folder import JobFolder, Plan
from tokenshard.errors import JobError, SpecError
from tokenshard.shards.manifest import read_manifest
from tokenshard.store import Store

GOLDEN = Path(__file__).parents[1] / "golden" / "sets" / "appended"


@pytest.fixture
def output(tmp_path: Path) -> Store:
    """A dataset of two versions, with a shard and a rejects file that no version lists."""
    shutil.copytree(GOLDEN, tmp_path / "out")
    store = Store(tmp_path / "out")
    for name in ("data/other-000000.parquet", "rejects/other-000000.parquet", "_job/00000002/plan.json"):
        store.put(name, b"{}")
    return store


def test_files_of_any_version_stay_and_the_journal_goes_on_demand_only(output: Store) -> None:
    left = ["data/other-000000.parquet", "rejects/other-000000.parquet"]
    assert leftovers(output) == left
    assert leftovers(output, journal=True) == [*left, "_job/00000002/plan.json"]
    assert not {shard.path for shard in read_manifest(output, 1).shards} & set(left)


def test_nothing_may_be_removed_while_a_job_is_not_finished(output: Store) -> None:
    plan = Plan(sha256="0" * 64, inputs=1, units=1, raw_bytes=0, parts=(), columns=(), source_names=(), schema_hex="")
    JobFolder(output, 3).create_plan(plan)
    with pytest.raises(JobError, match="a job was started and is not finished"):
        leftovers(output)


def test_a_folder_without_a_dataset_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no token dataset"):
        leftovers(Store(tmp_path))
