"""Lost ids filled from their neighbours, beside the mean code in their place: what a repaired photograph gains.

    python benchmarks/fill.py [--lost 0.05 0.2 0.4]

Three photographs of scikit-image; ids are lost at random, five times. Tokenizers: `patch` fitted to the three, with
squares of 4 and of 8 pixels, and `default`. PSNR in dB, of the reconstructions without loss, with the code nearest to
the mean of the known ids where ids were lost, and with the code nearest to the mean vector of the ids around.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import numpy as np
import skimage.data
from numpy.typing import NDArray

from tokenshard.report.quality import psnr
from tokenshard.tokenizers.fill import fill_lost
from tokenshard.tokenizers.folder import load_tokenizer
from tokenshard.tokenizers.packaged import saved_tokenizer
from tokenshard.tokenizers.patch import PatchTokenizer

REPEATS = 5


def tokenizers(photos: dict[str, NDArray[np.uint8]]) -> Iterator[tuple[str, Any]]:
    for side in (4, 8):
        name = f"patch:{side}x{side},k=256"
        yield name, PatchTokenizer.fit(list(photos.values()), 0, patch=(side, side), k=256)
    yield "default", load_tokenizer(saved_tokenizer("default"))


def qualities(tokenizer: Any, photo: NDArray[np.uint8], lost: float) -> Iterator[list[float]]:
    """PSNR without loss, with the mean code, filled; for each loss."""
    (codebook,) = tokenizer.codebooks()
    ids = tokenizer.encode(photo[None])[0, 0]
    rng = np.random.default_rng(0)
    for _ in range(REPEATS):
        known = rng.random(ids.shape) >= lost
        mean_code = np.square(codebook - codebook[ids[known]].mean(axis=0)).sum(axis=1).argmin()
        shown = (ids, np.where(known, ids, mean_code), fill_lost(ids, known, codebook))
        yield [psnr(photo, tokenizer.decode(own[None, None].astype(ids.dtype), photo.shape[:2])[0]) for own in shown]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lost", type=float, nargs="+", default=[0.05, 0.2, 0.4])
    options = parser.parse_args()
    photos = {name: getattr(skimage.data, name)() for name in ("coffee", "chelsea", "rocket")}
    for name, tokenizer in tokenizers(photos):
        for lost in options.lost:
            for title, photo in photos.items():
                found = np.array(list(qualities(tokenizer, photo, lost)))
                whole, mean_code, filled = found.mean(axis=0)
                spread = np.ptp(found[:, 2] - found[:, 1])
                print(
                    f"{name:16} {lost:4.0%} lost  {title:8} whole {whole:5.2f} dB  mean code {mean_code:5.2f}  "
                    f"filled {filled:5.2f}  gain {filled - mean_code:5.2f} (range {spread:.2f})",
                    flush=True,
                )


if __name__ == "__main__":
    main()
