"""The form of a source is found out from its path, and says so where it cannot be."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tokenshard.errors import SpecError
from tokenshard.sources.base import PLAN_COLUMNS
from tokenshard.sources.images.files import expand_braces
from tokenshard.sources.images.open import open_image_source
from tokenshard.spec.images import ImageSourceSpec


def test_braces_expand_as_in_the_shell() -> None:
    assert expand_braces("a{1,2}b{x,y}") == ["a1bx", "a1by", "a2bx", "a2by"]
    assert expand_braces("{008..011}.tar") == ["008.tar", "009.tar", "010.tar", "011.tar"]
    assert expand_braces("plain") == ["plain"]


def test_a_folder_with_images_is_a_folder_of_images_whatever_else_is_in_it(
    tmp_path: Path, encoded: Callable[..., bytes], picture: Callable[..., Any]
) -> None:
    (tmp_path / "a.tar").write_bytes(b"x")
    (tmp_path / "b.parquet").write_bytes(b"x")
    assert open_image_source(ImageSourceSpec(path=str(tmp_path))).form == "webdataset"
    (tmp_path / "z.png").write_bytes(encoded(picture()))
    assert open_image_source(ImageSourceSpec(path=str(tmp_path))).form == "folder"
    assert open_image_source(ImageSourceSpec(path=str(tmp_path), form="hf-parquet")).form == "hf-parquet"


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("a.tar", "webdataset"),
        ("a.TGZ", "webdataset"),
        ("a.tar.gz", "webdataset"),
        ("a.csv", "manifest"),
        ("a.tsv", "manifest"),
        ("a.jsonl", "manifest"),
        ("a.ndjson", "manifest"),
        ("a.json", "coco"),
        ("t10k-images-idx3-ubyte.gz", "idx"),
        ("t10k-images.idx3-ubyte", "idx"),
        ("a.parquet", "hf-parquet"),
        ("a.JPG", "folder"),
    ],
)
def test_a_file_tells_its_form_by_its_name(name: str, form: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"content does not matter")
    assert open_image_source(ImageSourceSpec(path=str(tmp_path / name))).form == form


def test_a_file_of_unknown_form_is_an_error_that_lists_the_forms(tmp_path: Path) -> None:
    (tmp_path / "a.xyz").touch()
    with pytest.raises(SpecError, match="cannot tell the form of this file; set form to one of folder, manifest"):
        open_image_source(ImageSourceSpec(path=str(tmp_path / "a.xyz")))


def test_a_fifo_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.csv")
    with pytest.raises(SpecError, match="neither a regular file nor a folder"):
        open_image_source(ImageSourceSpec(path=str(tmp_path / "a.csv")))


@pytest.mark.parametrize("form", ["manifest", "coco"])
def test_forms_of_one_file_refuse_a_folder(form: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="give the path of that file"):
        open_image_source(ImageSourceSpec(path=str(tmp_path), form=form))  # type: ignore[arg-type]


def test_a_label_option_that_a_form_does_not_have_is_refused(tmp_path: Path) -> None:
    for name in ("a.tar", "x-idx3-ubyte"):
        (tmp_path / name).write_bytes(b"x")
        source = open_image_source(ImageSourceSpec(path=str(tmp_path / name), labels="folder"))
        with pytest.raises(SpecError, match="labels: folder is no choice"):
            list(source.plan())


def test_plans_have_the_common_columns_and_the_state_is_json_and_thunks_travel(
    tmp_path: Path, encoded: Callable[..., bytes], picture: Callable[..., Any]
) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat/a.png").write_bytes(encoded(picture()))
    source = open_image_source(ImageSourceSpec(path=str(tmp_path)))
    plan = pa.Table.from_batches(list(source.plan()))
    assert plan.schema.names[: len(PLAN_COLUMNS)] == PLAN_COLUMNS.names
    assert plan.schema.field("key").type == pa.string()
    state = json.loads(json.dumps(source.state()))
    assert str(tmp_path) not in json.dumps(state)
    worker = open_image_source(ImageSourceSpec(path=str(tmp_path)), {}, state)
    (thunk,) = worker.read(plan)
    sample = pickle.loads(pickle.dumps(thunk))()
    assert (sample.key, sample.columns) == ("cat/a.png", {"label": 0})
