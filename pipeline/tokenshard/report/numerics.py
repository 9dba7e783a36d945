"""What a numerics mode, or a single layer in eight bits, does to the ids and the pixels of a conv tokenizer."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import nn

from tokenshard.report.quality import psnr
from tokenshard.tokenizers.conv import ConvVQ
from tokenshard.tokenizers.int8 import convolutions, in_int8
from tokenshard.tokenizers.trained import Numerics

Images = Sequence[NDArray[np.uint8]]


@dataclass(frozen=True)
class ModeReport:
    """A mode beside fp32 on the CPU, on the same images."""

    numerics: Numerics
    ids_changed: float
    """share of all ids"""
    images_changed: float
    """share of the images that have an id changed"""
    psnr: float
    """dB, mean over images, encoded and decoded in this mode"""
    psnr_change: float
    """to fp32"""
    encode_images_per_second: float
    decode_images_per_second: float

    def json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class LayerReport:
    """One convolution in eight bits and all else in float32."""

    part: Literal["encoder", "decoder"]
    layer: str
    """name of the convolution within its part"""
    pixel_change: float
    """root of the mean squared change of the decoded pixels, in grey levels of 255: what layers are ranked by"""
    ids_changed: float
    psnr_change: float

    def json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class _Run:
    ids: list[NDArray[Any]]
    pixels: list[NDArray[np.uint8]]
    encoding: float
    decoding: float

    @classmethod
    def of(cls, tokenizer: ConvVQ, images: Images) -> _Run:
        """Ids and pixels of images uint8 [height, width, 3] of any sizes, one at a time, and the seconds of both."""
        tokenizer.decode(tokenizer.encode(images[0][None]))  # the first call prepares kernels
        started = time.perf_counter()
        ids = [tokenizer.encode(image[None]) for image in images]
        encoded = time.perf_counter()
        pixels = decoded(tokenizer, ids, images)
        return cls(ids, pixels, encoded - started, time.perf_counter() - encoded)

    def psnr(self, images: Images) -> float:
        return float(np.mean([psnr(image, made) for image, made in zip(images, self.pixels, strict=True)]))


def decoded(tokenizer: ConvVQ, ids: Sequence[NDArray[Any]], images: Images) -> list[NDArray[np.uint8]]:
    """The pixels of ids [1, levels, rows, columns], of the sizes of the images."""
    return [tokenizer.decode(codes, image.shape[:2])[0] for codes, image in zip(ids, images, strict=True)]


def compare_modes(
    tokenizer: ConvVQ, images: Images, modes: Sequence[Numerics], device: str = "cpu"
) -> list[ModeReport]:
    """Each mode on a device, beside fp32 on the CPU; the first report is that of fp32 on the CPU itself."""
    reference = _Run.of(tokenizer.on("cpu", "fp32"), images)
    quality = reference.psnr(images)
    reports = []
    for mode, run in (("fp32", reference), *((mode, None) for mode in modes)):
        made = run or _Run.of(tokenizer.on(device, mode), images)
        changed = [a != b for a, b in zip(reference.ids, made.ids, strict=True)]
        reports.append(
            ModeReport(
                numerics=mode,
                ids_changed=_share(changed),
                images_changed=float(np.mean([one.any() for one in changed])),
                psnr=made.psnr(images),
                psnr_change=made.psnr(images) - quality,
                encode_images_per_second=len(images) / made.encoding,
                decode_images_per_second=len(images) / made.decoding,
            )
        )
    return reports


def layer_sensitivity(tokenizer: ConvVQ, images: Images) -> list[LayerReport]:
    """Every convolution of encoder and decoder in eight bits by itself, those that change the pixels most first.

    Measured on what comes out (ViDiT-Q, arXiv:2406.02540, ranks by such metrics), so nothing is assumed of a layer.
    """
    base = tokenizer.on("cpu", "fp32")
    reference = _Run.of(base, images)
    quality = reference.psnr(images)
    reports = []
    parts: tuple[tuple[Literal["encoder", "decoder"], nn.Module], ...]
    parts = (("encoder", base.network.encoder), ("decoder", base.network.decoder))
    for part, half in parts:
        for name in convolutions(half):
            changed = base.with_part(part, in_int8(half, [name]))
            ids = reference.ids
            if part == "encoder":
                ids = [changed.encode(image[None]) for image in images]
            pixels = decoded(changed, ids, images)
            reports.append(
                LayerReport(
                    part=part,
                    layer=name,
                    pixel_change=_distance(reference.pixels, pixels),
                    ids_changed=_share([a != b for a, b in zip(reference.ids, ids, strict=True)]),
                    psnr_change=_Run(ids, pixels, 0, 0).psnr(images) - quality,
                )
            )
    return sorted(reports, key=lambda report: -report.pixel_change)


def _share(changed: Sequence[NDArray[np.bool_]]) -> float:
    return float(sum(one.sum() for one in changed) / sum(one.size for one in changed))


def _distance(before: Images, after: Images) -> float:
    squares = [((a.astype(np.float32) - b) ** 2).ravel() for a, b in zip(before, after, strict=True)]
    return float(np.sqrt(np.concatenate(squares).mean(dtype=np.float64)))
