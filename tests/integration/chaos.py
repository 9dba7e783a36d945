"""Harm at random to conversions on a cluster: what the chaos test does."""

from __future__ import annotations

import os
import random
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from flaky_s3 import Fault
from integration.command import command_line
from integration.ray_nodes import RayNodes
from tokenshard.engine.job_folder import JobFolder
from tokenshard.store import Store

DEADLINE = 240
"""Seconds that anything on a cluster may take on a busy machine."""


class Chaos:
    """Does harm at random to conversions on the cluster, ``faults`` times in all."""

    def __init__(self, cluster: RayNodes, draw: random.Random) -> None:
        self.cluster, self.draw = cluster, draw
        self.done: Counter[str] = Counter()
        self.away = threading.Event()
        self.driver: subprocess.Popen[bytes] | None = None

    def schedule(self) -> Iterator[Fault | None]:
        """What the store does with each request."""
        while True:
            yield self.draw.choice([Fault.BUSY, Fault.RESET, Fault.LOST, Fault.CUT]) if self.away.is_set() else None

    def harm(self) -> None:
        kind = self.draw.choice(["worker", "worker", "driver", "node", "store"])
        if kind == "worker" and (workers := self.cluster.workers()):
            with suppress(psutil.NoSuchProcess):
                self.draw.choice(workers).kill()
        elif kind == "driver" and self.driver is not None:
            self.driver.kill()
        elif kind == "node":
            self.cluster.kill(self.draw.choice(self.cluster.nodes))
            self.cluster.add()
        elif kind == "store":
            self.away.set()
            time.sleep(self.draw.uniform(0.2, 2))
            self.away.clear()
        else:
            return
        self.done[kind] += 1

    def convert(self, job: Path, out: str, faults: int) -> None:
        """To the end, starting the driver again whenever it ended; harm comes while units are run."""
        words = command_line("run", str(job), "--output", out, "--quiet", "--engine", "ray")
        while True:
            self.driver = subprocess.Popen(
                [*words, "--address", self.cluster.address, "--workers", "2"],
                env={**os.environ, **self.cluster.environment},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
            with self.driver as driver:
                until = time.monotonic() + DEADLINE
                while driver.poll() is None:
                    assert time.monotonic() < until, "the conversion does not get on"
                    if self.done.total() < faults and JobFolder(Store(out), 1).pilot() is not None:
                        self.harm()
                    time.sleep(self.draw.uniform(0, 0.5))
                _, errors = driver.communicate()
            if driver.returncode == 0:
                return
            stopped = b"attempts" in errors or b"cannot connect to Ray" in errors  # the store was away for too long
            assert driver.returncode == -9 or stopped, errors.decode()
