"""A conversion on an S3 store that fails now and then, and one that is away: nothing lost, nothing twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from flaky_s3 import Fault, FlakyS3, every
from integration.command import convert, refused
from integration.work import WORK
from tokenshard.shards.verify import verify
from tokenshard.store import Store

pytestmark = pytest.mark.integration
Proxies = Callable[[Iterable[Fault | None]], FlakyS3]
LOCAL = ["--engine", "local", "--workers", "2"]


def test_every_tenth_request_failing_changes_nothing(
    workload: Path, undisturbed: dict[str, Any], s3_url: str, flaky_s3: Proxies
) -> None:
    proxy = flaky_s3(every(10, Fault.BUSY, Fault.RESET, Fault.LOST, Fault.CUT))
    source = Store(workload)
    for entry in source.list():
        Store(s3_url).put(f"raw/{entry.name}", source.read(entry.name))
    out = f"{s3_url}/tokens"
    summary = convert(f"{s3_url}/raw", out, *WORK, *LOCAL, AWS_ENDPOINT_URL=proxy.endpoint)
    assert proxy.failures.total() > 20
    assert summary["fingerprint"] == undisturbed["fingerprint"]
    assert verify(Store(out), deep=True).ok


def test_a_store_that_goes_away_stops_the_job_and_the_same_command_completes_it(
    workload: Path, undisturbed: dict[str, Any], s3_url: str, flaky_s3: Proxies
) -> None:
    away = flaky_s3([*[None] * 45, *[Fault.BUSY] * 100_000])
    out = f"{s3_url}/tokens"
    command = ["convert", "images", str(workload), out, "--quiet", *WORK, *LOCAL]
    message = refused(*command, AWS_ENDPOINT_URL=away.endpoint)
    assert out in message
    assert "attempts" in message
    assert convert(workload, out, *WORK, *LOCAL)["fingerprint"] == undisturbed["fingerprint"]


def test_a_store_that_cannot_be_reached_is_one_clear_line(workload: Path, s3_url: str) -> None:
    command = ["convert", "images", str(workload), f"{s3_url}/out", "--quiet", *WORK, *LOCAL]
    assert s3_url in refused(*command, AWS_ENDPOINT_URL="http://127.0.0.1:9")
