"""Saved tokenizers that come with the package, by the name a user gives: ``--tokenizer default``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenshard.store import Store

PACKAGED: Mapping[str, str] = {"default": "conv, f8, 1,024 codes, trained on photographs; needs no fitting"}
"""Name, which is also that of its folder beside this file -> what it is."""


def saved_tokenizer(name: str, storage_options: Mapping[str, Any] | None = None) -> Store:
    """Where the tokenizer of that name lies: in the package, else in the folder or at the URL ``name``.

    A folder of a packaged one's name is reached as ``./default``.
    """
    if name in PACKAGED:
        return Store(Path(__file__).parent / name)
    return Store(name, storage_options)
