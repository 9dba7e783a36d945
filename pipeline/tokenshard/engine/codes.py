"""Samples that are codes already: checked against what their source says of them, and passed through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenshard.codecs.base import id_dtype
from tokenshard.engine.encoding import Encoded, Encoder, Encoding, Window, cut
from tokenshard.engine.job_folder import PilotResult
from tokenshard.errors import InputError, SpecError
from tokenshard.shards.limits import MAX_GROUP_IDS, MAX_LEVELS
from tokenshard.sources.base import CodeLayout, CodeSource, Sample
from tokenshard.spec.codec import MAX_ALPHABET
from tokenshard.spec.conversion import ConvertJob
from tokenshard.spec.manifest import TokenizerEntry
from tokenshard.spec.tokenizer import TokenizerSpec
from tokenshard.store import Store
from tokenshard.tokenizers.external import ExternalTokenizer
from tokenshard.tokenizers.folder import copy_tokenizer, read_tables, read_tokenizer_spec, save_tokenizer

WINDOW_IDS = 1 << 14
"""Most ids, of all levels together, that the pilot keeps of a sample."""
GRID_EXTENTS = ("frames", "height", "width")
"""Columns for the token grids of ragged samples whose inputs have no known size."""


class PassingThrough(Encoding):
    """The encoding of a job whose source delivers codes. Complete only after the source has planned."""

    def __init__(self, spec: ConvertJob, source: CodeSource) -> None:
        self._spec, self._source = spec, source

    @cached_property
    def _layout(self) -> CodeLayout:
        return checked_layout(self._source.layout(), self._spec.source.path)

    @cached_property
    def _encoder(self) -> CodeEncoder:
        return CodeEncoder(self._layout)

    def window(self, sample: Sample, draw: np.random.Generator) -> Window:
        codes = self._encoder.checked(sample)
        limit = int(max(1, WINDOW_IDS // len(codes)) ** (1 / (codes.ndim - 1)) + 1e-9)
        part = codes[(slice(None), *cut(codes.shape[1:], [limit] * (codes.ndim - 1), draw))]
        return Window(replace(sample, data=part.copy(), columns={}), codes.size / max(1, part.size))

    def fit(self, windows: Sequence[Window], output: Store, inputs: int) -> tuple[TokenizerEntry, Encoder]:
        found = self._tokenizer()
        if isinstance(found, Store):
            described = copy_tokenizer(found, output)
            tables = read_tables(found, described)[: len(self._layout.alphabets)]
        else:
            described, tables = found.spec, ()
            save_tokenizer(found, output, f"tokenizer/{described.fingerprint}")
        entry = TokenizerEntry(fingerprint=described.fingerprint, numerics=described.numerics)
        return entry, CodeEncoder(ragged(self._layout), tables)

    def _tokenizer(self) -> Store | ExternalTokenizer:
        """The folder of the tokenizer that made the ids, or a description of one that is not at hand."""
        found = self._source.tokenizer()
        if isinstance(found, Store):
            self._check_tokenizer(read_tokenizer_spec(found), found)
            return found
        return ExternalTokenizer.of(self._layout, dict(found or {}))

    def _check_tokenizer(self, described: TokenizerSpec, folder: Store) -> None:
        alphabets = self._layout.alphabets
        if described.levels[: len(alphabets)] != alphabets:
            raise SpecError(
                f"{folder.root}: is a tokenizer of ids below {list(described.levels)}, the ids of "
                f"{self._spec.source.path} are below {list(alphabets)}; give the tokenizer that made them"
            )

    def layout(self, tokenizer: TokenizerEntry, output: Store) -> CodeLayout:
        found = self._tokenizer()
        mine = read_tokenizer_spec(found) if isinstance(found, Store) else found.spec
        if mine.fingerprint != tokenizer.fingerprint:
            raise SpecError(
                f"{output.root}: holds ids of tokenizer {tokenizer.fingerprint}, those of {self._spec.source.path} "
                f"are of {mine.fingerprint}; ids of two tokenizers cannot be mixed"
            )
        return self._layout

    def load(self, pilot: PilotResult, output: Store) -> Encoder:
        return CodeEncoder(pilot.layout)


@dataclass(frozen=True)
class CodeEncoder:
    """Checks codes against a layout and gives them back. What does not fit is an InputError that says why."""

    layout: CodeLayout
    tables: Sequence[bytes] = ()

    def encode(self, samples: Sequence[Sample]) -> Sequence[Encoded]:
        return [Encoded(self.checked(sample)) for sample in samples]

    def size(self, sample: Sample, ids: NDArray[Any]) -> tuple[int, ...]:
        grid = ids.shape[1:]
        if not self.layout.extents:
            return grid
        if sample.size is None and max(self.layout.downsample) > 1:
            raise InputError(f"no {' and '.join(self.layout.extents)} of the input")
        return grid if sample.size is None else sample.size

    def checked(self, sample: Sample) -> NDArray[Any]:
        """The codes of a sample."""
        codes, layout = sample.data, self.layout
        if codes.ndim != 1 + len(layout.grid) or len(codes) != len(layout.alphabets):
            raise InputError(
                f"codes of shape {list(codes.shape)}; expected {len(layout.alphabets)} levels of grids of rank "
                f"{len(layout.grid)}"
            )
        if not np.issubdtype(codes.dtype, np.integer):
            raise InputError(f"codes are {codes.dtype}, not integers")
        grid = codes.shape[1:]
        if codes[0].size > MAX_GROUP_IDS:
            raise InputError(f"{codes[0].size} ids a level; the format allows {MAX_GROUP_IDS}")
        if any(dim not in (None, side) for dim, side in zip(layout.grid, grid, strict=True)):
            raise InputError(f"a token grid of {list(grid)} among grids of {list(layout.grid)}")
        for level, (ids, alphabet) in enumerate(zip(codes, layout.alphabets, strict=True)):
            if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < alphabet:
                wrong = int(ids.min()) if ids.min() < 0 else int(ids.max())
                where = f" of level {level}" if len(codes) > 1 else ""
                raise InputError(f"id {wrong}{where} is outside the alphabet of {alphabet}")
        size = self.size(sample, codes)
        if layout.extents and grid != tuple(
            -(-side // step) for side, step in zip(size, layout.downsample, strict=True)
        ):
            raise InputError(f"a token grid of {list(grid)} for an input of size {list(size)}")
        return codes.astype(id_dtype(max(layout.alphabets)), copy=False)


def ragged(layout: CodeLayout) -> CodeLayout:
    """The layout of windows of such samples."""
    return replace(layout, grid=(None,) * len(layout.grid), extents=(), downsample=())


def checked_layout(layout: CodeLayout, where: str) -> CodeLayout:
    """A layout that shards can have: ragged grids of rank 2 and 3 get extent columns that hold the grid itself.

    Raises SpecError where it is not possible.
    """
    rank = len(layout.grid)
    if not 1 <= rank <= 3:
        raise SpecError(f"{where}: token grids of rank {rank}; shards hold grids of rank 1 to 3")
    if not 1 <= len(layout.alphabets) <= MAX_LEVELS:
        raise SpecError(f"{where}: {len(layout.alphabets)} levels; shards hold 1 to {MAX_LEVELS}")
    if not all(1 <= alphabet <= MAX_ALPHABET for alphabet in layout.alphabets):
        raise SpecError(f"{where}: alphabets of {list(layout.alphabets)}; each must be 1 to {MAX_ALPHABET}")
    if not layout.extents and rank > 1 and None in layout.grid:
        return replace(layout, extents=GRID_EXTENTS[-rank:], downsample=(1,) * rank)
    return layout
