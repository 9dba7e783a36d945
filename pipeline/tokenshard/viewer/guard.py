"""What stands before every answer: who may ask, and what a browser may do with what it gets."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_HOST = re.compile(r"(?:\[(?P<six>[0-9a-fA-F:.]+)\]|(?P<name>[^:/@\s\[\]]+))(?::\d{1,5})?")
HEADERS = {
    "content-security-policy": "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Guard:
    """Refuses requests that another site had a browser send.

    A page of a stranger can point a name of its own to 127.0.0.1 (DNS rebinding), but the browser then sends that name
    as Host. Only names of this machine are answered: loopback, the address it listens on, and what the user allows;
    where it listens on all addresses, any address, since a rebound name is none.
    """

    def __init__(self, app: ASGIApp, host: str, allowed: Iterable[str] = ()) -> None:
        self._app = app
        self._names = {*LOOPBACK, host.lower(), *(name.lower() for name in allowed)}
        self._any_address = host in ("", "0.0.0.0", "::")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        app: ASGIApp = self._app
        if scope["method"] not in ("GET", "HEAD"):
            app = _refusal(405, f"{scope['method']} is not allowed: the viewer changes nothing")
        elif not self._knows(Headers(scope=scope).getlist("host")):
            app = _refusal(421, "this name is not one of the viewer; open the address it printed, or --allow-host NAME")

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await app(scope, receive, sent)

    def _knows(self, hosts: list[str]) -> bool:
        match = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
        if match is None:
            return False
        name = (match["six"] or match["name"]).lower()
        return name in self._names or (self._any_address and _is_address(name))


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _refusal(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": {"kind": "refused", "message": message}}, status)
