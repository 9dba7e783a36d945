"""JSON Schemas of the documents, for people and other languages: `python -m tokenshard.spec.schemas schemas`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from tokenshard.spec.job import job_schema
from tokenshard.spec.manifest import Manifest
from tokenshard.spec.search_index import IndexManifest
from tokenshard.spec.tokenizer import TokenizerSpec


def schemas() -> dict[str, dict[str, Any]]:
    """File name -> JSON Schema."""

    def of(model: type[BaseModel]) -> dict[str, Any]:
        return {"$schema": "https://json-schema.org/draft/2020-12/schema", **model.model_json_schema()}

    return {
        "index.schema.json": of(IndexManifest),
        "job.schema.json": job_schema(),
        "manifest.schema.json": of(Manifest),
        "tokenizer.schema.json": of(TokenizerSpec),
    }


def text_of(schema: dict[str, Any]) -> str:
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for name, schema in schemas().items():
        Path(sys.argv[1], name).write_text(text_of(schema), encoding="utf-8")
