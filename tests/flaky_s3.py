"""An S3 server that fails: a real HTTP proxy in front of the test server, which breaks requests by a given schedule.

Tests get one from the fixture ``flaky_s3`` and point ``endpoint_url`` at it. Nothing of the client is replaced: every
fault happens on a real socket, as it does between a worker and a busy object store.
"""

from __future__ import annotations

import itertools
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from email.message import Message
from enum import Enum
from http.client import HTTPConnection, HTTPMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import ClassVar
from urllib.parse import urlsplit

LATENCY = 0.3
"""Seconds by which a slow response is late."""

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "expect"}


class Fault(Enum):
    """One way in which a request fails."""

    BUSY = "503 SlowDown; the request is not carried out"
    RESET = "the connection is reset before the request reaches the server"
    LOST = "the request is carried out and its response is lost"
    CUT = "the request is carried out and its response ends in the middle"
    SLOW = "the response comes late, but comes"
    HELD = "the response waits for :meth:`FlakyS3.release`"


FAILURES = (Fault.BUSY, Fault.RESET, Fault.LOST, Fault.CUT, Fault.SLOW)
"""What goes by without anybody's help."""


def every(number: int, *faults: Fault) -> Iterator[Fault | None]:
    """A schedule in which each ``number``-th request fails, by the given faults in turn (default: all that pass)."""
    for fault in itertools.cycle(faults or FAILURES):
        yield from itertools.repeat(None, number - 1)
        yield fault


class FlakyS3:
    """The proxy. ``schedule`` has one entry a request, in order of arrival; when it ends, nothing fails any more.

    Conditional writes pass one at a time: S3 checks and creates atomically, which the test server by itself does not.
    """

    def __init__(self, upstream: str, schedule: Iterable[Fault | None]) -> None:
        self.requests = 0
        self.failures: Counter[Fault] = Counter()
        self.sent = 0
        """bytes of content in the responses"""
        self._upstream = urlsplit(upstream)
        self._schedule = iter(schedule)
        self._lock = threading.Lock()
        self._creating = threading.Lock()
        self._closed = threading.Event()
        self._holding = threading.Condition()
        self._held, self._released = 0, False
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": self}))
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, name="flaky-s3", daemon=True).start()

    def __enter__(self) -> FlakyS3:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        self.release()
        self._server.shutdown()
        self._server.server_close()

    def next_fault(self) -> Fault | None:
        with self._lock:
            self.requests += 1
            fault = next(self._schedule, None)
            if fault is not None:
                self.failures[fault] += 1
            return fault

    def forward(self, method: str, target: str, headers: Message, body: bytes) -> tuple[int, HTTPMessage, bytes]:
        """Status, headers and body with which the server answers."""
        if "If-None-Match" in headers:
            with self._creating:
                return self._exchange(method, target, headers, body)
        return self._exchange(method, target, headers, body)

    def _exchange(self, method: str, target: str, headers: Message, body: bytes) -> tuple[int, HTTPMessage, bytes]:
        connection = HTTPConnection(self._upstream.hostname or "", self._upstream.port, timeout=60)
        try:
            kept = {name: value for name, value in headers.items() if name.lower() not in _HOP_BY_HOP}
            connection.request(method, target, body=body or None, headers=kept)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def hold(self) -> None:
        """Returns when held responses are released."""
        with self._holding:
            self._held += 1
            self._holding.notify_all()
            self._holding.wait_for(lambda: self._released)
            self._held -= 1

    def holds(self, number: int, timeout: float = 60) -> bool:
        """Waits until so many responses are held at the same time; False if that does not happen in ``timeout`` s."""
        with self._holding:
            return self._holding.wait_for(lambda: self._held >= number, timeout)

    def release(self) -> None:
        """Lets go of all held responses, now and from now on."""
        with self._holding:
            self._released = True
            self._holding.notify_all()

    def count_sent(self, size: int) -> None:
        with self._lock:
            self.sent += size

    def wait_latency(self) -> None:
        """Returns after :data:`LATENCY`, or at once when the proxy is closed."""
        self._closed.wait(LATENCY)


class _Handler(BaseHTTPRequestHandler):
    proxy: ClassVar[FlakyS3]
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 60

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.proxy.next_fault()
        if fault is Fault.BUSY:
            self._refuse()
        elif fault is Fault.RESET:
            self._reset()
        else:
            status, headers, content = self.proxy.forward(self.command, self.path, self.headers, body)
            if fault is Fault.LOST:
                self._reset()
                return
            if fault is Fault.SLOW:
                self.proxy.wait_latency()
            if fault is Fault.HELD:
                self.proxy.hold()
            self._answer(status, headers, content, cut=fault is Fault.CUT)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve  # names that BaseHTTPRequestHandler looks up

    def _refuse(self) -> None:
        content = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Reduce your rate.</Message></Error>"
        headers = HTTPMessage()
        headers["Content-Type"] = "application/xml"
        self._answer(503, headers, b"" if self.command == "HEAD" else content)

    def _reset(self) -> None:
        """Closes the connection so that the client sees a reset, not an orderly end."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def _answer(self, status: int, headers: HTTPMessage, content: bytes, cut: bool = False) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        length = headers["Content-Length"] if self.command == "HEAD" and headers["Content-Length"] else len(content)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        content = content[: len(content) // 2] if cut else content
        self.proxy.count_sent(len(content))
        self.wfile.write(content)
        if cut:
            self._reset()

    def log_message(self, *_: object) -> None:
        """Requests are counted, not logged."""
