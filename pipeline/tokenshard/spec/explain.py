"""Job specs as text: safe YAML, and errors that name the line, the field and the allowed values."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError


class SpecLoader(yaml.SafeLoader):
    """Safe YAML in which a repeated key is an error and a date is a string (`output: 2026-01-31` names a folder)."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - as in the base class
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
            seen.add((key.tag, str(key.value)))
        return super().construct_mapping(node, deep)


def explain(error: ValidationError, name: str, node: yaml.Node | None, model: type[BaseModel], data: Any) -> str:
    """One line that names the place of each error, and what is allowed there."""
    found: dict[tuple[int | str, ...], list[str]] = {}
    for item in error.errors(include_url=False):
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = f"unknown field; allowed: {', '.join(_fields(model, item['loc'][:-1]))}"
        elif item["type"] != "missing" and not isinstance(item.get("input"), dict):
            message += f" (got {item.get('input')!r})"
        loc = item["loc"] if item["type"] == "missing" else _given(data, item["loc"])
        found.setdefault(loc, []).append(message)
    lines = []
    for loc, messages in found.items():
        place = f"{name}:{line_of(node, loc)}: " if node is not None else ""
        where = ".".join(str(part) for part in loc)
        lines.append(f"{place}{where + ': ' if where else ''}{', or: '.join(messages)}")
    return "; ".join(lines)


def _given(data: Any, loc: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """The part of ``loc`` that leads to a given value; behind it pydantic names the alternatives of a union."""
    for depth, part in enumerate(loc):
        is_item = isinstance(data, list | tuple) and isinstance(part, int)
        if not is_item and not (isinstance(data, dict) and part in data):
            return loc[:depth]
        data = data[part]
    return loc


def _fields(model: Any, loc: tuple[int | str, ...]) -> list[str]:
    for part in loc:
        field = getattr(model, "model_fields", {}).get(part)
        model = field.annotation if field else None
    return sorted(getattr(model, "model_fields", {}))


def line_of(node: yaml.Node | None, loc: tuple[int | str, ...]) -> int:
    """1-based line of the deepest node on the way to ``loc`` that exists in the file."""
    line = node.start_mark.line + 1 if node is not None else 1
    for part in loc:
        if isinstance(node, yaml.MappingNode):
            found = next(((k, v) for k, v in node.value if k.value == part), None)
            if found is None:
                break
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return line
