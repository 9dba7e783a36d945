"""The `external` tokenizer: stands for one that is not at hand, in a dataset of ids that were made elsewhere.

It keeps what is known (alphabets, downsampling, perhaps a codebook) and encodes and decodes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenshard.errors import SpecError
from tokenshard.sources.base import CodeLayout
from tokenshard.spec.tokenizer import TokenizerSpec
from tokenshard.tokenizers.weights import weights_sha256, weights_to_bytes


class ExternalTokenizer:
    """A description of ids; ``tensors`` are what came with them, e.g. ``{"codebook": [K, d]}``."""

    def __init__(self, spec: TokenizerSpec, tensors: Mapping[str, NDArray[Any]]) -> None:
        self._spec, self._tensors = spec, dict(tensors)

    @classmethod
    def of(cls, layout: CodeLayout, tensors: Mapping[str, NDArray[Any]]) -> ExternalTokenizer:
        """The description of ids with this layout."""
        spec = TokenizerSpec(
            kind="external",
            modality=layout.kind,
            levels=layout.alphabets,
            downsample=layout.downsample or (1,) * len(layout.grid),
            numerics="unknown",
            weights_sha256=weights_sha256(weights_to_bytes(dict(tensors))),
        )
        return cls(spec, tensors)

    @classmethod
    def from_tensors(cls, spec: TokenizerSpec, tensors: dict[str, NDArray[Any]]) -> ExternalTokenizer:
        return cls(spec, tensors)

    @property
    def spec(self) -> TokenizerSpec:
        return self._spec

    def grid(self, height: int, width: int) -> tuple[int, int]:
        down, right = self._spec.downsample[-2:]
        return -(-height // down), -(-width // right)

    def encode(self, images: NDArray[np.uint8]) -> NDArray[Any]:
        raise SpecError(
            "the ids of this dataset were made elsewhere; without the tokenizer that made them none are made"
        )

    def decode(self, codes: NDArray[Any], size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
        raise SpecError(
            "the ids of this dataset were made elsewhere, and it does not hold the tokenizer that made them; they can "
            "be read, but not shown as what they stand for"
        )

    def codebooks(self) -> tuple[NDArray[np.float32]]:
        """The codebook that came with the ids. Raises SpecError where none of a vector an id did."""
        codebook = self._tensors.get("codebook")
        if codebook is None or codebook.ndim != 2 or self._spec.levels != codebook.shape[:1]:
            raise SpecError("the ids of this dataset were made elsewhere, and no codebook came with them")
        return (codebook.astype(np.float32),)

    def with_codebooks(self, codebooks: Sequence[NDArray[np.float32]]) -> ExternalTokenizer:
        tensors = {"codebook": np.asarray(codebooks[0], np.float32)}
        levels, sha256 = (len(codebooks[0]),), weights_sha256(weights_to_bytes(tensors))
        spec = self._spec.model_copy(update={"levels": levels, "weights_sha256": sha256})
        return ExternalTokenizer(spec, tensors)

    def tensors(self) -> dict[str, NDArray[Any]]:
        return dict(self._tensors)
