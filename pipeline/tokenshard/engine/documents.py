"""Pages that an encoder turns into vectors, and a compressor into ids and streams."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenshard.engine.encoding import Encoded, Window
from tokenshard.engine.job_folder import PilotResult
from tokenshard.errors import SpecError
from tokenshard.retrieval.compression import state
from tokenshard.retrieval.compression.accounting import trained_bytes
from tokenshard.retrieval.compression.base import Compressor
from tokenshard.retrieval.compression.registry import Method
from tokenshard.retrieval.encoders.base import PageEncoder, PageVectors
from tokenshard.retrieval.encoders.registry import load_encoder, open_encoder, read_encoder_spec, save_encoder
from tokenshard.retrieval.exact import Multivectors
from tokenshard.sources.base import CodeLayout, MadeColumn, Sample
from tokenshard.sources.documents.base import NOT_DRAWN
from tokenshard.spec.job import ConvertDocuments
from tokenshard.spec.manifest import TokenizerEntry
from tokenshard.spec.tokenizer import TokenizerSpec
from tokenshard.store import Store

COMPRESSOR = "model.safetensors"
DESCRIPTION = "tokenizer.json"
GRID = (MadeColumn("grid_height", "int32"), MadeColumn("grid_width", "int32"))
POSITIONS = MadeColumn("positions", "binary")
"""uint16 or uint32 little-endian, one a vector in the order of the codes: row * grid_width + column of its patch"""
SALIENCY = MadeColumn("saliency", "binary")
"""uint8, one a vector in the order of the codes: 32 * log2(share) + 128 of the attention it received, 0 where none is
known"""


class EncodingPages:
    """The encoding of a `convert-documents` job: both parts are fitted on a sample of the pages."""

    def __init__(self, spec: ConvertDocuments) -> None:
        self._spec = spec

    @cached_property
    def _encoder(self) -> PageEncoder:
        return opened_encoder(self._spec)

    def window(self, sample: Sample, draw: np.random.Generator) -> Window:
        """A whole page, without its columns: methods are trained on pages. Of an image its vectors are kept instead."""
        if self._encoder.spec.reads == "text":
            return Window(replace(sample, columns={}))
        (page,) = self._encoder.encode_pages([sample])
        return Window(_SeenPage(sample.key, sample.uri, NOT_DRAWN, sample.raw_bytes, page=page))

    def fit(self, windows: Sequence[Window], output: Store) -> tuple[TokenizerEntry, PagesEncoder]:
        pages = [window.sample for window in windows]
        encoder = self._encoder.fitted(pages)
        seen = _encoded(encoder, pages)
        vectors = Multivectors.of([page.vectors for page in seen], encoder.spec.dimensions)
        compressor = Method.parse(self._spec.compression).fit(vectors, self._spec.seed)
        weights = state.dump(compressor)
        spec = TokenizerSpec(
            kind="pages",
            modality="document",
            levels=compressor.alphabets,
            downsample=(),
            config={
                "encoder": encoder.spec.fingerprint,
                "compression": self._spec.compression,
                **trained_bytes(compressor, vectors),
            },
            numerics=encoder.spec.numerics,
            weights_sha256=hashlib.sha256(weights).hexdigest(),
        )
        folder = _folder(spec.fingerprint)
        save_encoder(encoder, output, folder)
        output.put_if_absent(f"{folder}/{COMPRESSOR}", weights)
        description = json.dumps(spec.model_dump(mode="json"), indent=2, sort_keys=True) + "\n"
        output.put_if_absent(f"{folder}/{DESCRIPTION}", description.encode())
        return TokenizerEntry(fingerprint=spec.fingerprint, numerics=spec.numerics), PagesEncoder(encoder, compressor)

    def layout(self, tokenizer: TokenizerEntry, output: Store) -> CodeLayout:
        compressor = state.load(output.read(f"{_folder(tokenizer.fingerprint)}/{COMPRESSOR}"))
        encoder = read_encoder_spec(output, _folder(tokenizer.fingerprint))
        made = (*GRID, POSITIONS, SALIENCY, *(MadeColumn(name, "binary") for name in compressor.streams))
        return CodeLayout(
            alphabets=compressor.alphabets,
            grid=(None,),
            kind="document",
            preprocess={**self._spec.source.output_fields(), "encoder": encoder.model_dump(mode="json")},
            made=made,
            streams=compressor.streams,
            codec="multiset" if compressor.order_free else None,
        )

    def load(self, pilot: PilotResult, output: Store) -> PagesEncoder:
        folder = _folder(pilot.tokenizer)
        encoder = load_encoder(output, folder, self._spec.encoder, self._spec.device)
        return PagesEncoder(encoder, state.load(output.read(f"{folder}/{COMPRESSOR}")))


@dataclass(frozen=True)
class _SeenPage(Sample):
    """A page of the pilot's sample, with the vectors of its image."""

    page: PageVectors | None = None


def _encoded(encoder: PageEncoder, samples: Sequence[Sample]) -> list[PageVectors]:
    """Vectors of pages, of which some may have been seen already."""
    seen = [sample.page if isinstance(sample, _SeenPage) else None for sample in samples]
    made = iter(encoder.encode_pages([sample for sample, page in zip(samples, seen, strict=True) if page is None]))
    return [next(made) if page is None else page for page in seen]


@dataclass(frozen=True)
class PagesEncoder:
    """Encoder and compressor as the engine uses them."""

    encoder: PageEncoder
    compressor: Compressor
    tables: Sequence[bytes] = ()

    def encode(self, samples: Sequence[Sample]) -> Sequence[Encoded]:
        return [self._compressed(page) for page in _encoded(self.encoder, samples)]

    def size(self, sample: Sample, ids: NDArray[np.integer]) -> tuple[int, ...]:
        return ids.shape[1:]

    def _compressed(self, page: PageVectors) -> Encoded:
        found = self.compressor.encode(Multivectors.of([page.vectors], self.encoder.spec.dimensions))
        assert found.ids is not None
        order = slice(None) if found.order is None else found.order
        places = page.positions[:, 0] * page.grid[1] + page.positions[:, 1]
        width = np.uint16 if page.grid[0] * page.grid[1] <= 1 << 16 else np.uint32
        columns: dict[str, Any] = {name: stream[0] for name, stream in found.streams.items()}
        columns |= {
            "grid_height": page.grid[0],
            "grid_width": page.grid[1],
            POSITIONS.name: places.astype(width)[order].tobytes(),
            SALIENCY.name: _levels(page.saliency, len(places))[order].tobytes(),
        }
        return Encoded(found.ids, columns)


def opened_encoder(spec: ConvertDocuments) -> PageEncoder:
    """The encoder that a job names, not fitted yet."""
    return open_encoder(spec.encoder, spec.device, spec.numerics)


def check_documents(spec: ConvertDocuments) -> None:
    """Raises SpecError, before any work, where encoder or method are not what the job can use."""
    method = Method.parse(spec.compression)
    if method.compressor.name == "fp16":
        raise SpecError(f"{spec.compression}: vectors without ids cannot be stored; choose a method with centroids")
    reads = opened_encoder(spec).spec.reads
    if reads == "pixels" and not spec.source.render:
        raise SpecError(f"{spec.encoder} reads page images; set source.render: true")


def _levels(saliency: NDArray[np.float32] | None, count: int) -> NDArray[np.uint8]:
    if saliency is None:
        return np.zeros(count, np.uint8)
    levels = np.rint(32 * np.log2(np.maximum(saliency, 1e-9)) + 128)
    return np.asarray(np.clip(levels, 1, 255), np.uint8)


def _folder(fingerprint: str) -> str:
    return f"tokenizer/{fingerprint}"
