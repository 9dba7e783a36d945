"""COCO files: images joined with their annotations."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tokenshard.errors import SpecError

Read = Callable[..., Any]
DOCUMENT = {
    "images": [
        {"id": 7, "file_name": "a.png", "width": 32, "height": 24, "license": 1},
        {"id": 9, "file_name": "b.png", "width": 32, "height": 24, "score": 0.5},
    ],
    "annotations": [
        {"id": 1, "image_id": 9, "category_id": 3, "bbox": [1, 2, 3, 4]},
        {"id": 2, "image_id": 9, "category_id": 4, "bbox": [0, 0, 1, 1]},
    ],
    "categories": [],
}


@pytest.fixture
def write(tmp_path: Path, encoded: Callable[..., bytes], picture: Callable[..., Any]) -> Callable[..., Path]:
    """``write(json, folder)``: the document and the folder with its two images, relative to an empty folder."""

    def write(json_name: str, folder: str, document: object = DOCUMENT) -> Path:
        (tmp_path / json_name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for seed, name in enumerate(("a.png", "b.png")):
            (tmp_path / folder / name).write_bytes(encoded(picture(seed)))
        (tmp_path / json_name).write_text(json.dumps(document))
        return tmp_path / json_name

    return write


def test_image_fields_and_annotations_are_carried(write: Callable[..., Path], read_source: Read) -> None:
    result = read_source(write("coco.json", "."))
    assert result.form == "coco"
    assert dict(result.samples["a.png"].columns) == {
        "id": 7,
        "width": 32,
        "height": 24,
        "license": 1,
        "score": None,
        "num_annotations": 0,
        "annotations": "[]",
    }
    second = result.samples["b.png"].columns
    assert (second["num_annotations"], second["score"], second["license"]) == (2, 0.5, None)
    assert json.loads(second["annotations"]) == DOCUMENT["annotations"]


@pytest.mark.parametrize(
    ("json_name", "folder"),
    [
        ("coco.json", "."),
        ("coco.json", "pictures/deep"),
        ("annotations/instances_val2017.json", "val2017"),
        ("annotations/instances_val2017.json", "images/val2017"),
        ("annotations/all.json", "images"),
    ],
)
def test_the_image_folder_is_found_where_it_usually_lies(
    json_name: str, folder: str, write: Callable[..., Path], read_source: Read
) -> None:
    result = read_source(write(json_name, folder))
    assert list(result.samples) == ["a.png", "b.png"]
    assert result.plan["uri"].to_pylist() == ["a.png", "b.png"]


def test_the_image_folder_can_be_given(write: Callable[..., Path], tmp_path: Path, read_source: Read) -> None:
    path = write("annotations/x.json", "far/away")
    assert len(read_source(path, image_root="../far/away").samples) == 2
    assert len(read_source(path, image_root=str(tmp_path / "far/away")).samples) == 2
    with pytest.raises(SpecError, match=r"cannot find the folder with a\.png; set image_root"):
        read_source(path)


def test_a_file_name_that_leaves_the_folder_is_a_reject(write: Callable[..., Path], read_source: Read) -> None:
    names = ["a.png", "../a.png", "/etc/hostname", "s3://bucket/x.png", "a.png", "gone.png"]
    document = {"images": [{"id": number, "file_name": name} for number, name in enumerate(names)]}
    result = read_source(write("in/x.json", "in", document))
    assert list(result.samples) == ["a.png"]
    assert {key: reject.error for key, reject in result.rejects.items()} == {
        "../a.png": "InputError",
        "/etc/hostname": "InputError",
        "s3://bucket/x.png": "InputError",
        "a.png#2": "duplicate key",
        "gone.png": "FileNotFoundError",
    }


@pytest.mark.parametrize("document", [[], {}, {"images": [{"id": 1}]}, {"images": "x"}])
def test_other_json_is_one_clear_error(document: object, write: Callable[..., Path], read_source: Read) -> None:
    with pytest.raises(SpecError, match="not a COCO file"):
        read_source(write("x.json", ".", document))


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "annotated"),
    [("images_info_examples", False), ("panoptic_coco_detection_format", True), ("panoptic_examples", True)],
)
def test_the_developer_files_are_read(name: str, annotated: bool, data_dir: Path, read_source: Read) -> None:
    result = read_source(data_dir / f"images/formats/coco/{name}.json")
    assert list(result.samples) == ["000000142238.jpg", "000000439180.jpg"]
    for sample in result.samples.values():
        assert sample.data.shape == (sample.columns["height"], sample.columns["width"], 3)
        assert ("annotations" in sample.columns) == annotated
