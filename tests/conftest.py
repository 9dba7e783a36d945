"""Fixtures shared by all tests: the developer data, and a real S3-protocol server on loopback."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from durable_s3 import S3_ENVIRONMENT
from flaky_s3 import Fault, FlakyS3

# Timings on shared machines say nothing; the same examples everywhere make a red run repeatable.
settings.register_profile("tokenshard", deadline=None, derandomize=True)
settings.load_profile("tokenshard")

# Several processes share the cores: threads of torch that wait for work must not spin. Read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

LONGEST = ("test_cluster", "test_crash_safety", "test_video", "test_document_conversion", "test_grid_conversion")
"""Files that wait for processes more than they compute; begun first, they do not keep the last worker busy alone."""
BUCKET = "tokens"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in LONGEST)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The developer data (real images, broken files, …) beside the checkout; not part of the product."""
    root = Path(os.environ.get("TOKENSHARD_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (root / "SOURCES.md").is_file():
        pytest.skip(f"developer data not found at {root}; set TOKENSHARD_DATA to run this test")
    return root


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Small tensors gain nothing from threads, and lose much where other work runs beside."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """URL of an S3-protocol server; AWS_* variables point to it while the session lasts.

    It is moto on loopback, or, where TOKENSHARD_TEST_S3_ENDPOINT is set, the server at that URL, with the credentials
    of the environment. The bucket :data:`BUCKET`, which is made unless it exists, and its objects stay there.
    """
    import boto3

    if external := os.environ.get("TOKENSHARD_TEST_S3_ENDPOINT"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", external)
            _make_bucket(boto3.client("s3"))
            yield external
        return
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    saved = {name: os.environ.get(name) for name in (*S3_ENVIRONMENT, "AWS_ENDPOINT_URL")}
    os.environ.update(S3_ENVIRONMENT, AWS_ENDPOINT_URL=endpoint)
    _make_bucket(boto3.client("s3"))
    yield endpoint
    server.stop()
    for name, value in saved.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _make_bucket(client: Any) -> None:
    with contextlib.suppress(client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists):
        client.create_bucket(Bucket=BUCKET)


@pytest.fixture
def s3_url(s3_server: str) -> str:
    """An empty prefix in a bucket of that server."""
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture
def flaky_s3(s3_server: str) -> Iterator[Callable[[Iterable[Fault | None]], FlakyS3]]:
    """Starts failing proxies in front of that server: ``flaky_s3(every(5)).endpoint`` is a URL for `endpoint_url`."""
    with ExitStack() as proxies:
        yield lambda schedule: proxies.enter_context(FlakyS3(s3_server, schedule))
