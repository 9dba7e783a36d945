"""From one planned input to a sample or a reject: nothing an input can do to us gets further than here.

What a reject says depends on the input alone, not on the machine: no absolute paths, no memory addresses.
"""

from __future__ import annotations

import hashlib
import os
import re
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray

from tokenshard.errors import InputError, StoreError
from tokenshard.sources.base import Reject, Sample

Fetch = Callable[[], bytes]
Decode = Callable[[bytes], NDArray[Any]]

_REPR = re.compile(r"<[^<>]*\bat 0x[0-9a-fA-F]+>")
_ADDRESS = re.compile(r"0x[0-9a-fA-F]{6,}")
_FOLDERS = re.compile(r"(?:(?<=[\s'\"(=])|^)(?:\w+:/)?/(?:[^\s'\"/]+/)+")
LONGEST_MESSAGE = 500


def outcome(key: str, uri: str, fetch: Fetch, decode: Decode, columns: Mapping[str, Any]) -> Sample | Reject:
    """Fetch and decode one input. What goes wrong becomes a reject.

    Only storage that is out of reach for now (StoreError with ``transient``) is raised: that says nothing of the input.
    """
    stage = "fetch"
    try:
        data = fetch()
        stage = "decode"
        return Sample(key, uri, decode(data), len(data), columns)
    except Exception as error:
        if isinstance(error, StoreError) and error.transient:
            raise
        return rejected(key, uri, stage, error)


def planned_reject(key: str, uri: str, error: str) -> Reject:
    """The reject of an input that planning found unusable; ``error`` is ``kind`` or ``kind: details``."""
    return Reject(key, uri, "plan", error.partition(":")[0], _message(key, uri, error))


def rejected(key: str, uri: str, stage: str, error: Exception) -> Reject:
    """The reject an error becomes; errors that wrap another are named after the wrapped one."""
    cause = error.__cause__ if isinstance(error, InputError | StoreError) else None
    origin = cause if isinstance(cause, Exception) else error
    # Where a fetch failed depends on the storage, not on the input: it leaves no trace.
    trace = None if stage == "fetch" else traceback_digest(origin)
    return Reject(key, uri, stage, type(origin).__name__, _message(key, uri, _reason(error, origin)), trace)


def traceback_digest(error: BaseException) -> str:
    """SHA-256 of where and why an error was raised: file base names, functions, lines, type and cleaned message."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f"{os.path.basename(frame.filename)}:{frame.lineno}:{frame.name}" for frame in frames]
    return hashlib.sha256("\n".join([*lines, type(error).__name__, cleaned(str(error))]).encode()).hexdigest()


def _reason(error: Exception, origin: Exception) -> str:
    if isinstance(origin, FileNotFoundError):
        return "no such file"
    if isinstance(origin, OSError) and origin.strerror:
        return origin.strerror
    return cleaned(str(origin if isinstance(error, StoreError) else error)) or type(origin).__name__


def cleaned(text: str) -> str:
    """One line of text without folders and memory addresses."""
    text = _FOLDERS.sub("", _ADDRESS.sub("", _REPR.sub("", text)))
    text = text.encode("utf-8", "backslashreplace").decode()
    return " ".join(text.split())[:LONGEST_MESSAGE]


def _message(key: str, uri: str, reason: str) -> str:
    name = key if key.startswith(uri) else f"{uri} ({key})"
    return " ".join(f"{name}: {reason}".split())
