"""A small dataset of pictures, and a viewer of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="pip install 'tokenshard[view]'")
import tokenshard
from viewing import LOCAL, Browser, make_images, viewing

SAMPLES = 240


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 pictures of 32 x 32 as 8 x 8 ids below 64, in five shards; one input was rejected."""
    root = tmp_path_factory.mktemp("viewed")
    make_images(root / "images", SAMPLES)
    unit = {"samples": 50, "bytes": 1 << 20}
    options = {"codec": "context", "max_rejects": 0.5, "unit": unit, **LOCAL}
    tokenshard.convert_images(root / "images", root / "tokens", "patch:4x4,k=64", **options)
    return root / "tokens"


@pytest.fixture(scope="session")
def browser(pictures: Path) -> Iterator[Browser]:
    with viewing(pictures) as found:
        yield found
