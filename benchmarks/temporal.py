"""A tokenizer of clips beside one of images at the same number of ids a pixel, on videos neither has seen.

    tokenshard tokenizer train TRAIN clips/ --network f4x8x8 --fps 8 …
    tokenshard tokenizer train TRAIN frames/ --network f16 --fps 8 …
    python benchmarks/temporal.py TEST clips/ frames/

A token of f4x8x8 covers 4 x 8 x 8 pixels, one of f16 16 x 16 of a frame: 256 either way, but for the first frame of a
clip. Clips of TEST have 17 frames (shorter ones are left out). PSNR is of a clip, its mean that of dB; stored are the
ids of all clips by the codec that a conversion would choose for them, model included.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tokenshard.codecs.choose import choose_codec
from tokenshard.engine.encode import flat_ids
from tokenshard.sources.base import Sample
from tokenshard.sources.images.decoded import decoded_samples
from tokenshard.sources.video.source import open_video_source
from tokenshard.spec.videos import VideoSourceSpec
from tokenshard.store import Store
from tokenshard.tokenizers.folder import load_tokenizer
from tokenshard.tokenizers.frames import decode_frames, encode_frames

FRAMES = 17


def clips(folder: Path, fps: float, size: int) -> dict[str, NDArray[np.uint8]]:
    """Clips of 17 frames, by key."""
    fields = {"path": str(folder), "fps": fps, "clip_seconds": (FRAMES + 1) / fps, "size": size, "fit": "center-crop"}
    source = open_video_source(VideoSourceSpec.model_validate({**fields, "labels": "none"}))
    samples = [item for item in decoded_samples(source, threads=1) if isinstance(item, Sample)]
    return {sample.key: sample.data[:FRAMES] for sample in samples if len(sample.data) >= FRAMES}


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    return float(10 * np.log10(255**2 / max(1e-10, np.mean((a.astype(np.float32) - b) ** 2))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path)
    parser.add_argument("tokenizers", nargs="+")
    parser.add_argument("--fps", type=float, default=8)
    parser.add_argument("--size", type=int, default=160)
    options = parser.parse_args()
    found = clips(options.videos, options.fps, options.size)
    pixels = sum(clip[..., 0].size for clip in found.values())
    for folder in options.tokenizers:
        tokenizer, start = load_tokenizer(Store(folder)), time.process_time()
        codes = {key: encode_frames(tokenizer, clip) for key, clip in found.items()}
        encoding, start = time.process_time() - start, time.process_time()
        quality = {key: psnr(clip, decode_frames(tokenizer, codes[key], clip.shape[:3])) for key, clip in found.items()}
        decoding = time.process_time() - start
        ids = sum(one.size for one in codes.values())
        grids, alphabet = np.array([one.shape[1:] for one in codes.values()], np.int32), tokenizer.spec.levels[0]
        choice = choose_codec(flat_ids(list(codes.values()), 0, alphabet), grids, alphabet)
        stored = min(choice.sizes.values())
        frames = len(found) * FRAMES
        print(
            f"{folder}: {np.mean(list(quality.values())):.2f} dB, {pixels / ids:.0f} pixels an id, "
            f"{ids * np.log2(alphabet) / pixels:.4f} bits a pixel raw, {ids * stored / pixels:.4f} stored "
            f"({min(choice.sizes, key=choice.sizes.__getitem__)}, {stored:.2f} bits an id); "
            f"{frames / encoding:.1f} frames/s encoded, {frames / decoding:.1f} decoded on one core"
        )
        print("  " + ", ".join(f"{key} {value:.2f}" for key, value in quality.items()))


if __name__ == "__main__":
    main()
