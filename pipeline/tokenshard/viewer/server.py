"""Runs the viewer until it is stopped."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable

import uvicorn

from tokenshard.errors import SpecError
from tokenshard.viewer.app import application
from tokenshard.viewer.opened import Opened


class Viewer:
    """A viewer that listens, but does not answer before :meth:`run`. Stops when the process is interrupted."""

    def __init__(
        self, opened: Callable[[], Opened], host: str = "127.0.0.1", port: int = 0, allowed: Iterable[str] = ()
    ) -> None:
        """``port`` 0 is any that is free. Raises SpecError where the address cannot be taken."""
        try:
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            self._socket = socket.create_server((host, port), family=family)
        except OSError as error:
            raise SpecError(
                f"cannot listen on {host} port {port}: {error.strerror or error}; give another --port, or 0 for any"
            ) from error
        # asyncio does so itself, but not for sockets whose protocol was left open; else each answer waits for 40 ms
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.port = int(self._socket.getsockname()[1])
        self.host = host
        config = uvicorn.Config(
            application(opened, host, allowed),
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)

    @property
    def url(self) -> str:
        """Where a browser finds it."""
        host = "127.0.0.1" if self.host in ("", "0.0.0.0", "::") else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/"

    def run(self) -> None:
        """Answer requests until :meth:`stop`, or an interrupt."""
        self._server.run(sockets=[self._socket])

    def stop(self) -> None:
        """Let :meth:`run` return."""
        self._server.should_exit = True
