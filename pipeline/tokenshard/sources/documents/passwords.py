"""Passwords of encrypted documents: from an environment variable or a file, never from the job spec itself."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from tokenshard.errors import SpecError
from tokenshard.spec.documents import DocumentSourceSpec
from tokenshard.store import Store


class Passwords:
    """Which password opens which document. Says nothing of them when printed."""

    def __init__(self, by_name: Mapping[str, str]) -> None:
        self._by_name = dict(by_name)

    @classmethod
    def of(cls, spec: DocumentSourceSpec, storage_options: Mapping[str, Any] | None) -> Passwords:
        """Those that a spec points to. Raises SpecError where they are not there, or not readable as passwords."""
        if spec.passwords_env is not None:
            where, text = f"environment variable {spec.passwords_env}", os.environ.get(spec.passwords_env)
            if text is None:
                raise SpecError(f"{where} is not set; set it wherever documents are read, also on workers")
            return cls(_parsed(text, where))
        if spec.passwords_file is not None:
            return cls(_parsed(_content(spec.passwords_file, storage_options), spec.passwords_file))
        return cls({})

    def of_file(self, name: str) -> str | None:
        """The password of the first name or glob pattern that fits, or None."""
        return next((word for pattern, word in self._by_name.items() if fnmatchcase(name, pattern)), None)


def _content(path: str, storage_options: Mapping[str, Any] | None) -> str:
    folder, _, name = path.rpartition("/")
    store = Store(folder or ("/" if path.startswith("/") else "."), storage_options if "://" in path else None)
    try:
        return store.read(name).decode()
    except FileNotFoundError as error:
        raise SpecError(f"{path}: no such file; passwords_file must be there wherever documents are read") from error
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: passwords are not UTF-8 text; save the file as UTF-8") from error


def _parsed(text: str, where: str) -> dict[str, str]:
    if not text.lstrip().startswith("{"):
        return {"*": text.rstrip("\r\n")}
    try:
        found = json.loads(text)
    except ValueError:
        found = None  # without the message: it would quote what is there
    if not isinstance(found, dict) or not all(isinstance(word, str) for word in found.values()):
        raise SpecError(f'{where}: expected one password, or JSON like {{"file name or glob": "password"}}')
    return found
