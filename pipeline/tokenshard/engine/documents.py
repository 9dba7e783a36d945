"""Pages that an encoder turns into vectors, and a compressor into ids and streams."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tokenshard.engine.encoding import Encoded, Encoding, Window
from tokenshard.engine.job_folder import PilotResult
from tokenshard.errors import SpecError
from tokenshard.retrieval.compression import state
from tokenshard.retrieval.compression.accounting import squared_error, usual
from tokenshard.retrieval.compression.base import Compressor
from tokenshard.retrieval.compression.registry import Method
from tokenshard.retrieval.encoders.base import CountsTokens, PageEncoder, PageVectors
from tokenshard.retrieval.encoders.registry import (
    FILES,
    encoder_files,
    load_encoder,
    open_encoder,
    put_encoder,
    read_encoder_spec,
)
from tokenshard.retrieval.exact import Multivectors
from tokenshard.retrieval.patches import Patches
from tokenshard.sources.base import CodeLayout, MadeColumn, Sample
from tokenshard.sources.documents.base import ERROR, GRID_COLUMNS, MERGE, NOT_DRAWN, PATCHES, POSITIONS, SALIENCY
from tokenshard.spec.documents import EncoderSpec
from tokenshard.spec.job import ConvertDocuments, PagesJob
from tokenshard.spec.manifest import TokenizerEntry
from tokenshard.spec.tokenizer import PAGES, TokenizerSpec
from tokenshard.store import Store
from tokenshard.tokenizers.folder import DESCRIPTION, WEIGHTS, read_tokenizer_spec

COMPRESSOR = WEIGHTS
CHARS_A_TOKEN = 4
"""Of text, on average."""
FITTING_PAGES = 512
"""Pages of the sample that the encoder is fitted on, where it is."""
HELD_OUT = 20
"""One page of so many in the sample does not train a learned codebook: its error is that of pages to come."""
TOGETHER = 64
"""Pages of the sample that are encoded at a time."""


class CompressingPages(Encoding):
    """What all jobs that compress vectors of pages have in common: the compressor is fitted on a sample of them."""

    rounds: ClassVar[int] = 8

    def __init__(self, spec: PagesJob) -> None:
        self._spec = spec

    def _stored(
        self, encoder: EncoderSpec, files: Mapping[str, bytes], pages: Sequence[PageVectors], output: Store, inputs: int
    ) -> tuple[TokenizerEntry, Compressor]:
        """One fitted on the sample ``pages`` of ``inputs``, stored in the dataset with the files of an encoder."""
        method = Method.parse(self._spec.compression)
        _check_saliency(method, pages)
        reduced = [_reduced(method, page)[0] for page in pages]
        expected = round(sum(map(len, reduced)) / max(1, len(pages)) * inputs)
        aside = reduced[HELD_OUT - 1 :: HELD_OUT] if method.compressor.learned else []
        if aside:
            del reduced[HELD_OUT - 1 :: HELD_OUT]
        sample, held_out = (Multivectors.of(own, encoder.dimensions) for own in (reduced, aside))
        compressor = method.fit(sample, self._spec.seed, expected)
        weights = state.dump(compressor)
        spec = TokenizerSpec(
            kind=PAGES,
            modality="document",
            levels=compressor.levels,
            downsample=(),
            config={
                "encoder": encoder.fingerprint,
                "compression": method.text,
                **usual(compressor, sample, held_out),
            },
            numerics=encoder.numerics,
            weights_sha256=hashlib.sha256(weights).hexdigest(),
            files=FILES,
        )
        folder = _folder(spec.fingerprint)
        put_encoder(files, output, folder)
        output.put_if_absent(f"{folder}/{COMPRESSOR}", weights)
        description = json.dumps(spec.model_dump(mode="json"), indent=2, sort_keys=True) + "\n"
        output.put_if_absent(f"{folder}/{DESCRIPTION}", description.encode())
        return TokenizerEntry(fingerprint=spec.fingerprint, numerics=spec.numerics), compressor

    def layout(self, tokenizer: TokenizerEntry, output: Store) -> CodeLayout:
        folder = _folder(tokenizer.fingerprint)
        described = read_tokenizer_spec(output, folder)
        if described.kind != PAGES:
            raise SpecError(f"{output.root}: holds no vectors of pages; they need a dataset of their own")
        stored, method = str(described.config.get("compression")), Method.parse(self._spec.compression)
        if stored != method.text:
            raise SpecError(f"{output.root}: its vectors are compressed by {stored}; use --compression '{stored}'")
        encoder = read_encoder_spec(output, folder)
        self._check_encoder(encoder, output)
        compressor = state.load(output.read(f"{folder}/{COMPRESSOR}"))
        return CodeLayout(
            alphabets=compressor.levels,
            grid=(None,),
            kind="document",
            preprocess={**self._spec.source.output_fields(), "encoder": encoder.model_dump(mode="json")},
            made=(
                *(*GRID_COLUMNS, POSITIONS, SALIENCY),
                *((PATCHES, MERGE) if self._merged(method) else ()),
                *((ERROR,) if compressor.learned else ()),
                *(MadeColumn(name, "binary") for name in compressor.streams),
            ),
            streams=compressor.streams,
            codec="multiset" if compressor.order_free else None,
        )

    def _merged(self, method: Method) -> bool:
        """Whether what became of each of the encoder's vectors is stored."""
        return bool(method.reductions)

    def _check_encoder(self, stored: EncoderSpec, output: Store) -> None:
        """Raises SpecError where the dataset's encoder is not that of the job."""

    def _pages_encoder(self, compressor: Compressor, vectorized: Vectorized) -> PagesEncoder:
        method = Method.parse(self._spec.compression)
        return PagesEncoder(vectorized, method, compressor, self._merged(method))


class EncodingPages(CompressingPages):
    """The encoding of a `convert-documents` job: encoder and compressor are fitted on a sample of the pages."""

    def __init__(self, spec: ConvertDocuments) -> None:
        super().__init__(spec)
        self._job = spec

    @cached_property
    def _encoder(self) -> PageEncoder:
        return opened_encoder(self._job)

    def window(self, sample: Sample, draw: np.random.Generator) -> Window:
        """A whole page, without its columns: methods are trained on pages. Of an image its vectors are kept instead."""
        if self._encoder.spec.reads == "text":
            return Window(replace(sample, columns={}))
        (page,) = self._encoder.encode_pages([sample])
        return Window(SeenPage(sample.key, sample.uri, NOT_DRAWN, sample.raw_bytes, page=page))

    def suffices(self, windows: Sequence[Window]) -> bool:
        return sum(_vectors(window.sample) for window in windows) >= self._spec.pilot.ids

    def fit(self, windows: Sequence[Window], output: Store, inputs: int) -> tuple[TokenizerEntry, PagesEncoder]:
        pages = [window.sample for window in windows]
        encoder = self._encoder.fitted(pages[:FITTING_PAGES])
        if Method.parse(self._spec.compression).saliency == "idf" and isinstance(encoder, CountsTokens):
            encoder = encoder.counting(pages)
        parts = (pages[first : first + TOGETHER] for first in range(0, len(pages), TOGETHER))
        seen = [page for part in parts for page in _encoded(encoder, part)]
        entry, compressor = self._stored(encoder.spec, encoder_files(encoder), seen, output, inputs)
        of_key = {sample.key: page for sample, page in zip(pages, seen, strict=True)}
        return entry, self._pages_encoder(compressor, lambda samples: [of_key[sample.key] for sample in samples])

    def load(self, pilot: PilotResult, output: Store) -> PagesEncoder:
        encoder = load_encoder(output, _folder(pilot.tokenizer), self._job.encoder, self._job.device)
        return self._pages_encoder(stored_compressor(pilot, output), encoder.encode_pages)

    def _check_encoder(self, stored: EncoderSpec, output: Store) -> None:
        if stored.name.partition(":")[0] != self._job.encoder.partition(":")[0]:
            raise SpecError(f"{output.root}: its vectors were made by {stored.name}; use --encoder {stored.name}")


@dataclass(frozen=True)
class SeenPage(Sample):
    """A page of the pilot's sample, with the vectors of its image."""

    page: PageVectors | None = None


def _vectors(sample: Sample) -> int:
    """Vectors of a page of the pilot's sample; of text that is not encoded yet about as many."""
    if isinstance(sample, SeenPage) and sample.page is not None:
        return len(sample.page.vectors)
    return 0 if sample.text is None else len(sample.text.text) // CHARS_A_TOKEN


def _encoded(encoder: PageEncoder, samples: Sequence[Sample]) -> list[PageVectors]:
    """Vectors of pages, of which some may have been seen already."""
    seen = [sample.page if isinstance(sample, SeenPage) else None for sample in samples]
    made = iter(encoder.encode_pages([sample for sample, page in zip(samples, seen, strict=True) if page is None]))
    return [next(made) if page is None else page for page in seen]


Vectorized = Callable[[Sequence[Sample]], Sequence[PageVectors]]
"""Makes the vectors of pages, or finds them."""


@dataclass(frozen=True)
class PagesEncoder:
    """What makes vectors of pages, and what is done to these, as the engine uses it."""

    vectorized: Vectorized
    method: Method
    compressor: Compressor
    merged: bool
    """whether what became of each vector is stored"""
    tables: Sequence[bytes] = ()

    def encode(self, samples: Sequence[Sample]) -> Sequence[Encoded]:
        return [self._compressed(page) for page in self.vectorized(samples)]

    def size(self, sample: Sample, ids: NDArray[np.integer]) -> tuple[int, ...]:
        return ids.shape[1:]

    def _compressed(self, page: PageVectors) -> Encoded:
        vectors, patches = _reduced(self.method, page)
        whole = Multivectors.of([vectors], self.compressor.dimensions)
        found = self.compressor.encode(whole)
        if found.order is not None:
            place = np.empty(len(vectors), np.int64)
            place[found.order] = np.arange(len(vectors))
            patches = patches.after(place, len(vectors))
        ids = np.zeros((1, len(vectors)), np.uint16) if found.ids is None else found.ids
        columns: dict[str, Any] = {name: stream[0] for name, stream in found.streams.items()}
        if self.compressor.learned:
            columns[ERROR.name] = squared_error(self.compressor, whole, found)
        return Encoded(ids, columns | patches.columns(self.merged))


def _reduced(method: Method, page: PageVectors) -> tuple[NDArray[np.float32], Patches]:
    """The vectors of a page after the reductions of a method, and where they are."""
    if not method.reductions:
        return page.vectors, page.patches
    pages = Multivectors.of([page.vectors], page.vectors.shape[1])
    vectors, labels = method.reduce(pages, _saliency(method, page))
    return vectors.vectors, page.patches.after(labels, len(vectors.vectors))


def _check_saliency(method: Method, pages: Sequence[PageVectors]) -> None:
    """Raises SpecError where a method prunes by what the pages do not have."""
    if method.saliency and any(_saliency(method, page) is None for page in pages if len(page.vectors)):
        raise SpecError(f"{method.text}: the vectors come without {method.saliency}; prune:random and pool need none")


def _saliency(method: Method, page: PageVectors) -> NDArray[np.float32] | None:
    """What a method prunes a page by."""
    return page.rarity if method.saliency == "idf" else page.saliency


def stored_compressor(pilot: PilotResult, output: Store) -> Compressor:
    """The compressor that the pilot fitted."""
    return state.load(output.read(f"{_folder(pilot.tokenizer)}/{COMPRESSOR}"))


def opened_encoder(spec: ConvertDocuments) -> PageEncoder:
    """The encoder that a job names, not fitted yet."""
    return open_encoder(spec.encoder, spec.device, spec.numerics)


def check_documents(spec: ConvertDocuments) -> None:
    """Raises SpecError, before any work, where encoder or method are not what the job can use."""
    method, encoder = Method.parse(spec.compression), opened_encoder(spec)
    if method.saliency == "idf" and not isinstance(encoder, CountsTokens):
        raise SpecError(f"{spec.compression}: {spec.encoder} reads no tokens; prune by attention or at random")
    reads = encoder.spec.reads
    if reads == "vectors":
        raise SpecError(f"{spec.encoder} encodes no pages; ready vectors are for: tokenshard convert vectors SRC OUT")
    if reads == "pixels" and not spec.source.render:
        raise SpecError(f"{spec.encoder} reads page images; set source.render: true")


def _folder(fingerprint: str) -> str:
    return f"tokenizer/{fingerprint}"
