"""The JSON Schemas in the repository: equal to the models, and true to what the models accept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from tokenshard.errors import SpecError
from tokenshard.spec.job import JOB_KINDS, parse_job
from tokenshard.spec.schemas import schemas, text_of

ROOT = Path(__file__).parents[2]
MINIMAL = {"kind": "convert-images", "source": {"path": "x"}, "output": "y"}


@pytest.fixture(scope="module")
def job_schema() -> Draft202012Validator:
    return Draft202012Validator(json.loads((ROOT / "schemas" / "job.schema.json").read_text(encoding="utf-8")))


def test_every_schema_in_the_repository_comes_from_a_model_and_the_other_way_round() -> None:
    assert {path.name for path in (ROOT / "schemas").glob("*.json")} == set(schemas())


@pytest.mark.parametrize("name", schemas())
def test_the_schemas_in_the_repository_are_those_of_the_models(name: str) -> None:
    stored = (ROOT / "schemas" / name).read_text(encoding="utf-8")
    assert stored == text_of(schemas()[name]), f"schemas/{name} is out of date; run `make schemas`"


@pytest.mark.parametrize("name", schemas())
def test_every_schema_is_itself_valid(name: str) -> None:
    Draft202012Validator.check_schema(schemas()[name])


@pytest.mark.parametrize("path", sorted((ROOT / "jobs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_ready_job_is_valid_against_the_schema(path: Path, job_schema: Draft202012Validator) -> None:
    errors = [error.message for error in job_schema.iter_errors(yaml.safe_load(path.read_text(encoding="utf-8")))]
    assert errors == []


def test_the_job_schema_names_every_kind_of_job() -> None:
    text = text_of(schemas()["job.schema.json"])
    assert all(f'"{kind}"' in text for kind in JOB_KINDS)


@pytest.mark.parametrize(
    "change",
    [
        {"output": None},
        {"kind": "convert-imgs"},
        {"version": 2},
        {"outptu": "z"},
        {"codec": "Zip!"},
        {"seed": -1},
        {"max_rejects": 1.5},
        {"source": {}},
        {"source": {"path": ""}},
        {"source": {"path": "x", "sise": 2}},
        {"source": {"path": "x", "background": [0, 0]}},
        {"engine": {"kind": "spark"}},
        {"unit": {"samples": 0}},
    ],
    ids=str,
)
def test_what_the_models_refuse_the_schema_refuses(change: dict[str, Any], job_schema: Draft202012Validator) -> None:
    wrong = {**MINIMAL, **change}
    assert not job_schema.is_valid(wrong)
    with pytest.raises(SpecError):
        parse_job(json.dumps(wrong))


def test_sizes_in_bytes_may_have_a_unit(job_schema: Draft202012Validator) -> None:
    for size in (1 << 20, "1MiB", "1 MiB"):
        spec = {**MINIMAL, "unit": {"bytes": size}}
        assert job_schema.is_valid(spec)
        assert parse_job(json.dumps(spec)).model_dump()["unit"]["bytes"] == 1 << 20
