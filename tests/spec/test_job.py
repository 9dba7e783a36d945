"""Job specs: what is accepted, what a mistake is answered with, and which fields decide a dataset's bytes."""

from __future__ import annotations

import json
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tokenshard.errors import SpecError
from tokenshard.spec.base import canonical_json, digest
from tokenshard.spec.engine import EngineSpec, PilotSpec, RetrySpec, UnitSpec
from tokenshard.spec.images import ImageSourceSpec
from tokenshard.spec.job import JOB_KINDS, ConvertImages, build_job, parse_job

JOBS = Path(__file__).parents[2] / "jobs"
OTHER_USES = {"train-clips": "train-classifier", "train-grid-tokenizer": "train-tokenizer"}
"""Ready jobs that are not named after their kind."""
SPEC = """\
kind: convert-images
source:
  path: photos/
output: tokens/
"""


def error_of(text: str) -> str:
    with pytest.raises(SpecError) as caught:
        parse_job(text, "job.yaml")
    message = str(caught.value)
    assert "\n" not in message
    return message


def job(**fields: Any) -> ConvertImages:
    spec = build_job(ConvertImages, {"source": {"path": "photos/"}, "output": "tokens/", **fields})
    assert isinstance(spec, ConvertImages)
    return spec


def test_a_minimal_spec_gets_the_defaults() -> None:
    spec = parse_job(SPEC)
    assert isinstance(spec, ConvertImages)
    assert (spec.source.path, spec.output, spec.tokenizer, spec.codec) == ("photos/", "tokens/", "patch", "auto")
    assert (spec.unit.samples, spec.unit.bytes, spec.engine.kind, spec.retry.attempts) == (4096, 256 << 20, "auto", 3)


def test_json_is_read_as_well_as_yaml() -> None:
    spec = parse_job(SPEC + "unit: {bytes: 1GiB}\n")
    assert parse_job(spec.model_dump_json(indent=1)) == spec


def test_a_date_is_a_name_of_a_folder() -> None:
    assert parse_job(SPEC.replace("tokens/", "2026-01-31")).output == "2026-01-31"


@pytest.mark.parametrize("path", sorted(JOBS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_ready_job_is_valid(path: Path) -> None:
    spec = parse_job(path.read_text(encoding="utf-8"), path.name)
    assert spec.kind == OTHER_USES.get(path.stem, path.stem)


def test_every_kind_of_job_has_a_ready_job() -> None:
    assert {path.stem for path in JOBS.glob("*.yaml")} == set(JOB_KINDS) | set(OTHER_USES)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "job.yaml:1: expected a mapping with `kind`, `source` and `output`"),
        ("- kind: convert-images", "job.yaml:1: expected a mapping"),
        ("output: x\nkind: convert-imgs", "job.yaml:2: kind: 'convert-imgs' is unknown; allowed: convert-images"),
        ("output: x", "job.yaml:1: kind: None is unknown; allowed: convert-images"),
        (
            SPEC + "codec: zip",
            "job.yaml:5: codec: allowed are 'auto', 'pack', 'zstd', 'context', 'copy' (got 'zip')",
        ),
        (
            SPEC + "engine:\n  kind: spark",
            "job.yaml:6: engine.kind: Input should be 'auto', 'local' or 'ray' (got 'spark')",
        ),
        (SPEC + "engine: ray", "job.yaml:5: engine: Input should be a valid dictionary"),
        (SPEC + "max_rejects: 2", "job.yaml:5: max_rejects: Input should be less than or equal to 1 (got 2)"),
        (SPEC + "unit:\n  bytes: 3 parsecs", "job.yaml:6: unit.bytes: could not interpret byte unit: parsecs"),
        (SPEC + "unit: {samples: 0}", "job.yaml:5: unit.samples: Input should be greater than or equal to 1 (got 0)"),
        ("kind: convert-images\noutput: x\nsource: photos/", "job.yaml:3: source: Input should be a valid dictionary"),
        ("kind: convert-images\nsource:\n  size: 3\n  fit: pad\noutput: x", "job.yaml:2: source.path: Field required"),
        ("kind: convert-images\nsource:\n  path: x", "job.yaml:1: output: Field required"),
        (SPEC.replace("photos/", "x\n  fit: pad"), "job.yaml:2: source: fit: pad needs a size; set size, or fit: keep"),
        (SPEC.replace("photos/", "x\n  size: 9"), "job.yaml:2: source: size is set but fit: keep leaves sizes alone"),
        (
            SPEC.replace("photos/", "x\n  background: [0, 999, 0]"),
            "job.yaml:4: source.background.1: Input should be less",
        ),
    ],
)
def test_a_mistake_is_answered_with_its_line_its_field_and_what_is_allowed(text: str, message: str) -> None:
    assert error_of(text).startswith(message)


@pytest.mark.parametrize(
    ("text", "message", "model"),
    [
        (SPEC + "tokeniser: patch", "job.yaml:5: tokeniser: unknown field; allowed: ", ConvertImages),
        (SPEC + "engine:\n  worker: 2", "job.yaml:6: engine.worker: unknown field; allowed: ", EngineSpec),
        (SPEC.replace("photos/", "x\n  sise: 2"), "job.yaml:4: source.sise: unknown field; allowed: ", ImageSourceSpec),
        (SPEC + "retry: {tries: 2}", "job.yaml:5: retry.tries: unknown field; allowed: ", RetrySpec),
    ],
)
def test_an_unknown_field_is_answered_with_the_fields_there_are(text: str, message: str, model: Any) -> None:
    assert error_of(text) == message + ", ".join(sorted(model.model_fields))


def test_all_mistakes_are_named_at_once() -> None:
    message = error_of(SPEC + "codec: zip\nseed: -1\nengine: {kind: spark}\n")
    assert {part.split(": ")[0]: part.split(": ")[1] for part in message.split("; ")} == {
        "job.yaml:5": "codec",
        "job.yaml:6": "seed",
        "job.yaml:7": "engine.kind",
    }


def test_a_field_with_alternatives_is_named_once_without_the_parser_s_inner_names() -> None:
    message = error_of(SPEC.replace("photos/", "x\n  fit: pad\n  size: big"))
    assert message.startswith("job.yaml:5: source.size: Input should be a valid integer")
    assert message.count("job.yaml") == 1
    assert "constrained" not in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SPEC + "engine: [1, 2", "job.yaml:5: not valid YAML: expected ',' or ']'"),
        (SPEC + "engine: a: b", "job.yaml:5: not valid YAML: mapping values are not allowed here"),
        (SPEC + "\tcodec: pack", "job.yaml:5: not valid YAML: "),
        (SPEC + "codec: \x07", "job.yaml:5: not valid YAML: special characters are not allowed"),
        (SPEC + "codec: *base", "job.yaml:5: not valid YAML: found undefined alias"),
        (SPEC + "---\n" + SPEC, "job.yaml:5: not valid YAML: but found another document"),
        (SPEC + "seed: 1\noutput: elsewhere/", "job.yaml:6: not valid YAML: output is given twice"),
        (SPEC + "seed: !!int one", "job.yaml: not valid YAML: "),
        ("[" * 600, "job.yaml: not valid YAML: maximum recursion depth exceeded"),
    ],
)
def test_broken_yaml_is_answered_with_its_line(text: str, message: str) -> None:
    assert error_of(text).startswith(message)


def test_no_code_is_run_from_a_spec(tmp_path: Path) -> None:
    text = f"{SPEC}codec: !!python/object/apply:os.mkdir ['{tmp_path / 'made'}']\n"
    assert error_of(text).startswith("job.yaml:5: not valid YAML: could not determine a constructor")
    assert not (tmp_path / "made").exists()


@given(st.text(st.sampled_from("[]{}:,-?!&*#|>%@`'\"\n ~0a\t<=\x00\x7f\ud800"), max_size=40))
def test_any_text_is_a_spec_or_a_spec_error(text: str) -> None:
    for candidate in (text, SPEC + text, SPEC + "storage: " + text):
        with suppress(SpecError):
            assert parse_job(candidate).kind in JOB_KINDS


# -- the fields that decide the output -----------------------------------------------------------------------------

RUNNING = {
    "output": st.text(min_size=1),
    "storage": st.dictionaries(st.text(), st.text() | st.integers(), max_size=2),
    "engine": st.builds(EngineSpec, kind=st.sampled_from(["auto", "local", "ray"]), workers=st.integers(0, 9)),
    "retry": st.builds(RetrySpec, attempts=st.integers(1, 9)),
    "max_rejects": st.floats(0, 1),
    "encoder": st.none() | st.text(min_size=1),
    "source": st.builds(ImageSourceSpec, path=st.text(min_size=1), image_root=st.none() | st.text(min_size=1)),
}


@given(st.fixed_dictionaries({}, optional=RUNNING))
def test_engine_retries_and_places_never_change_the_output(fields: dict[str, Any]) -> None:
    assert job(**fields).output_fields() == job().output_fields()


@pytest.mark.parametrize(
    "fields",
    [
        {"seed": 1},
        {"tokenizer": "patch:8x8"},
        {"codec": "pack"},
        {"numerics": "int8"},
        {"device": "cuda"},
        {"compiled": True},
        {"unit": {"samples": 1}},
        {"unit": {"bytes": "1MiB"}},
        {"pilot": {"samples": 1}},
        {"pilot": {"ids": 1}},
        *(
            {"source": {"path": "photos/", **fields}}
            for fields in (
                {"form": "folder"},
                {"labels": "none"},
                {"path_column": "x"},
                {"image_column": "x"},
                {"size": 2, "fit": "pad"},
                {"size": [2, 3], "fit": "resize"},
                {"interpolation": "nearest"},
                {"background": [0, 0, 0]},
                {"max_pixels": 5},
                {"max_bytes": 5},
                {"extensions": ["png"]},
            )
        ),
    ],
    ids=str,
)
def test_every_other_field_changes_the_output(fields: dict[str, Any]) -> None:
    assert job(**fields).output_fields() != job().output_fields()


def test_no_field_is_forgotten_in_the_choice_between_the_two() -> None:
    deciding = set(job(numerics="bf16", device="cuda", compiled=True, limit=1).output_fields())
    assert deciding | set(RUNNING) == set(ConvertImages.model_fields)
    places = {"path", "image_root"}
    assert set(job().output_fields()["source"]) | places == set(ImageSourceSpec.model_fields)  # type: ignore[arg-type]
    assert set(job().output_fields()["unit"]) == set(UnitSpec.model_fields)  # type: ignore[arg-type]
    assert set(job().output_fields()["pilot"]) == set(PilotSpec.model_fields)  # type: ignore[arg-type]


# -- hashes --------------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def shuffled(value: Any, order: random.Random) -> Any:
    """An equal value whose mappings were filled in another order."""
    if isinstance(value, dict):
        items = [(key, shuffled(item, order)) for key, item in value.items()]
        order.shuffle(items)
        return dict(items)
    return [shuffled(item, order) for item in value] if isinstance(value, list) else value


@given(JSON, st.randoms(use_true_random=False))
def test_canonical_json_does_not_depend_on_the_order_of_keys(value: Any, order: random.Random) -> None:
    assert canonical_json(shuffled(value, order)) == canonical_json(value)


@given(JSON)
def test_canonical_json_is_json_and_stays_the_same_when_read_and_written_again(value: Any) -> None:
    text = canonical_json(value)
    assert json.loads(text) == value
    assert canonical_json(json.loads(text)) == text


@given(JSON, JSON)
def test_different_values_have_different_digests(one: Any, other: Any) -> None:
    assert (digest(one) == digest(other)) == (canonical_json(one) == canonical_json(other))


def test_canonical_json_and_its_digest_are_what_they_always_were() -> None:
    value = {"b": [1, 2.5, None, True], "a": {"é": "\n"}}
    assert canonical_json(value) == '{"a":{"é":"\\n"},"b":[1,2.5,null,true]}'.encode()
    assert digest(value) == "60a684bf4e75db3cbb2ef97dc547f7bcb2201806f2526639baaad34ecf7a440e"


def test_a_number_that_json_has_not_is_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"x": float("nan")})


def test_a_yaml_spec_and_its_dump_have_the_same_hash() -> None:
    spec = parse_job((JOBS / "convert-images.yaml").read_text(encoding="utf-8"))
    assert isinstance(spec, ConvertImages)
    again = parse_job(yaml.safe_dump(spec.model_dump(mode="json")))
    assert isinstance(again, ConvertImages)
    assert again.output_fields() == spec.output_fields()
