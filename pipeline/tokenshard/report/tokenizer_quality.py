"""How good a tokenizer is on images it was not trained on: distortion, use of the codes, and bits after the codec."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenshard.codecs.base import Ids, id_dtype
from tokenshard.codecs.choose import choose_codec
from tokenshard.codecs.fit import Earlier
from tokenshard.codecs.zstd import ZstdCodec
from tokenshard.report.code_use import CodeUse, conditional_entropy
from tokenshard.report.features import FeatureMeasures
from tokenshard.report.quality import psnr
from tokenshard.report.similarity import ms_ssim, ssim
from tokenshard.tokenizers.base import Tokenizer


@dataclass(frozen=True)
class TokenizerQuality:
    """Means over images, unless said otherwise."""

    images: int
    pixels: int
    """places of all images, whatever their channels"""
    tokens: int
    """ids of all images and levels"""
    psnr: float
    """dB, the mean of each image's own value"""
    ssim: float
    ms_ssim: float | None
    """of the images with no side below 176 pixels; None without any"""
    usage: float
    """share of all codes that occur, the lowest of the levels; needs some 20 tokens a code to mean anything"""
    perplexity: float
    """2 to the entropy, the lowest of the levels"""
    order0_entropy: float
    """bits an id without context, mean over levels"""
    left_entropy: float
    """bits an id given its left neighbour, mean over levels; see :func:`conditional_entropy`"""
    up_entropy: float
    """bits an id given the one above it"""
    bits_per_token: float
    """bits an id as stored by the codec of each level, its model file included unless it is the tokenizer's"""
    bits_per_pixel: float
    codecs: tuple[str, ...]
    tables: tuple[bool, ...]
    """whether the codec of a level takes the tables that come with the tokenizer"""
    encode_images_per_second: float
    decode_images_per_second: float
    uses: tuple[CodeUse, ...]
    """of each level"""
    features: dict[str, Any]
    """`lpips` and `rfid`, where they were measured; see :meth:`FeatureMeasures.results`"""

    def json(self) -> dict[str, Any]:
        """As a JSON-able dict, all but ``uses``; what is among ``features`` as keys of their own."""
        own = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in ("uses", "features")}
        return own | self.features


def tokenizer_quality(
    tokenizer: Tokenizer,
    images: Iterable[NDArray[np.uint8]],
    tables: Sequence[bytes] = (),
    keys: Sequence[str] | None = None,
    top: int = 0,
    features: FeatureMeasures | None = None,
) -> TokenizerQuality:
    """Encode, decode and compare images uint8 [height, width, 3] of any sizes, one at a time.

    Codecs are fitted on the ids of these very images, as a conversion would, and coded in full: every bit is counted.
    ``tables`` are those that come with the tokenizer; they are no part of what an image costs, as its weights are not.
    ``top`` samples are kept of each code, named by ``keys`` (by default their numbers).
    ``features``: measures by networks, added up over these images.
    """
    levels = tokenizer.spec.levels
    grids: list[list[NDArray[Any]]] = [[] for _ in levels]
    distortions: list[tuple[float, float, float | None]] = []
    pixels, encoding, decoding = 0, 0.0, 0.0
    for image in images:
        started = time.perf_counter()
        codes = tokenizer.encode(image[None])
        encoded = time.perf_counter()
        made = tokenizer.decode(codes, image.shape[:2])[0]
        decoding += time.perf_counter() - encoded
        encoding += encoded - started
        distortions.append((psnr(image, made), ssim(image, made), ms_ssim(image, made)))
        if features is not None:
            features.add(image, made)
        for level, plane in zip(grids, codes[0], strict=True):
            level.append(plane)
        pixels += image.shape[0] * image.shape[1]
    if not distortions:
        raise ValueError("there are no images to measure on")
    names = [str(number) for number in range(len(distortions))] if keys is None else keys
    uses = tuple(
        CodeUse.of(list(zip(names, level, strict=True)), alphabet, top)
        for level, alphabet in zip(grids, levels, strict=True)
    )
    bits, codecs, given = _coded_bits(grids, levels, tables)
    tokens = sum(plane.size for level in grids for plane in level)
    multi_scale = [one[2] for one in distortions if one[2] is not None]
    return TokenizerQuality(
        images=len(distortions),
        pixels=pixels,
        tokens=tokens,
        psnr=float(np.mean([one[0] for one in distortions])),
        ssim=float(np.mean([one[1] for one in distortions])),
        ms_ssim=float(np.mean(multi_scale)) if multi_scale else None,
        usage=min(use.usage for use in uses),
        perplexity=min(use.perplexity for use in uses),
        order0_entropy=float(np.mean([use.entropy for use in uses])),
        left_entropy=float(np.mean([conditional_entropy(level, 1) for level in grids])),
        up_entropy=float(np.mean([conditional_entropy(level, 0) for level in grids])),
        bits_per_token=bits / tokens,
        bits_per_pixel=bits / pixels,
        codecs=codecs,
        tables=given,
        encode_images_per_second=len(distortions) / encoding,
        decode_images_per_second=len(distortions) / decoding,
        uses=uses,
        features={} if features is None else features.results(),
    )


def _coded_bits(
    grids: Sequence[Sequence[NDArray[Any]]], levels: tuple[int, ...], tables: Sequence[bytes]
) -> tuple[float, tuple[str, ...], tuple[bool, ...]]:
    """Bits of the streams and own model files of all levels; the codecs chosen; whether each takes the given table."""
    bits, names, given = 0.0, [], []
    earlier: Earlier | None = None
    shapes = np.array([plane.shape for plane in grids[0]], np.int32)
    for level, (planes, alphabet) in enumerate(zip(grids, levels, strict=True)):
        ids: Ids = np.concatenate([plane.ravel() for plane in planes]).astype(id_dtype(alphabet), copy=False)
        choice = choose_codec(ids, shapes, alphabet, "auto", len(ids), earlier, tables[level] if tables else None)
        codec, before = choice.codec, None if earlier is None else earlier.ids
        size = codec.parquet_bytes(ids) if isinstance(codec, ZstdCodec) else len(codec.encode(ids, shapes, before)[0])
        bits += 8 * (size + (0 if choice.given else len(codec.model_bytes() or b"")))
        names.append(codec.name)
        given.append(choice.given)
        earlier = Earlier(ids, alphabet)
    return bits, tuple(names), tuple(given)
