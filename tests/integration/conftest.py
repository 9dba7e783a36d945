"""Images to convert, and a Ray cluster that outlives its drivers."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from integration.command import convert
from integration.work import SAMPLES, SIDE, UNITS, WORK


@pytest.fixture(scope="session")
def workload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 images that make 20 units of 8: enough work for a kill to hit something."""
    root = tmp_path_factory.mktemp("workload")
    draw = np.random.default_rng(1)
    rows = np.linspace(0, 150, SIDE)[:, None, None]
    for number in range(UNITS * SAMPLES):
        path = root / f"class{number % 4}" / f"{number:03d}.png"
        path.parent.mkdir(exist_ok=True)
        noise = draw.integers(0, 100, (SIDE, SIDE, 3))
        Image.fromarray((rows + noise).astype(np.uint8)).save(path, compress_level=1)
    return root


@pytest.fixture(scope="session")
def undisturbed(workload: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The summary of a conversion of the workload in which nothing went wrong."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    return convert(workload, out, *WORK, "--engine", "local", "--workers", "0")


@pytest.fixture(scope="session")
def ray_address(s3_server: str) -> Iterator[str]:
    """Address of a Ray cluster with two CPUs on this machine, whose workers know the S3 server."""
    import ray

    started = ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=100_000_000,
    )
    yield started.address_info["gcs_address"]
    ray.shutdown()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A headless Chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install 'tokenshard[browser]'")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium; on Debian: apt-get install chromium")
    with playwright.sync_playwright() as session:
        browser = session.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()
