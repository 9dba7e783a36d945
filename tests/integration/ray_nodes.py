"""A Ray cluster of several nodes on this machine: separate processes, each with ports of its own, as on real machines.

Nodes share no object store and no session folder with the head; killing one takes everything on it down at once.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import psutil

from ports import free_port

UNIT_ACTORS = ("ray::UnitActor", "ray::set up", "ray::pilot", "ray::unit ")
"""How processes of unit actors are called: by their class, or by what they are at."""
STARTED = 120
"""Seconds that a node may take to come up on a busy machine."""


class RayNodes:
    """A head without CPUs, and nodes. ``environment`` is what a client needs to talk to it."""

    def __init__(self, token: bool = True) -> None:
        self._root = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # sockets have short paths
        self.environment = {"RAY_AUTH_MODE": "disabled"}
        if token:
            self.environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self._port, dashboard, self._client_port, self.metrics_port = (free_port() for _ in range(4))
        self.address = f"127.0.0.1:{self._port}"
        self.dashboard = f"http://127.0.0.1:{dashboard}"
        self.nodes: list[subprocess.Popen[bytes]] = []
        self._head = self._start(
            *("--head", f"--port={self._port}", "--num-cpus=0", "--dashboard-host=127.0.0.1"),
            *(f"--dashboard-port={dashboard}", f"--ray-client-server-port={self._client_port}"),
            f"--metrics-export-port={self.metrics_port}",
        )
        self._wait(lambda: _answers(dashboard), self._head)

    def _start(self, *options: str, **environment: str) -> subprocess.Popen[bytes]:
        ray = Path(sys.executable).with_name("ray")
        path = os.pathsep.join((str(ray.parent), os.environ["PATH"]))  # entrypoints say `python`
        own = [f"--dashboard-agent-listen-port={free_port()}", f"--temp-dir={tempfile.mkdtemp(dir=self._root)}"]
        common = ["--block", "--object-store-memory=80000000", "--disable-usage-stats", *own]
        with (self._root / "nodes.log").open("ab") as log:
            return subprocess.Popen(
                [str(ray), "start", *options, *common],
                env={**os.environ, **self.environment, **environment, "PATH": path},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def add(self, cpus: int = 1, **environment: str) -> subprocess.Popen[bytes]:
        """One more node, with these variables; returns when its raylet runs."""
        port = f"--metrics-export-port={free_port()}"
        node = self._start(f"--address={self.address}", f"--num-cpus={cpus}", port, **environment)
        self._wait(lambda: bool(_named(node, "raylet")), node)
        self.nodes.append(node)
        return node

    def _wait(self, condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
        """Until a process that was started is up."""
        until = time.monotonic() + STARTED
        while not condition():
            over = process.poll() is not None or time.monotonic() > until
            assert not over, f"a node did not come up: {(self._root / 'nodes.log').read_text()}"
            time.sleep(0.1)

    def workers(self) -> list[psutil.Process]:
        """Unit actors on all nodes."""
        return [worker for node in self.nodes for worker in _named(node, *UNIT_ACTORS)]

    def announce_end(self, node: subprocess.Popen[bytes], seconds: int) -> None:
        """What an autoscaler does when the cloud takes a machine back: nothing new is placed there from now on."""
        [raylet] = _named(node, "raylet")
        name = next(word.partition("=")[2] for word in raylet.cmdline() if word.startswith("--node_id="))
        words = ["--address", self.address, "--node-id", name, "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
        words += ["--reason-message", "taken back", "--deadline-remaining-seconds", str(seconds)]
        ray = Path(sys.executable).with_name("ray")
        subprocess.run([ray, "drain-node", *words], env={**os.environ, **self.environment}, check=True)

    def kill(self, node: subprocess.Popen[bytes]) -> None:
        """The machine is gone: everything on it ends at once."""
        self.nodes = [one for one in self.nodes if one is not node]
        _kill(node)

    def __enter__(self) -> RayNodes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for node in (*self.nodes, self._head):
            _kill(node)
        shutil.rmtree(self._root, ignore_errors=True)


def _kill(node: subprocess.Popen[bytes]) -> None:
    try:
        family = [psutil.Process(node.pid), *psutil.Process(node.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        family = []
    for process in family:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    node.wait()


def _named(node: subprocess.Popen[bytes], *names: str) -> list[psutil.Process]:
    found = []
    try:
        for process in psutil.Process(node.pid).children(recursive=True):
            try:
                program = " ".join(process.cmdline()[:1])
                if any(name in program for name in names):
                    found.append(process)
            except psutil.Error:
                continue
    except psutil.NoSuchProcess:
        return []
    return found


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
