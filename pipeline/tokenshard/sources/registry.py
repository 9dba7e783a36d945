"""Which source reads the inputs of which kind of job. A new modality is a file of its own and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, cast

from tokenshard.sources.base import Source
from tokenshard.spec.conversion import ConvertJob

SOURCES = {
    "convert-images": "tokenshard.sources.images.open:open_image_source",
    "convert-video": "tokenshard.sources.video.source:open_video_source",
    "convert-documents": "tokenshard.sources.documents.open:open_document_source",
    "compress-documents": "tokenshard.sources.vectors.open:open_vector_source",
    "convert-grids": "tokenshard.sources.grids.source:open_grid_source",
    "transcode": "tokenshard.sources.codes.dataset:open_dataset_source",
    "import": "tokenshard.sources.codes.open:open_code_source",
}
"""Kind of job -> `module:function`; the function takes (source spec, storage options, state)."""


def open_source(spec: ConvertJob, state: Mapping[str, Any] | None = None) -> Source:
    """The source of a job. ``state``: what planning found out (on workers), or None (to plan)."""
    module, _, function = SOURCES[spec.kind].partition(":")
    return cast(Source, getattr(import_module(module), function)(spec.source, spec.storage, state))
