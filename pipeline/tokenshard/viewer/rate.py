"""A sample at lower rates: with fewer levels, or fewer codes. What `transcode` would make of it, without pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenshard.errors import SpecError
from tokenshard.report.quality import psnr
from tokenshard.shards.once import OnceCache
from tokenshard.tokenizers.base import CodebookTokenizer, Tokenizer
from tokenshard.tokenizers.frames import clip_size
from tokenshard.tokenizers.reduced import ReducedTokenizer
from tokenshard.viewer.counting import counted
from tokenshard.viewer.opened import Opened
from tokenshard.viewer.pictures import Pixels, frames_of, picture_size

MOST_DISTANCES = 1 << 22
"""Codes times wanted codes, for which clusters are found while somebody waits."""
REDUCED_KEPT = 16
SEED = 0


@dataclass(frozen=True)
class Rate:
    """The first ``levels`` levels (0: all), with at most ``codes`` codes each (0: as many as there are)."""

    levels: int = 0
    codes: int = 0


@dataclass(frozen=True)
class Reduced:
    """A sample at a rate."""

    pixels: Pixels
    facts: dict[str, Any]


class Rates:
    """Rates of a dataset of pictures or clips. Codebooks are made smaller once for all samples."""

    def __init__(self, opened: Opened) -> None:
        """Raises SpecError where samples do not decode to pictures."""
        self._opened = opened
        if opened.kind == "grid" or not opened.decodes:
            raise SpecError(f"{opened.dataset.store.root}: its ids are no pictures; they have no rates to compare")
        self._reduced: Callable[[Rate], ReducedTokenizer] = OnceCache(self._reduce, REDUCED_KEPT)

    def choices(self) -> dict[str, Any]:
        """The rates that there are: `levels`, and the sizes that codebooks may be reduced to, falling."""
        alphabets = counted(self._opened).alphabets
        largest = max(alphabets)
        sizes = [1 << power for power in range((largest - 1).bit_length() - 1, 0, -1) if 1 << power < largest]
        return {
            "levels": len(alphabets),
            "codebook": largest,
            "sizes": [size for size in sizes if size * largest <= MOST_DISTANCES] if self._has_codebooks() else [],
            "counted": counted(self._opened).of_whom(),
        }

    def at(self, number: int, rate: Rate, frame: int = 0) -> Reduced:
        """A sample at a rate, with its bits and PSNR against the full rate. Raises SpecError for other rates."""
        opened = self._opened
        sample = opened.sample(number)
        codes, depth = sample["codes"], len(sample["codes"])
        levels = rate.levels or depth
        if not 1 <= levels <= depth:
            raise SpecError(f"{levels} levels; the ids have {depth}")
        kept, tokenizer, counts = codes[:levels], opened.tokenizer, [use.counts for use in counted(opened).uses]
        if rate.codes:
            reduced = self._reduced(Rate(levels, rate.codes))
            kept, tokenizer = reduced.derived(kept[None])[0], reduced
            counts = [
                np.bincount(members, count, len(vectors)).astype(np.int64)
                for members, count, vectors in zip(reduced.maps, counts, reduced.vectors, strict=False)
            ]
        full = _decoded(opened.tokenizer, codes, sample, frame)
        pixels = _decoded(tokenizer, kept, sample, frame)
        order0 = sum(_order0_bits(ids, count) for ids, count in zip(kept, counts, strict=False))
        places = int(np.prod(kept.shape[1:]))
        shown = pixels.shape[0] * pixels.shape[1] * (clip_size(sample)[0] if codes.ndim == 4 else 1)
        return Reduced(
            pixels,
            {
                "levels": levels,
                "codes": rate.codes or None,
                "bits": order0,
                "bits_per_pixel": order0 / shown,
                "fixed_bits": places * sum(max(1, len(count) - 1).bit_length() for count in counts[:levels]),
                "stored_bits": None if rate.codes else self._stored_bits(number, levels),
                "psnr": psnr(full, pixels),
                "psnr_original": self._against_original(sample, frame, pixels),
                "same": levels == depth and not rate.codes,
            },
        )

    def _against_original(self, sample: dict[str, Any], frame: int, pixels: Pixels) -> float | None:
        """PSNR in dB; None where there is no original of that size."""
        original = self._opened.original(sample["key"])
        if original is not None and original.ndim == 4:
            original = original[frame] if frame < len(original) else None
        return None if original is None or original.shape != pixels.shape else psnr(original, pixels)

    def _stored_bits(self, number: int, levels: int) -> int | None:
        """Bits of the streams of a sample; None where they are not separate."""
        dataset = self._opened.dataset
        group = int(np.searchsorted(dataset.group_starts, number, "right")) - 1
        found = dataset.read_group(group, levels)
        row = number - int(dataset.group_starts[group])
        lengths = [length[row] for length in found.lengths if length is not None and found.codecs[0].group == 1]
        return 8 * int(sum(lengths)) if len(lengths) == levels else None

    def _has_codebooks(self) -> bool:
        tokenizer = self._opened.tokenizer
        if not isinstance(tokenizer, CodebookTokenizer):
            return False
        try:
            return bool(tokenizer.codebooks())
        except SpecError:
            return False

    def _reduce(self, rate: Rate) -> ReducedTokenizer:
        allowed = self.choices()["sizes"]
        tokenizer = self._opened.tokenizer
        if rate.codes not in allowed or not isinstance(tokenizer, CodebookTokenizer):
            known = f"there are {', '.join(map(str, allowed))}" if allowed else "its codebook cannot be made smaller"
            raise SpecError(f"{rate.codes} codes: {known}")
        counts = [use.counts for use in counted(self._opened).uses[: rate.levels]]
        return ReducedTokenizer.of(tokenizer, counts, [rate.codes] * len(counts), SEED)


def rates(opened: Opened) -> Rates:
    """The rates of a dataset; raises SpecError where it has none."""
    return opened.part(Rates)


def _decoded(tokenizer: Tokenizer, codes: NDArray[Any], sample: dict[str, Any], frame: int) -> Pixels:
    if codes.ndim == 4:
        frames = frames_of(tokenizer, {**sample, "codes": codes}, frame)
        return np.asarray(frames[0])
    pixels: Pixels = tokenizer.decode(codes[None], picture_size(sample))[0]
    return pixels


def _order0_bits(ids: NDArray[Any], counts: NDArray[np.int64]) -> float:
    """Bits of ids by the shares that codes have in what was counted; each code counts once more than it occurred."""
    shares = (counts + 1) / (counts.sum() + len(counts))
    return float(-np.log2(shares[ids.ravel()]).sum())
