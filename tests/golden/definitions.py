"""The golden datasets: what each shows of the format, and how its ids and models are drawn from a seed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "codecs"))

from blocks import random_model

from tokenshard.codecs.context import ContextCodec
from tokenshard.codecs.fit import Earlier
from tokenshard.codecs.grouped import joined_grids


@dataclass(frozen=True)
class Level:
    """How one level is drawn and stored."""

    alphabet: int
    codec: str = "pack"
    contexts: bool = False
    """whether the model has contexts; an arbitrary one with all that the format allows where ``arbitrary``"""
    arbitrary: bool = False
    group: int = 1
    earlier: bool = False
    noise: int = 0
    """ids of 100 that are drawn anew"""


@dataclass(frozen=True)
class Golden:
    """One golden dataset."""

    name: str
    levels: tuple[Level, ...]
    grids: Callable[[np.random.Generator, int], np.ndarray]
    """token grids [n, rank]"""
    shards: tuple[int, ...] = (100,)
    """rows of each shard"""
    versions: tuple[int, ...] = ()
    """shards up to which each version goes; empty: one version with all of them"""
    extents: tuple[str, ...] = ()
    rejects: int = 0
    many_types: bool = False
    remap: bool = False
    grows: bool = False
    """later versions bring another model and one more column"""
    kind: str = "image"
    shards_in_json: int = 50_000


def fixed(*dims: int) -> Callable[[np.random.Generator, int], np.ndarray]:
    return lambda rng, count: np.tile(np.array(dims, np.int32), (count, 1))


def ragged(*most: int) -> Callable[[np.random.Generator, int], np.ndarray]:
    """Sides from 0 up; one grid in eight is empty."""
    return lambda rng, count: np.stack([rng.integers(0, side + 1, count) for side in most], axis=1).astype(np.int32)


IMAGE = ("height", "width")
VOLUME = ("frames", *IMAGE)
SETS = (
    Golden("pack", (Level(1000),), fixed(4, 6), extents=IMAGE, many_types=True),
    Golden("zstd", (Level(300, "zstd"),), ragged(7, 9), extents=IMAGE),
    Golden("context-order0", (Level(1024, "context"),), fixed(6, 6), extents=IMAGE),
    Golden("context-grid", (Level(64, "context", contexts=True),), fixed(9, 8), extents=IMAGE),
    Golden("context-ragged", (Level(1024, "context", contexts=True),), ragged(9, 12), extents=IMAGE),
    Golden("context-arbitrary", (Level(150, "context", arbitrary=True),), ragged(3, 4, 5), (40,), extents=VOLUME),
    Golden("context-video", (Level(50, "context", contexts=True),), fixed(3, 5, 6), kind="video"),
    Golden("context-sequence", (Level(40, "context", contexts=True),), ragged(90), kind="document"),
    Golden("grouped", (Level(32, "context", contexts=True, group=16),), fixed(5, 5), (230,), extents=IMAGE),
    Golden("grouped-ragged", (Level(32, "context", contexts=True, group=16),), ragged(6, 7), (230,), extents=IMAGE),
    Golden("levels", (Level(256), Level(17, "zstd"), Level(999, "context")), fixed(4, 5), extents=IMAGE),
    Golden(
        "levels-earlier",
        (
            Level(64, "context", contexts=True),
            Level(300, "context", earlier=True, noise=30),
            Level(90, "context", group=4, noise=30),
            Level(300, "context", earlier=True, group=16, noise=30),
        ),
        ragged(6, 6),
        extents=IMAGE,
    ),
    Golden("alphabet-1", (Level(1), Level(1, "context")), fixed(3, 3)),
    Golden("alphabet-2", (Level(2), Level(2, "context", contexts=True, group=16)), ragged(60)),
    Golden("alphabet-100000", (Level(100_000), Level(100_000, "zstd"), Level(100_000, "context")), fixed(10)),
    Golden("alphabet-65536", (Level(65_536), Level(65_536, "zstd"), Level(1 << 20)), fixed(7), (64,)),
    Golden("remap", (Level(40, "context"),), fixed(4, 4), remap=True),
    Golden("rejects", (Level(256),), fixed(2, 3), (20,), rejects=5),
    Golden("empty", (Level(256),), fixed(2, 3), (), rejects=3),
    Golden("appended", (Level(64, "context"),), ragged(5, 5), (30, 20, 70), (1, 3), IMAGE, grows=True),
    Golden("shard-list", (Level(256),), fixed(3, 3), (10, 20, 30), shards_in_json=0),
)


def ids_of_field(rng: np.random.Generator, grids: np.ndarray, alphabet: int) -> np.ndarray:
    """Flat ids in which neighbours are alike: windows of a smoothed random field, ids shuffled by a multiplication."""
    pieces = []
    for grid in grids.tolist():
        smooth = rng.integers(0, 256, grid)
        for axis in range(len(grid)):
            for _ in range(4):
                smooth = smooth + np.roll(smooth, 1, axis)
        reach = 256 << 4 * len(grid)
        value = np.clip(smooth * 3 - reach, 0, reach - 1)  # the middle third, where most values are
        pieces.append((value * alphabet // reach).reshape(-1))
    return np.concatenate([np.zeros(0, np.int64), *pieces]) * 7 % alphabet


def draw_levels(rng: np.random.Generator, grids: np.ndarray, levels: Sequence[Level]) -> list[np.ndarray]:
    """Flat stored ids of each level (uint16, or int32 for large alphabets)."""
    drawn: list[np.ndarray] = []
    for level in levels:
        ids = ids_of_field(rng, grids, level.alphabet)
        if level.noise and drawn:
            other = rng.integers(0, 100, len(ids)) < level.noise
            ids = np.where(other, rng.integers(0, level.alphabet, len(ids)), drawn[-1].astype(np.int64) * 3)
            ids %= level.alphabet
        drawn.append(ids.astype(np.uint16 if level.alphabet <= 1 << 16 else np.int32))
    return drawn


def fit_models(golden: Golden, seed: int) -> list[bytes | None]:
    """A model for each `context` level, fitted on other samples than those that are stored."""
    rng = np.random.default_rng([seed, 1])
    grids = golden.grids(rng, 3000)
    pilot = draw_levels(rng, grids, golden.levels)
    models: list[bytes | None] = []
    for number, (level, ids) in enumerate(zip(golden.levels, pilot, strict=True)):
        if level.codec != "context" or level.arbitrary:
            models.append(random_model(level.alphabet, 5).to_bytes() if level.arbitrary else None)
            continue
        earlier = Earlier(pilot[number - 1], golden.levels[number - 1].alphabet) if level.earlier else None
        auto = level.contexts or level.earlier
        joined = grids if level.group == 1 else joined_grids(grids, level.group)
        codec = ContextCodec.fit(ids, joined, level.alphabet, "auto" if auto else "none", earlier, expected_ids=300_000)
        assert codec.needs_earlier == level.earlier, golden.name
        assert level.alphabet == 1 or any(step.has_contexts for step in codec.model.steps) == auto, golden.name
        models.append(codec.model_bytes())
    return models
