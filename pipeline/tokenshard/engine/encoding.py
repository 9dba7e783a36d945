"""How a job's samples become ids: the one place where engine and modality meet.

A job either has a tokenizer that encodes what its source decodes, or its samples are codes already and pass through.
Pilot and units see both through the two small contracts below and know neither pixels nor tokenizers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from tokenshard.engine.job_folder import PilotResult
from tokenshard.errors import SpecError
from tokenshard.sources.base import CodeLayout, CodeSource, Sample, Source
from tokenshard.sources.codes.dataset import DatasetSource
from tokenshard.spec.conversion import ConvertJob, TokenizeJob
from tokenshard.spec.job import CompressDocuments, ConvertDocuments, ConvertGrids, Transcode
from tokenshard.spec.manifest import Manifest, TokenizerEntry
from tokenshard.store import Store


@dataclass(frozen=True)
class Window:
    """The part of a sampled input that the pilot keeps."""

    sample: Sample
    whole: float = 1.0
    """ids of the whole input for each id of the part, where that is known before it is encoded"""


@dataclass(frozen=True)
class Encoded:
    """What encoding made of a sample."""

    ids: NDArray[Any]
    """[levels, *grid]"""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """values of the columns that the layout says are made, by name"""

    @property
    def nbytes(self) -> int:
        """Bytes in memory of ids and streams."""
        return self.ids.nbytes + sum(len(value) for value in self.columns.values() if isinstance(value, bytes))


class Encoder(Protocol):
    """Turns decoded samples into ids, and what else its layout says it makes of them.

    Both depend on the sample alone, not on those it is encoded together with.
    """

    def encode(self, samples: Sequence[Sample]) -> Sequence[Encoded]:
        """Of each of some samples whose data have one shape. Raises when any of them is bad."""
        ...

    @property
    def tables(self) -> Sequence[bytes]:
        """Codec models of the levels that come with the tokenizer; empty where none do."""
        ...

    def size(self, sample: Sample, ids: NDArray[Any]) -> tuple[int, ...]:
        """What the shard writes down of the size of a sample with these ids: its extents, or else its token grid."""
        ...


class Encoding(Protocol):
    """How the encoder of a job comes about: made by the pilot, taken up by every unit."""

    rounds: ClassVar[int] = 1
    """parts that the pilot reads its sample in, each spread over all of it"""

    @property
    def frames(self) -> int | None:
        """Most frames of an input that a window has; None where inputs have no frames."""
        return None

    def suffices(self, windows: Sequence[Window]) -> bool:
        """Whether the windows of the first rounds are enough to fit on."""
        return False

    def window(self, sample: Sample, draw: np.random.Generator) -> Window:
        """A part of a sample that is small enough to keep many of. Raises InputError where the sample is bad."""
        ...

    def fit(self, windows: Sequence[Window], output: Store, inputs: int) -> tuple[TokenizerEntry, Encoder]:
        """An encoder of windows; its tokenizer is stored in the dataset.

        ``inputs``: of the whole job; the windows are a sample of these.
        """
        ...

    def layout(self, tokenizer: TokenizerEntry, output: Store) -> CodeLayout:
        """How the ids look, with this tokenizer of the dataset. Raises SpecError where they are not ids of it."""
        ...

    def load(self, pilot: PilotResult, output: Store) -> Encoder:
        """The encoder of whole samples, once the pilot has run."""
        ...


def check_job(spec: ConvertJob) -> None:
    """Raises SpecError or FormatError, before any work, for what a look at the spec shows to be wrong."""
    if isinstance(spec, TokenizeJob):
        from tokenshard.engine.tokenizing import check_tokenizer

        check_tokenizer(spec)
    elif isinstance(spec, ConvertDocuments):
        from tokenshard.engine.documents import check_documents

        check_documents(spec)
    elif Store(spec.source.path).root == Store(spec.output).root:
        raise SpecError(f"{spec.output}: is source and output at once; choose another output")
    elif isinstance(spec, CompressDocuments):
        from tokenshard.engine.compressing import check_vectors

        check_vectors(spec)
    elif isinstance(spec, Transcode) and spec.source.derives:
        from tokenshard.engine.deriving import check_derivable

        check_derivable(spec)


def appended_numerics(spec: ConvertJob, parent: Manifest, output: Store) -> str:
    """The numerics of ids that a job appends to a dataset, made with the dataset's own tokenizer."""
    if not isinstance(spec, TokenizeJob):
        return parent.tokenizer.numerics
    from tokenshard.tokenizers.folder import read_tokenizer_spec

    own = read_tokenizer_spec(output, f"tokenizer/{parent.tokenizer.fingerprint}").numerics
    return spec.stated_numerics(own)


def encoding_of(spec: ConvertJob, source: Source) -> Encoding:
    """The encoding of a job whose inputs come from ``source``."""
    if isinstance(spec, ConvertGrids):
        from tokenshard.engine.gridding import Gridding

        return Gridding(spec)
    if isinstance(spec, TokenizeJob):
        from tokenshard.engine.tokenizing import Tokenizing

        return Tokenizing(spec)
    if isinstance(spec, ConvertDocuments):
        from tokenshard.engine.documents import EncodingPages

        return EncodingPages(spec)
    if isinstance(spec, CompressDocuments):
        from tokenshard.engine.compressing import CompressingVectors

        return CompressingVectors(spec, source)
    if isinstance(spec, Transcode) and spec.source.derives:
        from tokenshard.engine.deriving import Deriving

        return Deriving(spec, cast(DatasetSource, source))
    from tokenshard.engine.codes import PassingThrough

    return PassingThrough(spec, cast(CodeSource, source))


def cut(shape: Sequence[int], limits: Sequence[int], draw: np.random.Generator) -> tuple[slice, ...]:
    """A random window of at most ``limits`` along each axis."""
    starts = [int(draw.integers(0, max(1, size - limit + 1))) for size, limit in zip(shape, limits, strict=True)]
    return tuple(slice(start, start + limit) for start, limit in zip(starts, limits, strict=True))
