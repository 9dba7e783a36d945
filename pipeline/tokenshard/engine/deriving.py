"""Samples whose ids become those of a tokenizer derived from their own: fewer codes, or coarse and fine ids.

Nothing but stored ids and the codebook of the dataset's tokenizer is used: no pixels, and no network runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenshard.engine.codes import CodeEncoder, PassingThrough, ragged
from tokenshard.engine.encoding import Encoded, Window
from tokenshard.engine.job_folder import PilotResult
from tokenshard.errors import SpecError
from tokenshard.sources.base import CodeLayout, Sample
from tokenshard.sources.codes.dataset import DatasetSource, open_dataset_source
from tokenshard.spec.job import Transcode
from tokenshard.spec.manifest import TokenizerEntry
from tokenshard.store import Store
from tokenshard.tokenizers.base import CodebookTokenizer
from tokenshard.tokenizers.coarse import CoarseFineTokenizer
from tokenshard.tokenizers.derived import DerivedTokenizer, codebook_tokenizer
from tokenshard.tokenizers.folder import load_tokenizer, save_tokenizer
from tokenshard.tokenizers.reduced import ReducedTokenizer


class Deriving(PassingThrough):
    """The encoding of a `transcode` with a smaller codebook, or into coarse and fine ids."""

    def __init__(self, spec: Transcode, source: DatasetSource) -> None:
        super().__init__(spec, source)
        self._dataset, self._wanted, self._seed = source, spec.source, spec.seed

    @cached_property
    def _base(self) -> CodebookTokenizer:
        """The tokenizer of the dataset that is read."""
        folder = self._dataset.tokenizer()
        base = load_tokenizer(folder)
        self._check_tokenizer(base.spec, folder)
        try:
            found = codebook_tokenizer(base)
            found.codebooks()
        except SpecError as error:
            raise SpecError(f"{self._wanted.path}: {error}") from error
        return found

    def fit(self, windows: Sequence[Window], output: Store, inputs: int) -> tuple[TokenizerEntry, DerivedEncoder]:
        made = self._made()
        save_tokenizer(made, output, f"tokenizer/{made.spec.fingerprint}")
        entry = TokenizerEntry(fingerprint=made.spec.fingerprint, numerics=made.spec.numerics)
        return entry, DerivedEncoder(CodeEncoder(ragged(self._layout)), made)

    def _made(self) -> DerivedTokenizer:
        if self._wanted.coarse is not None:
            return CoarseFineTokenizer.of(self._base, self._wanted.coarse, self._seed)
        return ReducedTokenizer.of(self._base, self._dataset.counts, self.sizes(), self._seed)

    def sizes(self) -> tuple[int, ...]:
        """The wanted size of the codebook of each level. Raises SpecError where they do not fit or change nothing."""
        path, size = self._wanted.path, self._wanted.codebook_size
        alphabets = self._dataset.layout().alphabets
        sizes = size if isinstance(size, tuple) else (size or 1,) * len(alphabets)
        if len(sizes) != len(alphabets):
            raise SpecError(f"{path}: codebook sizes for {len(sizes)} levels, the ids have {len(alphabets)}")
        if all(mine >= alphabet for mine, alphabet in zip(sizes, alphabets, strict=True)):
            raise SpecError(f"{path}: has codebooks of {list(alphabets)} codes; give a smaller size than that")
        return sizes

    def check(self) -> None:
        """Raises SpecError where the dataset does not allow what is wanted."""
        count = len(self._base.codebooks()[0])
        if self._wanted.coarse is None:
            self.sizes()
        elif self._wanted.coarse >= count:
            raise SpecError(f"{self._wanted.path}: {self._wanted.coarse} coarse ids of {count} ids; give fewer")

    def layout(self, tokenizer: TokenizerEntry, output: Store) -> CodeLayout:
        made = _load_derived(output, tokenizer.fingerprint)
        if made is None or made.base.spec.fingerprint != self._base.spec.fingerprint:
            raise SpecError(
                f"{output.root}: its tokenizer {tokenizer.fingerprint} is not derived from that of "
                f"{self._wanted.path}; ids of two tokenizers cannot be mixed"
            )
        none = np.empty((0, len(self._layout.alphabets)), np.uint16)
        return replace(self._layout, alphabets=made.levels[: made.derived(none).shape[1]])

    def load(self, pilot: PilotResult, output: Store) -> DerivedEncoder:
        made = _load_derived(output, pilot.tokenizer)
        assert made is not None, "layout() has seen it"
        return DerivedEncoder(CodeEncoder(self._layout), made)


@dataclass(frozen=True)
class DerivedEncoder:
    """Checks ids of the base and exchanges them."""

    checked: CodeEncoder
    tokenizer: DerivedTokenizer
    tables: tuple[bytes, ...] = ()

    def encode(self, samples: Sequence[Sample]) -> Sequence[Encoded]:
        base = np.stack([self.checked.checked(sample) for sample in samples])
        return [Encoded(ids) for ids in self.tokenizer.derived(base)]

    def size(self, sample: Sample, ids: NDArray[Any]) -> tuple[int, ...]:
        return self.checked.size(sample, ids)


def check_derivable(spec: Transcode) -> None:
    """Raises SpecError or FormatError, before any work, where the dataset does not allow what is wanted."""
    Deriving(spec, open_dataset_source(spec.source, spec.storage)).check()


def _load_derived(output: Store, fingerprint: str) -> DerivedTokenizer | None:
    tokenizer = load_tokenizer(output, f"tokenizer/{fingerprint}")
    return tokenizer if isinstance(tokenizer, DerivedTokenizer) else None
