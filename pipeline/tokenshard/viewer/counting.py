"""How codes are used, counted in a sample of the dataset of bounded size: ranks, top samples, and neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tokenshard.report.code_use import CodeUse
from tokenshard.shards.schema import KEY
from tokenshard.viewer.opened import Missing, Opened

MOST_SAMPLES = 2_048
MOST_IDS = 1 << 20
"""Ids of all levels that are counted, about."""
GROUPS = 16
"""Row groups that they are taken from, evenly spread."""
TOP = 12
"""Samples, and neighbours, of a code that are named."""
DIRECTIONS = {"right": (-1, 1), "left": (-1, -1), "below": (-2, 1), "above": (-2, -1), "next": (-3, 1)}
"""Axis of the token grid, and step along it; `next` is the same place in the next frame."""


@dataclass(frozen=True)
class Counted:
    """Ids of some samples."""

    numbers: Sequence[int]
    keys: Sequence[str]
    codes: Sequence[NDArray[Any]]
    """[levels, *grid] of each"""
    alphabets: tuple[int, ...]
    total: int
    """samples of the dataset"""

    @classmethod
    def of(cls, opened: Opened) -> Counted:
        """Row groups, and rows of them, spread evenly over the dataset."""
        dataset = opened.dataset
        alphabets = tuple(level.alphabet for level in dataset.manifest.code.levels)
        numbers: list[int] = []
        keys: list[str] = []
        codes: list[NDArray[Any]] = []
        groups = np.unique(np.linspace(0, max(0, dataset.num_row_groups - 1), GROUPS).round().astype(int))
        groups = groups[: dataset.num_row_groups]
        ids = 0
        for place, group in enumerate(groups.tolist()):
            start, end = (int(edge) for edge in dataset.group_starts[group : group + 2])
            each = max(1, dataset.manifest.totals.ids // max(1, dataset.manifest.totals.samples))
            room = min((MOST_SAMPLES - len(numbers)), (MOST_IDS - ids) // each) // (len(groups) - place)
            count = min(end - start, max(1, room))
            rows = np.unique(np.linspace(0, end - start - 1, count).round().astype(np.int64))
            numbers += (start + rows).tolist()
            keys += dataset.group_table(group, [KEY])[KEY].take(pa.array(rows)).to_pylist()
            found = [np.asarray(sample) for sample in dataset.codes(start + rows)]
            found = [sample[None] if len(alphabets) == 1 else sample for sample in found]
            codes += found
            ids += sum(sample.size for sample in found)
        return cls(numbers, keys, codes, tuple(_tokenizer_alphabets(opened, alphabets)), len(dataset))

    @cached_property
    def uses(self) -> tuple[CodeUse, ...]:
        """Use of the codes of each level, with the samples in which each occurs most."""
        return tuple(
            CodeUse.of([(key, codes[level]) for key, codes in zip(self.keys, self.codes, strict=True)], alphabet, TOP)
            for level, alphabet in enumerate(self.alphabets)
        )

    @cached_property
    def ranks(self) -> tuple[NDArray[np.int64], ...]:
        """Of the codes of each level: 0 is the most frequent; equal ones by their numbers."""
        found = []
        for use in self.uses:
            rank = np.empty(len(use.counts), np.int64)
            rank[np.argsort(-use.counts, kind="stable")] = np.arange(len(use.counts))
            found.append(rank)
        return tuple(found)

    @cached_property
    def number_of(self) -> dict[str, int]:
        """Number of each counted sample by its key."""
        return dict(zip(self.keys, self.numbers, strict=True))

    def of_whom(self) -> dict[str, int]:
        """What was counted, for the page to say so."""
        return {"samples": len(self.numbers), "of": self.total, "ids": sum(codes.size for codes in self.codes)}

    def level(self, level: int) -> CodeUse:
        """Raises Missing where there is no such level."""
        if not 0 <= level < len(self.alphabets):
            raise Missing(f"no level {level}; the ids have {len(self.alphabets)}")
        return self.uses[level]

    def neighbours(self, level: int, code: int) -> dict[str, list[dict[str, float]]]:
        """The codes that stand beside a code most often, by direction: `code`, `times`, and `lift`.

        Lift is how many times more often that is than if neighbours were independent of each other.
        """
        use = self.level(level)
        share = use.counts / max(1, int(use.counts.sum()))
        found = {}
        rank = self.codes[0].ndim - 1 if len(self.codes) else 0
        for name, (axis, step) in DIRECTIONS.items():
            if -axis > rank:
                continue
            counts = np.zeros(len(use.counts), np.int64)
            for codes in self.codes:
                ids = np.moveaxis(codes[level], axis, 0)
                here, there = (ids[:-1], ids[1:]) if step > 0 else (ids[1:], ids[:-1])
                counts += np.bincount(there[here == code], minlength=len(counts))
            pairs = int(counts.sum())
            order = np.argsort(-counts, kind="stable")[:TOP]
            found[name] = [
                {"code": int(other), "times": int(counts[other]), "lift": float(counts[other] / pairs / share[other])}
                for other in order[counts[order] > 0]
            ]
        return found


def counted(opened: Opened) -> Counted:
    """The counts of a dataset; made once."""
    return opened.part(Counted.of)


def _tokenizer_alphabets(opened: Opened, stored: Sequence[int]) -> list[int]:
    """Codes of each level of the tokenizer: stored ids may be fewer, numbered afresh."""
    levels = opened.dataset.manifest.code.levels
    described = opened.described.levels
    return [
        described[place] if level.remap is not None and place < len(described) else alphabet
        for place, (level, alphabet) in enumerate(zip(levels, stored, strict=True))
    ]
