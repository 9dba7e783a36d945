"""Requests and answers of the viewer: checked values, JSON errors, caching by fingerprint, byte ranges."""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tokenshard.errors import FormatError, SpecError, StoreError, TokenshardError
from tokenshard.viewer.opened import Missing, Opened

FOREVER = "private, max-age=31536000, immutable"
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_LARGEST = 1 << 53


@dataclass(frozen=True)
class Asked:
    """The values of a request. Raises SpecError that says what is wrong with one."""

    request: Request

    def text(self, name: str, default: str = "") -> str:
        return self.request.query_params.get(name, default)

    def flag(self, name: str) -> bool:
        return self.text(name) in ("1", "true", "yes")

    def number(self, name: str, default: int, low: int = 0, high: int = _LARGEST) -> int:
        given = self.request.query_params.get(name)
        return default if given is None else _number(name, given, low, high)

    def place(self, name: str) -> int:
        """A number in the path."""
        return _number(name, self.request.path_params[name], 0, _LARGEST)


def _number(name: str, given: str, low: int, high: int) -> int:
    number = int(given) if given.isascii() and given.isdigit() and len(given) < 17 else -1
    if not low <= number <= high:
        raise SpecError(f"{name}={given!r}: expected a whole number of at least {low}")
    return number


@dataclass(frozen=True)
class File:
    """Bytes that an answer consists of."""

    content: bytes
    media_type: str
    name: str | None = None
    """under which a browser saves it, where it is to do so"""


Answer = Callable[[Opened, Asked], "dict[str, Any] | File"]


def endpoint(opened: Callable[[], Opened], answer: Answer) -> Callable[[Request], Response]:
    """An endpoint that answers from the dataset. An answer is the same as long as the dataset is.

    Requests that name its state (``v``) may be kept for ever; others are asked for again, and not sent twice.
    """

    def handle(request: Request) -> Response:
        try:
            found = opened()
            etag = f'"{found.etag}"'
            versioned = request.query_params.get("v") == found.etag
            headers = {"etag": etag, "cache-control": FOREVER if versioned else "private, no-cache"}
            if etag in [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]:
                return Response(status_code=304, headers=headers)
            made = answer(found, Asked(request))
        except Exception as error:
            return failed(error)
        if isinstance(made, File):
            return _file(made, request, headers)
        return JSONResponse(made, headers=headers)

    return handle


def failed(error: Exception) -> JSONResponse:
    """An error as JSON: `kind` and a `message` that says what to do. A bug goes to the terminal with its trace."""
    if isinstance(error, HTTPException):
        status, kind, message = error.status_code, "missing", "there is no such page"
    elif isinstance(error, TokenshardError):
        status, kind = _status(error)
        message = str(error)
    elif isinstance(error, MemoryError | OSError):
        status, kind, message = 500, "system", f"{type(error).__name__}: {error}"
    else:
        traceback.print_exception(error, file=sys.stderr)
        status, kind = 500, "bug"
        message = f"{type(error).__name__} in the viewer; the terminal shows where. Please report it"
    return JSONResponse({"error": {"kind": kind, "message": message}}, status, headers={"cache-control": "no-store"})


def _status(error: TokenshardError) -> tuple[int, str]:
    match error:
        case Missing():
            return 404, "missing"
        case SpecError():
            return 400, "spec"
        case FormatError():
            return 422, "damaged"
        case StoreError():
            return 502, "storage"
    return 500, "failed"


def _file(made: File, request: Request, headers: dict[str, str]) -> Response:
    """A file, or the one range of it that is asked for."""
    headers = {**headers, "accept-ranges": "bytes"}
    if made.name is not None:
        headers["content-disposition"] = f'attachment; filename="{made.name}"'
    size = len(made.content)
    match = _RANGE.fullmatch(request.headers.get("range", ""))
    if match is None or not (match[1] or match[2]):
        return Response(made.content, 200, headers, made.media_type)
    if match[1]:
        start, end = int(match[1]), min(int(match[2] or size), size - 1)
    else:
        start, end = max(0, size - int(match[2])), size - 1
    if not start <= end:
        return Response(status_code=416, headers={**headers, "content-range": f"bytes */{size}"})
    headers["content-range"] = f"bytes {start}-{end}/{size}"
    return Response(made.content[start : end + 1], 206, headers, made.media_type)
