"""The files of infra/, as tests read them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
INFRA = ROOT / "infra"


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def load(*parts: str) -> dict[str, Any]:
    (document,) = documents(INFRA.joinpath(*parts))
    return document


def values(node: object, name: str) -> Iterator[Any]:
    """Everything a nested document says under a field name."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key == name:
                yield value
            yield from values(value, name)
    elif isinstance(node, list):
        for item in node:
            yield from values(item, name)
