"""Secrets given by the environment stay there: they are in no output, no log, and no job spec."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from integration.command import tokenshard_command
from integration.work import WORK
from tokenshard.store import Store

pytestmark = pytest.mark.integration
MARKS = {
    "AWS_ACCESS_KEY_ID": "AKIDMARKEDBYTHETEST1",
    "AWS_SECRET_ACCESS_KEY": "marked/secret+of/the/test",
    "AWS_SESSION_TOKEN": "marked-session-of-the-test",
    "WANDB_API_KEY": "marked-wandb-of-the-test",
    "RAY_AUTH_TOKEN": "marked-ray-token-of-the-test",
}


def leaks(data: bytes) -> list[str]:
    return [name for name, value in MARKS.items() if value.encode() in data]


def contents(store: Store) -> Iterator[tuple[str, bytes]]:
    """Every file of a dataset and its job folder: as it is, and decompressed."""
    for entry in store.list():
        data = store.read(entry.name)
        yield entry.name, data
        if entry.name.endswith(".parquet"):
            table = pq.read_table(io.BytesIO(data))
            yield entry.name, str(table.to_pylist()).encode() + str(table.schema.metadata).encode()


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_no_secret_of_the_environment_is_in_the_output_or_a_log(workload: Path, s3_url: str, engine: str) -> None:
    out = f"{s3_url}/tokens"
    with tempfile.TemporaryDirectory(prefix="ts", dir="/tmp") as logs:  # Ray's sockets need a short path
        words = ["--engine", engine, "--workers", "1", *WORK]
        command = ["--debug", "convert", "images", str(workload), out, "--json", *words]
        done = tokenshard_command(*command, **MARKS, RAY_TMPDIR=logs)
        assert done.returncode == 0, done.stderr
        assert leaks((done.stdout + done.stderr).encode()) == []
        written = [path for path in Path(logs).rglob("*") if path.is_file()]
        assert bool(written) == (engine == "ray")
        assert {str(path): found for path in written if (found := leaks(path.read_bytes()))} == {}
    names = set()
    for name, data in contents(Store(out)):
        names.add(name.split("/")[0])
        assert leaks(data) == [], name
    assert names >= {"_job", "data", "manifest", "tokenizer"}


def test_no_secret_is_in_the_message_of_a_failure(workload: Path, s3_url: str) -> None:
    command = ["--debug", "convert", "images", str(workload), f"{s3_url}/out", *WORK]
    done = tokenshard_command(*command, **MARKS, AWS_ENDPOINT_URL="http://127.0.0.1:9")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert leaks((done.stdout + done.stderr).encode()) == []


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (["--storage", "secret=marked"], "storage.secret"),
        (
            ["--storage", 'client_kwargs={"aws_secret_access_key": "marked"}'],
            "storage.client_kwargs.aws_secret_access_key",
        ),
    ],
)
def test_a_credential_in_a_job_spec_is_refused_before_anything_is_written(
    workload: Path, tmp_path: Path, words: list[str], field: str
) -> None:
    done = tokenshard_command("convert", "images", str(workload), str(tmp_path / "out"), *WORK, *words)
    assert done.returncode == 2
    assert field in done.stderr
    assert "AWS_PROFILE" in done.stderr
    assert "marked" not in done.stderr
    assert not (tmp_path / "out").exists()
