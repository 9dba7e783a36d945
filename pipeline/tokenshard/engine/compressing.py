"""Ready vectors of pages, compressed: those of files, and those that the codes of a dataset stand for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from tokenshard.engine.documents import CompressingPages, PagesEncoder, SeenPage, stored_compressor
from tokenshard.engine.encoding import Window
from tokenshard.engine.job_folder import PilotResult
from tokenshard.errors import SpecError
from tokenshard.retrieval.compression import state
from tokenshard.retrieval.compression.base import Compressor, Encoded, Streams
from tokenshard.retrieval.compression.registry import Method
from tokenshard.retrieval.encoders.base import PageVectors
from tokenshard.retrieval.encoders.ready import ReadyVectors
from tokenshard.retrieval.encoders.registry import encoder_files, open_encoder, read_encoder_files, read_encoder_spec
from tokenshard.retrieval.patches import Patches
from tokenshard.sources.base import Sample, Source
from tokenshard.sources.documents.base import NOT_DRAWN
from tokenshard.sources.vectors.dataset import PageDatasetSource
from tokenshard.spec.documents import EncoderSpec
from tokenshard.spec.job import CompressDocuments
from tokenshard.spec.manifest import TokenizerEntry
from tokenshard.store import Store
from tokenshard.tokenizers.folder import WEIGHTS


class CompressingVectors(CompressingPages):
    """The encoding of a `compress-documents` job. Of a dataset the codes are decoded first."""

    def __init__(self, spec: CompressDocuments, source: Source) -> None:
        super().__init__(spec)
        self._job = spec
        self._dataset = source if isinstance(source, PageDatasetSource) else None

    def window(self, sample: Sample, draw: np.random.Generator) -> Window:
        return Window(SeenPage(sample.key, sample.uri, NOT_DRAWN, sample.raw_bytes, page=self._page(sample)))

    def fit(self, windows: Sequence[Window], output: Store, inputs: int) -> tuple[TokenizerEntry, PagesEncoder]:
        of_key = {window.sample.key: page for window in windows if (page := _seen(window.sample)) is not None}
        widths = Counter(page.vectors.shape[1] for page in of_key.values() if len(page.vectors))
        if not widths:
            raise SpecError(f"{self._spec.source.path}: no page of the sample has a vector")
        described, files = self._encoder(widths.most_common(1)[0][0])
        alike = [page for page in of_key.values() if page.vectors.shape[1] == described.dimensions]
        entry, compressor = self._stored(described, files, alike, output, inputs)
        return entry, self._pages_encoder(compressor, lambda samples: [of_key[sample.key] for sample in samples])

    def load(self, pilot: PilotResult, output: Store) -> PagesEncoder:
        return self._pages_encoder(
            stored_compressor(pilot, output), lambda samples: [self._page(sample) for sample in samples]
        )

    def _merged(self, method: Method) -> bool:
        return super()._merged(method) or (self._dataset is not None and self._dataset.merged)

    def _encoder(self, dimensions: int) -> tuple[EncoderSpec, dict[str, bytes]]:
        """The encoder that queries need, and its files."""
        if self._job.encoder is None and self._dataset is not None:
            folder = self._dataset.tokenizer()
            return read_encoder_spec(folder, ""), read_encoder_files(folder, "")
        name = self._job.encoder or f"vectors:{dimensions}"
        encoder = open_encoder(name, numerics=self._job.numerics)
        if encoder.spec.dimensions != dimensions:
            raise SpecError(
                f"{self._spec.source.path}: vectors of {dimensions} dimensions, and {name} makes some of "
                f"{encoder.spec.dimensions}; give the encoder that made them"
            )
        return encoder.spec, encoder_files(encoder)

    def _check_encoder(self, stored: EncoderSpec, output: Store) -> None:
        if self._job.encoder is None and self._dataset is not None:
            wanted = read_encoder_spec(self._dataset.tokenizer(), "")
        else:
            wanted = open_encoder(self._job.encoder or f"vectors:{stored.dimensions}", numerics=self._job.numerics).spec
        if wanted.fingerprint != stored.fingerprint:
            raise SpecError(
                f"{output.root}: holds vectors of {stored.name}, those of {self._spec.source.path} are of "
                f"{wanted.name}; vectors of two spaces cannot be mixed"
            )

    def _page(self, sample: Sample) -> PageVectors:
        if self._dataset is None:
            (page,) = ReadyVectors(sample.data.shape[-1]).encode_pages([sample])
            return page
        places, compressor = Patches.of(sample.columns), self._decoder
        streams = {name: Streams.of([sample.columns[name]]) for name in compressor.streams}
        ids = sample.data if compressor.alphabets else None
        encoded = Encoded(np.array([0, sample.data.shape[1]]), ids, streams)
        positions = np.stack(np.divmod(places.positions, places.grid[1]), 1).astype(np.int32)
        vectors = compressor.decode(encoded).vectors
        return PageVectors(vectors, positions, places.grid, places.saliency, places)

    @cached_property
    def _decoder(self) -> Compressor:
        """What the codes of the dataset were made by."""
        assert self._dataset is not None
        return state.load(self._dataset.tokenizer().read(WEIGHTS))


def check_vectors(spec: CompressDocuments) -> None:
    """Raises SpecError, before any work, where vectors come without what the method needs."""
    if Method.parse(spec.compression).saliency == "idf":
        raise SpecError(f"{spec.compression}: vectors know no token frequencies; prune by attention or at random")


def _seen(sample: Sample) -> PageVectors | None:
    return sample.page if isinstance(sample, SeenPage) else None
