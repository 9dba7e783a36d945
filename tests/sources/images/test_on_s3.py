"""The same inputs on an S3 server and on disk are the same source: equal plans, samples and rejects."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset

from tokenshard.store import Store

pytestmark = pytest.mark.integration
Read = Callable[..., Any]


@pytest.fixture
def inputs(tmp_path: Path, encoded: Callable[..., bytes], picture: Callable[..., Any]) -> Path:
    """Every form in one folder."""
    for number in range(12):
        folder = tmp_path / "folder" / ("train" if number % 2 else "test") / f"class {number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"ü{number}.png").write_bytes(encoded(picture(number)))
    (tmp_path / "folder/train/class 1/broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    (tmp_path / "folder/train/class 1/empty.png").touch()
    (tmp_path / "folder/train/class 1/nameless").write_bytes(encoded(picture()))
    rows = [f"folder/test/class 0/ü{number}.png,{number}" for number in (0, 6)]
    (tmp_path / "manifest.csv").write_text("\n".join(["path,number", *rows, "gone.png,9"]))
    (tmp_path / "tars").mkdir()
    for name in ("a.tar", "b.tgz"):
        with webdataset.TarWriter(str(tmp_path / "tars" / name)) as writer:  # type: ignore[attr-defined]
            for number in range(4):
                writer.write({"__key__": f"{name}{number}", "png": encoded(picture(number)), "cls": number})
    images = [{"bytes": encoded(picture(number)), "path": None} for number in range(4)]
    pq.write_table(pa.table({"image": images, "label": [0, 1, 2, 3]}), tmp_path / "images.parquet", row_group_size=2)
    document = {"images": [{"id": 1, "file_name": "class 0/ü0.png"}]}
    (tmp_path / "coco.json").write_text(json.dumps(document))
    (tmp_path / "x-idx3-ubyte").write_bytes(bytes.fromhex("00000803 00000002 00000002 00000002") + bytes(8))
    return tmp_path


@pytest.mark.parametrize(
    "path",
    [
        "folder",
        "folder/*/class 1/*",
        "folder/test/class 0/ü0.png",
        "manifest.csv",
        "tars",
        "tars/{a.tar,b.tgz}",
        "images.parquet",
        "coco.json",
        "x-idx3-ubyte",
    ],
)
def test_every_form_is_the_same_on_s3_and_on_disk(path: str, inputs: Path, s3_url: str, read_source: Read) -> None:
    there = Store(s3_url)
    for entry in Store(inputs).list():
        there.put(entry.name, inputs / entry.name)
    local, remote = read_source(inputs / path), read_source(f"{s3_url}/{path}")
    assert remote.plan.equals(local.plan)
    assert (remote.form, remote.columns, remote.rejects) == (local.form, local.columns, local.rejects)
    assert list(remote.samples) == list(local.samples)
    for key, sample in local.samples.items():
        np.testing.assert_array_equal(remote.samples[key].data, sample.data)
        assert remote.samples[key].columns == sample.columns
