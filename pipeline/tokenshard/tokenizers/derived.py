"""Tokenizers made of another one whose ids they exchange for ids of their own, by tables alone: no pixels, no training.

The base is stored inside, so that a derived tokenizer encodes and decodes with nothing else. New images get the very
ids that the tables give to those of the base.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from tokenshard.codecs.base import id_dtype
from tokenshard.errors import FormatError, SpecError
from tokenshard.spec.tokenizer import TokenizerSpec
from tokenshard.tokenizers.base import CodebookTokenizer, Tokenizer
from tokenshard.tokenizers.registry import tokenizer_class
from tokenshard.tokenizers.weights import weights_sha256, weights_to_bytes

BASE = "base."
"""Before the names of the base's tensors."""
DEEPEST = 8
"""Tokenizers derived from each other."""


class DerivedTokenizer(ABC):
    """Ids of ``base`` exchanged for others. ``levels`` are the alphabets of its own ids."""

    kind: ClassVar[str]
    levels: tuple[int, ...]

    def __init__(self, base: CodebookTokenizer) -> None:
        self.base = base

    @abstractmethod
    def derived(self, ids: NDArray[Any]) -> NDArray[Any]:
        """Ids [B, levels, *grid] of the base -> own ids. Base ids must be in range; later levels may be missing."""

    @abstractmethod
    def decode(self, codes: NDArray[Any], size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
        """Own ids [B, levels, rows, columns] -> uint8 [B, height, width, 3]."""

    @abstractmethod
    def tables(self) -> dict[str, NDArray[Any]]:
        """The tensors beside those of the base."""

    @classmethod
    @abstractmethod
    def from_tables(cls, base: CodebookTokenizer, spec: TokenizerSpec, tables: dict[str, NDArray[Any]]) -> Self:
        """Made again from :meth:`tables`. Raises FormatError where they do not fit the base or the description."""

    @classmethod
    def from_tensors(cls, spec: TokenizerSpec, tensors: dict[str, NDArray[Any]]) -> Self:
        """The tokenizer of a stored description. Raises :class:`FormatError` where the two do not fit."""
        described = spec.config.get("base")
        try:
            base_spec = TokenizerSpec.model_validate(described)
        except ValidationError as error:
            first = error.errors()[0]
            raise FormatError(f"config.base.{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
        if _depth(spec.config) > DEEPEST:
            raise FormatError(f"more than {DEEPEST} tokenizers derived from each other")
        mine = {name.removeprefix(BASE): tensor for name, tensor in tensors.items() if name.startswith(BASE)}
        try:
            base = tokenizer_class(base_spec.kind).from_tensors(base_spec, mine)
        except SpecError as error:
            raise FormatError(f"config.base: {error}; a newer tokenshard may be needed") from error
        tables = {name: tensor for name, tensor in tensors.items() if not name.startswith(BASE)}
        made = cls.from_tables(codebook_tokenizer(base), spec, tables)
        if made.levels != spec.levels or base_spec.downsample != spec.downsample:
            raise FormatError(f"levels {list(spec.levels)} or downsample {list(spec.downsample)} do not fit its tables")
        return made

    @cached_property
    def spec(self) -> TokenizerSpec:
        """Description of this tokenizer, with the hash of its weights."""
        base = self.base.spec
        return TokenizerSpec(
            kind=self.kind,
            modality=base.modality,
            levels=self.levels,
            downsample=base.downsample,
            config={"base": base.model_dump(mode="json")},
            numerics=base.numerics,
            weights_sha256=weights_sha256(weights_to_bytes(self.tensors())),
        )

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tokens of an image of that size."""
        return self.base.grid(height, width)

    def encode(self, images: NDArray[np.uint8]) -> NDArray[Any]:
        """uint8 [B, height, width, 3] -> ids [B, levels, rows, columns]: what the tables make of those of the base."""
        return self.derived(self.base.encode(images))

    def tensors(self) -> dict[str, NDArray[Any]]:
        """The weights of the base below `base.`, and the tables."""
        return {BASE + name: tensor for name, tensor in self.base.tensors().items()} | self.tables()

    def own_dtype(self) -> type[np.uint16] | type[np.int32]:
        """Dtype of its own ids."""
        return id_dtype(max(self.levels))


def codebook_tokenizer(tokenizer: Tokenizer) -> CodebookTokenizer:
    """The tokenizer itself. Raises :class:`SpecError` where its ids stand for no vectors."""
    if not isinstance(tokenizer, CodebookTokenizer):
        raise SpecError(f"ids of a {tokenizer.spec.kind!r} tokenizer do not stand for vectors of a codebook")
    return tokenizer


def check_table(name: str, table: NDArray[Any] | None, length: int, below: int) -> NDArray[np.int32]:
    """The int32 table [length] of numbers below ``below``. Raises :class:`FormatError` where it is anything else."""
    if table is None or table.dtype != np.int32 or table.shape != (length,):
        raise FormatError(f"tensor {name} is missing or not int32 [{length}]")
    if length and not 0 <= int(table.min()) <= int(table.max()) < below:
        raise FormatError(f"tensor {name} leads outside the alphabet of {below}")
    return table


def _depth(config: Any) -> int:
    """How many tokenizers a description has inside each other."""
    depth = 0
    while isinstance(config, dict) and isinstance(base := config.get("base"), dict):
        depth, config = depth + 1, base.get("config")
    return depth
