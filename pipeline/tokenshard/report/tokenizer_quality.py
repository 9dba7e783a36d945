"""How good a tokenizer is on images it was not trained on: distortion, use of the codes, and bits after the codec."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from tokenshard.codecs.choose import choose_codec
from tokenshard.codecs.fit import Earlier
from tokenshard.codecs.zstd import ZstdCodec
from tokenshard.report.quality import order0_entropy, psnr
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
    usage: float
    """share of all codes that occur, the lowest of the levels; needs some 20 tokens a code to mean anything"""
    perplexity: float
    """2 to the entropy, the lowest of the levels"""
    order0_entropy: float
    """bits an id without context, mean over levels"""
    bits_per_token: float
    """bits an id as stored by the codec of each level, its model file included"""
    bits_per_pixel: float
    codecs: tuple[str, ...]
    encode_images_per_second: float
    decode_images_per_second: float

    def json(self) -> dict[str, Any]:
        """As a JSON-able dict."""
        return asdict(self)


def tokenizer_quality(tokenizer: Tokenizer, images: Iterable[NDArray[np.uint8]]) -> TokenizerQuality:
    """Encode, decode and compare images uint8 [height, width, 3] of any sizes, one at a time.

    Codecs are fitted on the ids of these very images, as a conversion would, and coded in full: every bit is counted.
    """
    levels = tokenizer.spec.levels
    ids: list[list[NDArray[Any]]] = [[] for _ in levels]
    grids: list[tuple[int, ...]] = []
    distortions: list[tuple[float, float]] = []
    pixels, encoding, decoding = 0, 0.0, 0.0
    for image in images:
        started = time.perf_counter()
        codes = tokenizer.encode(image[None])
        encoded = time.perf_counter()
        made = tokenizer.decode(codes, image.shape[:2])[0]
        decoding += time.perf_counter() - encoded
        encoding += encoded - started
        distortions.append((psnr(image, made), ssim(image, made)))
        for level, plane in zip(ids, codes[0], strict=True):
            level.append(plane.ravel())
        grids.append(codes.shape[2:])
        pixels += image.shape[0] * image.shape[1]
    if not grids:
        raise ValueError("there are no images to measure on")
    flat = [np.concatenate(level) for level in ids]
    bits, names = _coded_bits(flat, np.array(grids, np.int32), levels)
    entropies = [order0_entropy(level) for level in flat]
    tokens = sum(map(len, flat))
    return TokenizerQuality(
        images=len(grids),
        pixels=pixels,
        tokens=tokens,
        psnr=float(np.mean([one[0] for one in distortions])),
        ssim=float(np.mean([one[1] for one in distortions])),
        usage=min(len(np.unique(level)) / size for level, size in zip(flat, levels, strict=True)),
        perplexity=float(2 ** min(entropies)),
        order0_entropy=float(np.mean(entropies)),
        bits_per_token=bits / tokens,
        bits_per_pixel=bits / pixels,
        codecs=names,
        encode_images_per_second=len(grids) / encoding,
        decode_images_per_second=len(grids) / decoding,
    )


def _coded_bits(
    flat: list[NDArray[Any]], grids: NDArray[np.int32], levels: tuple[int, ...]
) -> tuple[float, tuple[str, ...]]:
    """Bits of the streams and model files of all levels, and the codecs chosen."""
    bits, names = 0.0, []
    earlier: Earlier | None = None
    for ids, alphabet in zip(flat, levels, strict=True):
        codec = choose_codec(ids, grids, alphabet, "auto", len(ids), earlier).codec
        before = None if earlier is None else earlier.ids
        size = codec.parquet_bytes(ids) if isinstance(codec, ZstdCodec) else len(codec.encode(ids, grids, before)[0])
        bits += 8 * (size + len(codec.model_bytes() or b""))
        names.append(codec.name)
        earlier = Earlier(ids, alphabet)
    return bits, tuple(names)


def ssim(original: NDArray[np.uint8], reconstruction: NDArray[np.uint8]) -> float:
    """Structural similarity of uint8 images [height, width, 3], mean over channels and places.

    Wang et al. 2004: Gaussian window of 11x11 pixels, sigma 1.5, constants 0.01 and 0.03, only whole windows. Images
    smaller than the window are continued up to it.
    """
    a, b = (
        torch.from_numpy(image.astype(np.float64)).permute(2, 0, 1)[:, None] for image in (original, reconstruction)
    )
    below, right = (max(0, 11 - side) for side in a.shape[2:])
    if below or right:
        a, b = (functional.pad(image, (0, right, 0, below), mode="replicate") for image in (a, b))
    mean_a, mean_b = _blurred(a), _blurred(b)
    var_a = _blurred(a * a) - mean_a**2
    var_b = _blurred(b * b) - mean_b**2
    covariance = _blurred(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (var_a + var_b + c2)
    return float((luminance * structure).mean())


def _blurred(x: torch.Tensor) -> torch.Tensor:
    """[n, 1, H, W] under the window, without borders."""
    weights = torch.exp(-((torch.arange(11, dtype=x.dtype) - 5) ** 2) / (2 * 1.5**2))
    weights = weights / weights.sum()
    return functional.conv2d(functional.conv2d(x, weights.view(1, 1, 11, 1)), weights.view(1, 1, 1, 11))
