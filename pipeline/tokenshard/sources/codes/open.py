"""Which file reads the ids of which format. A new format is a file of its own and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, cast

from tokenshard.errors import SpecError
from tokenshard.sources.base import CodeSource
from tokenshard.spec.codes import ImportSourceSpec

FORMATS = {
    name: f"tokenshard.sources.codes.{module}"
    for name, module in {
        "parquet": "tables:open_parquet_source",
        "webdataset": "webdataset:open_webdataset_source",
        "npy": "npy:open_npy_source",
        "npz": "npy:open_npz_source",
        "hf": "tables:open_hf_source",
        "mds": "mds:open_mds_source",
        "litdata": "litdata:open_litdata_source",
        "megatron": "megatron:open_megatron_source",
        "seit": "seit:open_seit_source",
    }.items()
}
"""Name of a format -> `module:function`; the function takes (source spec, storage options, state)."""


def open_code_source(
    spec: ImportSourceSpec, storage: Mapping[str, Any], state: Mapping[str, Any] | None = None
) -> CodeSource:
    """The source of an import. Raises SpecError for a format that is not known."""
    if spec.format not in FORMATS:
        raise SpecError(f"unknown format {spec.format!r}; known: {', '.join(sorted(FORMATS)) or 'none'}")
    module, _, function = FORMATS[spec.format].partition(":")
    return cast(CodeSource, getattr(import_module(module), function)(spec, storage, state))
