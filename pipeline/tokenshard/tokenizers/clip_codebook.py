"""The `clip-codebook` tokenizer: each clip gets a codebook of its own, made of the features of a frozen encoder.

After VQToken (Zhang and Fu 2025, arXiv:2503.16980): the features of all frames are clustered by their cosine, and a
clip becomes a few codewords, the means of the clusters, and a map [T, rows, columns] of which feature is in which. A
language model gets the codewords as its tokens; where and when they occur is in the map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator

from tokenshard.errors import FormatError, InputError, SpecError
from tokenshard.shards.clip_figures import CODEBOOK, CODEWORDS, COSINE
from tokenshard.spec.base import StoredDocument
from tokenshard.spec.tokenizer import TokenizerSpec
from tokenshard.tokenizers.clip_clusters import FEWEST, adaptively_clustered, clustered, means, normalized
from tokenshard.tokenizers.features import Features, FeaturesConfig, LentFeatures, features_of, stored_features
from tokenshard.tokenizers.folder import load_tokenizer
from tokenshard.tokenizers.packaged import saved_tokenizer
from tokenshard.tokenizers.registry import KINDS, parse_tokenizer, trainable_class
from tokenshard.tokenizers.weights import weights_sha256, weights_to_bytes

MOST = 64
MOST_CODEWORDS = 4096


class ClipCodebookConfig(StoredDocument):
    """`config` of a clip-codebook tokenizer in `tokenizer.json`."""

    features: FeaturesConfig
    k: int | None = Field(
        default=None, ge=2, le=MOST_CODEWORDS, description="codewords a clip; none: as many as it has"
    )
    most: int = Field(
        default=MOST, ge=FEWEST, le=MOST_CODEWORDS, description="codewords a clip may have where k is none"
    )
    stored: Literal["float16"] = Field(default="float16", description="dtype of codewords, little-endian")

    @model_validator(mode="after")
    def _one_number(self) -> Self:
        if self.k is not None and self.most != MOST:
            raise ValueError("k and most exclude each other: k is how many, most bounds how many a clip may have")
        return self


@dataclass(frozen=True)
class ClipCodebook:
    """What a clip became."""

    codewords: NDArray[np.float32]
    """[K, d]"""
    index: NDArray[np.int64]
    """[T, rows, columns], below K"""

    def features(self) -> NDArray[np.float32]:
        """The features as far as they are kept: [T, rows, columns, d]."""
        return self.codewords[self.index]


class ClipCodebookTokenizer:
    """Ids are the map; codewords are columns beside them. There is no way back to pixels."""

    made: ClassVar[Mapping[str, str]] = {CODEBOOK: "binary", CODEWORDS: "int32", COSINE: "float"}
    """float16 [K, d] of a clip, row by row; K; mean cosine of a feature to its codeword"""
    streams: ClassVar[tuple[str, ...]] = (CODEBOOK,)

    def __init__(self, features: Features, k: int | None = None, most: int = MOST) -> None:
        self._features = features
        self.config = ClipCodebookConfig(features=features.config, k=k, most=most)

    @classmethod
    def fit(
        cls,
        images: Sequence[NDArray[np.uint8]],
        seed: int,
        *,
        features: str = "default",
        k: int | None = None,
        most: int = MOST,
        encoder: str | None = None,
    ) -> ClipCodebookTokenizer:
        """Nothing is fitted but the tokenizer of images that ``features`` names, where it is one that is: `patch:8x8`.

        features: a saved tokenizer (`default`, a folder), or one that is fitted on frames uint8 [height, width, 3];
        encoder: whose features are taken instead, as :func:`~tokenshard.tokenizers.encoders.load_encoder` has it
        """
        if encoder is not None:
            from tokenshard.tokenizers.encoders import load_encoder

            return cls(LentFeatures.of(encoder, load_encoder(encoder)), k, most)
        if features.partition(":")[0] in KINDS:
            kind, options = parse_tokenizer(features)
            return cls(features_of(trainable_class(kind).fit(images, seed, **options)), k, most)
        return cls(features_of(load_tokenizer(saved_tokenizer(features))), k, most)

    @classmethod
    def from_tensors(cls, spec: TokenizerSpec, tensors: dict[str, NDArray[Any]]) -> ClipCodebookTokenizer:
        """The tokenizer of a stored description. Raises :class:`FormatError` where the two do not fit."""
        try:
            config = ClipCodebookConfig.model_validate(spec.config)
        except ValidationError as error:
            first = error.errors()[0]
            raise FormatError(f"config.{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
        made = cls(stored_features(config.features, tensors), config.k, config.most)
        if made.spec.levels != spec.levels or made.spec.downsample != spec.downsample:
            raise FormatError(f"levels {list(spec.levels)} or downsample {list(spec.downsample)} do not fit its config")
        return made

    @cached_property
    def spec(self) -> TokenizerSpec:
        """Description of this tokenizer, with the hash of its weights."""
        return TokenizerSpec(
            kind="clip-codebook",
            modality="clip",
            levels=(self.config.k or self.config.most,),
            downsample=self._features.downsample,
            config=self.config.model_dump(mode="json"),
            numerics=self._features.numerics,
            weights_sha256=weights_sha256(weights_to_bytes(self.tensors())),
        )

    def with_encoder(self, name: str | None) -> ClipCodebookTokenizer:
        """Ready to encode: with the encoder of that name, where it needs one. Raises as
        :func:`~tokenshard.tokenizers.encoders.with_encoder`."""
        if not isinstance(self._features, LentFeatures):
            if name is not None:
                raise SpecError(f"encoder {name!r}: the tokenizer has features of its own; leave the option out")
            return self
        if name is None:
            raise SpecError(
                f"the tokenizer needs the encoder {self._features.config.name!r}, which is not part of it; give it "
                "with --encoder (in a job spec: encoder)"
            )
        from tokenshard.tokenizers.encoders import load_encoder

        return ClipCodebookTokenizer(self._features.lend(name, load_encoder(name)), self.config.k, self.config.most)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of features of a frame of that size."""
        down, across = self._features.downsample
        return -(-height // down), -(-width // across)

    def encode_clip(self, clip: NDArray[np.uint8]) -> tuple[NDArray[np.uint16], dict[str, Any]]:
        """uint8 [frames, height, width, 3] -> the map [1, frames, rows, columns], and the columns of :attr:`made`.

        Raises InputError where features are not finite, or too large for float16.
        """
        features = self._features(clip)
        flat = features.reshape(-1, features.shape[-1])
        points = normalized(flat) if np.isfinite(flat).all() else None
        with np.errstate(over="ignore"):
            if points is None or not np.isfinite(flat.astype(np.float16)).all():
                raise InputError("its features are not finite, or too large for float16")
        if self.config.k is None:
            ids = adaptively_clustered(points, self.config.most).ids
        else:
            ids = clustered(points, self.config.k).ids
        codewords = means(flat.astype(np.float64), ids).astype("<f2")
        columns = {
            CODEBOOK: codewords.tobytes(),
            CODEWORDS: len(codewords),
            COSINE: mean_cosine(flat, codewords.astype(np.float32)[ids]),
        }
        return ids.astype(np.uint16).reshape(1, *features.shape[:-1]), columns

    def encode(self, images: NDArray[np.uint8]) -> NDArray[Any]:
        raise SpecError("a clip-codebook tokenizer encodes clips, not images; use `tokenshard convert video`")

    def decode(self, codes: NDArray[Any], size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
        raise SpecError("the ids of a clip-codebook tokenizer stand for features, not pixels; they cannot be drawn")

    def codebook_of(self, sample: Mapping[str, Any]) -> ClipCodebook:
        """Codewords and map of a row of the dataset, as ``dataset[i]`` gives it.

        Raises FormatError where the columns do not fit each other.
        """
        data, count, dim = sample[CODEBOOK], int(sample[CODEWORDS]), self.config.features.dim
        index = np.asarray(sample["codes"]).astype(np.int64)
        index = index.reshape(index.shape[-3:])
        if not 0 < count <= self.spec.levels[0] or len(data) != 2 * count * dim:
            raise FormatError(f"{len(data)} bytes are not {count} codewords of {dim} float16")
        if index.size and not 0 <= int(index.min()) <= int(index.max()) < count:
            raise FormatError(f"ids {index.min()} to {index.max()} do not fit {count} codewords")
        return ClipCodebook(np.frombuffer(data, "<f2").astype(np.float32).reshape(count, dim), index)

    def tensors(self) -> dict[str, NDArray[Any]]:
        """The weights of the tokenizer whose features they are; none of an encoder that is lent."""
        return self._features.tensors()


def mean_cosine(features: NDArray[np.float32], kept: NDArray[np.float32]) -> float:
    """Of the rows of two [N, d]; 1 where both are zero."""
    a, b = features.astype(np.float64), kept.astype(np.float64)
    lengths = np.sqrt(np.square(a).sum(1) * np.square(b).sum(1))
    both = (np.abs(a).sum(1) == 0) & (np.abs(b).sum(1) == 0)
    cosines = np.where(both, 1.0, (a * b).sum(1) / np.maximum(lengths, 1e-12))
    return round(float(cosines.mean()), 6)
