"""Pictures made with Pillow, and one call that plans and reads a source as the engine does."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from PIL import Image

from tokenshard.sources.base import Reject, Sample, SourceColumn
from tokenshard.sources.images.open import open_image_source
from tokenshard.spec.images import ImageSourceSpec


@dataclass(frozen=True)
class Conversion:
    """What planning and reading gave."""

    form: str
    plan: pa.Table
    columns: dict[str, SourceColumn]
    samples: dict[str, Sample]
    rejects: dict[str, Reject]


@pytest.fixture
def read_source() -> Callable[..., Conversion]:
    """``read_source(path, **spec)``: plan in one source, read in another that only knows the first one's state."""

    def read(path: object, **fields: Any) -> Conversion:
        spec = ImageSourceSpec(path=str(path), **fields)
        planner = open_image_source(spec)
        plan = pa.Table.from_batches(list(planner.plan()))
        worker = open_image_source(spec, None, planner.state())
        results = [thunk() for thunk in worker.read(plan)]
        keys = plan["key"].to_pylist()
        assert [result.key for result in results] == keys
        assert len(set(keys)) == len(keys)
        samples = {result.key: result for result in results if isinstance(result, Sample)}
        for sample in samples.values():
            assert sample.data.dtype == np.uint8
            assert sample.data.ndim == 3
            assert sample.data.shape[2] == 3
            assert set(sample.columns) == {column.name for column in planner.columns()}
        return Conversion(
            planner.form,
            plan,
            {column.name: column for column in planner.columns()},
            samples,
            {result.key: result for result in results if isinstance(result, Reject)},
        )

    return read


@pytest.fixture
def picture() -> Callable[..., NDArray[np.uint8]]:
    """``picture(seed, height, width)``: a smooth random RGB picture."""

    def make(seed: int = 0, height: int = 24, width: int = 32) -> NDArray[np.uint8]:
        coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))

    return make


@pytest.fixture
def encoded() -> Callable[..., bytes]:
    """``encoded(pixels, format, **options)``: an image file of the pixels (or of a Pillow image)."""

    def encode(pixels: Any, format: str = "PNG", **options: Any) -> bytes:
        image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
        buffer = io.BytesIO()
        image.save(buffer, format, **options)
        return buffer.getvalue()

    return encode
