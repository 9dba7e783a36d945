"""`job-specs.md`: the fields of every kind of job, from `schemas/job.schema.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

Schema = dict[str, Any]
ROOT = Path(__file__).parents[2]
REFERENCE = "#/$defs/"
INTRODUCTION = """# Job specs

All fields of all kinds of jobs, made from [job.schema.json](../schemas/job.schema.json), which editors understand, too
(`# yaml-language-server: $schema=job.schema.json`). One ready spec a kind is in [jobs](../jobs); how jobs run is told
in [How a job runs](jobs.md). Fields without a default have to be given; unknown fields are errors.
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    schema = json.loads((ROOT / "schemas" / "job.schema.json").read_text(encoding="utf-8"))
    files.append(File.generated(config, "job-specs.md", content=reference(schema)))
    return files


def reference(schema: Schema) -> str:
    """The page: the kinds of jobs, then what they share."""
    models: dict[str, Schema] = {name: model for name, model in schema["$defs"].items() if "properties" in model}
    kinds = [option["$ref"].removeprefix(REFERENCE) for option in schema["anyOf"]]
    titles = {name: model["properties"]["kind"]["const"] if name in kinds else name for name, model in models.items()}
    shared = [name for name in models if name not in kinds]
    parts = [_section(models[name], titles[name], titles) for name in kinds]
    parts += ["## Parts of jobs\n", *(_section(models[name], titles[name], titles, "###") for name in shared)]
    return "\n".join([INTRODUCTION, *parts])


def _section(model: Schema, title: str, titles: dict[str, str], level: str = "##") -> str:
    required = model.get("required", [])
    lines = [f"{level} {title}\n", f"{_flat(model.get('description', ''))}\n"]
    lines += ["| field | type | default | |", "|---|---|---|---|"]
    for name, field in model["properties"].items():
        default = "" if name in required or "default" not in field else _value(field["default"], field)
        lines.append(f"| `{name}` | {_type(field, titles)} | {default} | {_meaning(field)} |")
    return "\n".join(lines) + "\n"


def _type(field: Schema, titles: dict[str, str]) -> str:
    """A field's type in words, with its limits; models are links to their sections."""
    if "$ref" in field:
        name = field["$ref"].removeprefix(REFERENCE)
        return f"[{titles[name]}](#{titles[name].lower()})" if name in titles else "any"
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    options = field.get("anyOf") or field.get("oneOf")
    if options:
        return " or ".join(dict.fromkeys(_type(option, titles) for option in options))
    kind = str(field.get("type", "any"))
    if kind == "array":
        inner = field.get("prefixItems") or [field.get("items", {})]
        return "list of " + ", ".join(dict.fromkeys(_type(item, titles) for item in inner)) + _limits(field)
    if kind == "object":
        return "mapping"
    names = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true, false", "null": "none"}
    return names.get(kind, kind) + _limits(field)


def _limits(field: Schema) -> str:
    words = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    found = [f"{sign} {field[name]:,}" for name, sign in words.items() if name in field]
    low, high = field.get("minItems"), field.get("maxItems")
    found += [f"{low} of them" if low == high else f"{low} or more"] if low and field.get("type") == "array" else []
    return f" ({', '.join(found)})" if found else ""


def _value(value: Any, field: Schema) -> str:
    """A default. That of a part is in the section of the part."""
    if isinstance(value, dict) and "$ref" in field:
        return ""
    if value is None:
        return "none"
    text = json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value
    return f"`{text}`" if len(text) <= 60 else f"`{text[:60]}…`"


def _meaning(field: Schema) -> str:
    return _flat(field.get("description", ""))


def _flat(text: str) -> str:
    """One line that a table can hold; roles of docstrings become plain code."""
    return " ".join(text.split()).replace("``", "`").replace("|", "\\|")
