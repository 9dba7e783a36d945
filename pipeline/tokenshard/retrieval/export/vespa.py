"""Vespa: a feed of documents with the sign bits of their vectors, and a schema that ranks by MaxSim on them.

A vector of 128 components is 16 bytes of hex digits, its first component the highest bit of the first byte, as Vespa's
`unpack_bits` reads them (the method `bits` has the lowest bit first). Queries stay floats.
"""

from __future__ import annotations

import json

import numpy as np

from tokenshard.retrieval.exact import Vectors
from tokenshard.retrieval.export.json_files import JsonFiles
from tokenshard.retrieval.export.pages import ExportedPages, PageBatch, PageWriter
from tokenshard.shards.export.base import SHARD_BYTES, Output, byte_size

SCHEMA = """\
schema page {{
    document page {{
{fields}
        field embedding type tensor<int8>(patch{{}}, v[{width}]) {{
            indexing: attribute
        }}
    }}
    rank-profile maxsim {{
        inputs {{
            query(qt) tensor<float>(token{{}}, v[{dimensions}])
        }}
        first-phase {{
            expression {{
                sum(
                    reduce(
                        sum(query(qt) * (2 * unpack_bits(attribute(embedding)) - 1), v),
                        max, patch
                    ),
                    token
                )
            }}
        }}
    }}
}}
"""
_FIELD = "        field {name} type {kind} {{\n            indexing: summary\n        }}"
_KINDS = {"string": "string", "int16": "int", "int32": "int", "int64": "long", "bool": "bool", "float": "float"}


class VespaWriter(PageWriter):
    """`feed-00000.jsonl`, … for ``vespa feed``, and `page.sd`."""

    def __init__(self, pages: ExportedPages, output: Output) -> None:
        super().__init__(pages, output)
        self._names = ["key", *(field.name for field in pages.schema if str(field.type) in _KINDS)]
        limit = byte_size(output.options.get("shard_bytes", SHARD_BYTES))
        self._files = JsonFiles(output, "feed", ".jsonl", limit)

    def add(self, batch: PageBatch) -> None:
        for page, payload in enumerate(batch.payloads()):
            blocks = {str(patch): digits for patch, digits in enumerate(sign_bytes(batch.vectors[page]))}
            fields = {name: payload[name] for name in self._names if name in payload}
            fields["embedding"] = {"blocks": blocks}
            self._files.add(json.dumps({"put": f"id:pages:page::{batch.keys[page]}", "fields": fields}))

    def close(self) -> None:
        self._files.close()
        kinds = {"key": "string"} | {f.name: _KINDS[str(f.type)] for f in self.pages.schema if f.name in self._names}
        dimensions = self.pages.compressor.dimensions
        schema = SCHEMA.format(
            fields="\n".join(_FIELD.format(name=name, kind=kind) for name, kind in kinds.items()),
            width=-(-dimensions // 8),
            dimensions=8 * -(-dimensions // 8),
        )
        self.output.put("page.sd", schema.encode())


def sign_bytes(vectors: Vectors) -> list[str]:
    """Which components of each vector [n, d] are above 0, as hex digits."""
    return [row.tobytes().hex() for row in np.packbits(vectors > 0, axis=1)]
