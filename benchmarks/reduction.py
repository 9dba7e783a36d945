"""Fewer codes from stored ids alone, beside encoding the pixels again with the same few codes.

    python benchmarks/reduction.py TOKENIZER IMAGES [--fit FOLDER] [--images 100] [--factors 4 16]

TOKENIZER is `default`, the folder of a saved one, or NAME:OPTIONS to be fitted on the images of --fit. The ids of
IMAGES are reduced as by `tokenshard transcode --codebook-size`: codes are weighted by how often these ids have them,
neither pixels nor encoder are used. Printed are the entropy of the ids and how far it falls, the PSNR of what the
reduced ids decode to, that of the same images encoded again with the small codebook, and the difference.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tokenshard.report.quality import order0_entropy, psnr
from tokenshard.spec.images import ImageSourceSpec
from tokenshard.tokenizers.base import Tokenizer
from tokenshard.tokenizers.derived import codebook_tokenizer
from tokenshard.tokenizers.folder import load_tokenizer
from tokenshard.tokenizers.packaged import saved_tokenizer
from tokenshard.tokenizers.reduced import ReducedTokenizer
from tokenshard.tokenizers.registry import parse_tokenizer, trainable_class
from tokenshard.training.images import read_samples

Pixels = NDArray[np.uint8]


def images(folder: Path, most: int) -> list[Pixels]:
    source = ImageSourceSpec.model_validate({"path": str(folder), "labels": "none"})
    return [sample.data for sample in read_samples([source], {}, print, most)]


def quality(tokenizer: Tokenizer, pictures: list[Pixels], ids: list[NDArray[np.integer]]) -> tuple[float, float]:
    """Mean PSNR of what ids decode to, and their entropy in bits."""
    made = [tokenizer.decode(one, picture.shape[:2])[0] for one, picture in zip(ids, pictures, strict=True)]
    decibel = np.mean([psnr(picture, other) for picture, other in zip(pictures, made, strict=True)])
    return float(decibel), order0_entropy(np.concatenate([one.ravel() for one in ids]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer")
    parser.add_argument("folder", type=Path, metavar="IMAGES")
    parser.add_argument("--fit", type=Path, metavar="FOLDER")
    parser.add_argument("--images", type=int, default=100, help="of each folder, spread evenly")
    parser.add_argument("--factors", type=int, nargs="+", default=[4, 16])
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.fit is None:
        found = load_tokenizer(saved_tokenizer(options.tokenizer, None))
    else:
        kind, values = parse_tokenizer(options.tokenizer)
        found = trainable_class(kind).fit(images(options.fit, 6 * options.images), 0, **values)
    base, pictures = codebook_tokenizer(found), images(options.folder, options.images)
    ids = [base.encode(picture[None]) for picture in pictures]
    [size] = base.spec.levels
    counts = np.bincount(np.concatenate([one.ravel() for one in ids]), minlength=size)
    before = quality(base, pictures, ids)
    print(f"{size:>6} codes: {before[0]:.2f} dB, {before[1]:.2f} bits")
    for factor in options.factors:
        made = ReducedTokenizer.of(base, [counts], [size // factor], 0)
        small = base.with_codebooks(made.vectors)
        mine = quality(made, pictures, [made.derived(one) for one in ids])
        again = quality(small, pictures, [small.encode(picture[None]) for picture in pictures])
        print(
            f"{size // factor:>6} codes: {mine[0]:.2f} dB, {mine[1]:.2f} bits ({before[1] - mine[1]:.2f} fewer); "
            f"encoded again {again[0]:.2f} dB, {again[1]:.2f} bits: {again[0] - mine[0]:+.2f} dB"
        )


if __name__ == "__main__":
    main()
