"""IDX files, as MNIST comes in."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokenshard.errors import SpecError

Read = Callable[..., Any]
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 4, 6), dtype=np.uint8)


def write(folder: Path, name: str, header: tuple[int, ...], data: bytes) -> Path:
    content = struct.pack(f">{len(header)}I", *header) + data
    (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return folder / name


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("joint", ["-", "."])
def test_records_become_rgb_images_with_the_labels_beside_them(
    suffix: str, joint: str, tmp_path: Path, read_source: Read
) -> None:
    path = write(tmp_path, f"train-images{joint}idx3-ubyte{suffix}", (0x803, 5, 4, 6), PIXELS.tobytes())
    write(tmp_path, f"train-labels{joint}idx1-ubyte{suffix}", (0x801, 5), bytes([3, 1, 4, 1, 5]))
    for source in (path, tmp_path):
        result = read_source(source)
        assert (result.form, result.rejects) == ("idx", {})
        assert list(result.samples) == [f"{path.name}/{record:08d}" for record in range(5)]
        for record, sample in enumerate(result.samples.values()):
            np.testing.assert_array_equal(sample.data, np.repeat(PIXELS[record][..., None], 3, axis=2))
            assert sample.columns == {"label": [3, 1, 4, 1, 5][record]}
            assert sample.raw_bytes == 24


def test_images_without_labels_are_fine(tmp_path: Path, read_source: Read) -> None:
    path = write(tmp_path, "x-idx3-ubyte", (0x803, 5, 4, 6), PIXELS.tobytes())
    assert not read_source(path).columns


def test_images_are_fitted_like_all_others(tmp_path: Path, read_source: Read) -> None:
    path = write(tmp_path, "x-idx3-ubyte", (0x803, 5, 4, 6), PIXELS.tobytes())
    samples = read_source(path, size=8, fit="pad").samples
    assert {sample.data.shape for sample in samples.values()} == {(8, 8, 3)}


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_truncated_file_gives_its_whole_records_and_one_reject(
    suffix: str, tmp_path: Path, read_source: Read
) -> None:
    path = write(tmp_path, f"x-idx3-ubyte{suffix}", (0x803, 5, 4, 6), PIXELS.tobytes()[:-30])
    result = read_source(path)
    assert len(result.samples) == 3
    assert {key: reject.error for key, reject in result.rejects.items()} == {path.name: "damaged IDX file"}


@pytest.mark.parametrize(
    "header", [(0x801, 5, 4, 6), (0x803, 5, 0, 6), (0x803, 2**32 - 1, 2**31, 2**31)], ids=["magic", "empty", "huge"]
)
def test_an_impossible_header_is_one_clear_error(header: tuple[int, ...], tmp_path: Path, read_source: Read) -> None:
    with pytest.raises(SpecError, match=r"no usable input found.*(damaged IDX|impossible size)"):
        read_source(write(tmp_path, "x-idx3-ubyte", header, PIXELS.tobytes()))


def test_damaged_labels_are_an_error_before_anything_is_converted(tmp_path: Path, read_source: Read) -> None:
    path = write(tmp_path, "t-images-idx3-ubyte", (0x803, 5, 4, 6), PIXELS.tobytes())
    write(tmp_path, "t-labels-idx1-ubyte", (0x801, 5), b"123")
    with pytest.raises(SpecError, match=r"t-labels-idx1-ubyte is damaged \(3 of 5 labels.*set labels: none"):
        read_source(path)
    assert len(read_source(path, labels="none").samples) == 5


@pytest.mark.data
def test_mnist_is_read(data_dir: Path) -> None:
    from tokenshard.sources.images.open import open_image_source
    from tokenshard.spec.images import ImageSourceSpec

    source = open_image_source(ImageSourceSpec(path=str(data_dir / "images/formats/mnist_idx")))
    batches = list(source.plan())
    assert sum(batch.num_rows for batch in batches) == 10_000
    import pyarrow as pa

    plan = pa.Table.from_batches(batches).slice(9_000, 20)
    for thunk in source.read(plan):
        sample = thunk()
        assert sample.data.shape == (28, 28, 3)
        assert 0 <= sample.columns["label"] <= 9
