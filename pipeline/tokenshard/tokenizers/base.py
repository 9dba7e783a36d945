"""The tokenizer contract: samples ⇄ ids. Stands between sources and codecs, knows neither files nor Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from tokenshard.spec.tokenizer import TokenizerSpec


class Tokenizer(Protocol):
    """Turns batches of equally sized samples into ids and back.

    Ids depend on the sample and the tokenizer alone: not on the batch it came in, nor on the number of threads.
    """

    @property
    def spec(self) -> TokenizerSpec:
        """What is written to ``tokenizer.json``: kind, alphabets, config, and the hash of the weights."""
        ...

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Token grid (rows, columns) of an image of that size in pixels: ceil(size / downsample) along each axis."""
        ...

    def encode(self, images: NDArray[np.uint8]) -> NDArray[Any]:
        """RGB, uint8 [B, height, width, 3] -> ids [B, levels, rows, columns] (uint16; int32 above 65,536 ids).

        Raises :class:`~tokenshard.errors.InputError` for arrays that are no such images, and
        :class:`~tokenshard.errors.SpecError` where this kind encodes something else.
        """
        ...

    def decode(self, codes: NDArray[Any], size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
        """Ids [B, levels, rows, columns] -> RGB, uint8 [B, height, width, 3], cropped to ``size`` where given.

        ``size``: (height, width) in pixels; without it whole tokens. Raises :class:`~tokenshard.errors.FormatError` for
        ids outside the alphabet or a size that does not fit their grid, and :class:`~tokenshard.errors.SpecError` where
        this kind draws nothing.
        """
        ...

    def tensors(self) -> dict[str, NDArray[Any]]:
        """The weights, by name, as stored in ``model.safetensors``."""
        ...


@runtime_checkable
class CodebookTokenizer(Tokenizer, Protocol):
    """A tokenizer whose ids stand for vectors, level by level, that can be exchanged for others."""

    def codebooks(self) -> tuple[NDArray[np.float32], ...]:
        """The vectors [K, d] of each level, in a space where distances say how much two codes differ.

        Those of several levels add up. Raises :class:`~tokenshard.errors.SpecError` where they are not known.
        """
        ...

    def with_codebooks(self, codebooks: Sequence[NDArray[np.float32]]) -> Tokenizer:
        """The same tokenizer with other vectors of the same space, float32 [K, d], for as many levels as given."""
        ...


@runtime_checkable
class FileTokenizer(Tokenizer, Protocol):
    """A tokenizer whose ids are files."""

    suffixes: tuple[str, ...]
    """of the names of such files; the first is the usual one"""

    def file(self, codes: NDArray[Any]) -> bytes:
        """The file that the ids [levels, *grid] of one sample are.

        Raises :class:`~tokenshard.errors.FormatError` where they are no such file.
        """
        ...


@runtime_checkable
class ClipTokenizer(Tokenizer, Protocol):
    """A tokenizer of whole clips that makes columns beside their ids."""

    made: ClassVar[Mapping[str, str]]
    """name of each column -> its Arrow type"""
    streams: ClassVar[tuple[str, ...]]
    """those of them whose bytes are stored as they are"""

    def encode_clip(self, clip: NDArray[np.uint8]) -> tuple[NDArray[Any], dict[str, Any]]:
        """uint8 [frames, height, width, 3] -> ids [levels, frames, rows, columns], and the values of the columns."""
        ...


class StoredTokenizer(Protocol):
    """A tokenizer class that can be made again from what ``tokenizer.json`` and ``model.safetensors`` hold."""

    @classmethod
    def from_tensors(cls, spec: TokenizerSpec, tensors: dict[str, NDArray[Any]]) -> Tokenizer:
        """Raises :class:`~tokenshard.errors.FormatError` where spec and tensors do not fit each other."""
        ...


class TrainableTokenizer(StoredTokenizer, Protocol):
    """A tokenizer class that can be fitted on a sample of the input itself, in seconds."""

    @classmethod
    def fit(cls, images: Sequence[NDArray[np.uint8]], seed: int, **options: Any) -> Tokenizer:
        """From images uint8 [height, width, 3] of any sizes; the same for the same images, seed and options.

        Raises :class:`~tokenshard.errors.SpecError` where there are none, or options are out of range.
        """
        ...
