"""Blocks of samples and context models to test codecs with: hypothesis strategies and seeded generators."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from tokenshard.codecs.base import id_dtype
from tokenshard.codecs.model import ContextModel, Neighbour, Pilot, Step

ALPHABETS = (1, 2, 3, 17, 32, 33, 255, 256, 1000, 1024, 1025, 8192, 32768, 32769, 65535, 65536, 100_000)


@st.composite
def blocks(draw: st.DrawFn, max_side: int = 9) -> tuple[np.ndarray, np.ndarray, int]:
    """(ids, grids, alphabet): any alphabet and skew, samples of 0 ids and more, equal or ragged, rank 1 to 3."""
    alphabet = draw(st.sampled_from(ALPHABETS) | st.integers(1, 65_536))
    rank, samples = draw(st.integers(1, 3)), draw(st.integers(0, 11))
    side = st.integers(0, max_side if rank > 1 else max_side**2)
    grid = st.tuples(*[side] * rank)
    rows = draw(st.lists(grid, min_size=samples, max_size=samples)) if draw(st.booleans()) else [draw(grid)] * samples
    grids = np.array(rows, np.int32).reshape(samples, rank)
    total = int(grids.prod(axis=1, dtype=np.int64).sum())
    return skewed_ids(total, alphabet, draw(st.floats(0, 30)), draw(st.integers(0, 2**32 - 1))), grids, alphabet


def skewed_ids(count: int, alphabet: int, skew: float, seed: int) -> np.ndarray:
    """``count`` ids: uniform for skew 0, nearly all equal for a large one; which ids are frequent is random."""
    rng = np.random.default_rng(seed)
    ranks = (rng.random(count) ** (1 + skew) * alphabet).astype(np.int64)
    return ((ranks * 7919 + seed) % alphabet).astype(id_dtype(alphabet))


def random_model(alphabet: int, seed: int, earlier_alphabet: int | None = None) -> ContextModel:
    """A model with contexts that means nothing but uses everything the format has: random tree, classes and tables.

    With an ``earlier_alphabet`` its second neighbour is the id of the level before.
    """
    rng = np.random.default_rng(seed)
    sizes = [1]
    while len(sizes) == 1 or sizes[-1] < alphabet:
        ceiling = min(alphabet, 32 * sizes[-1])
        sizes.append(int(rng.integers(min(ceiling, 4 * sizes[-1]), ceiling + 1)) if len(sizes) < 3 else ceiling)
    neighbours: list[Neighbour] = ["left", "up", "previous", "left2"]
    alphabets = alphabet, earlier_alphabet or alphabet
    steps = tuple(_random_step(rng, sizes[i], sizes[i + 1], alphabets) for i in range(len(sizes) - 1))
    leaves = rng.permutation(alphabet).astype(id_dtype(alphabet))
    first, second = (neighbours[place] for place in rng.choice(4, 2))
    pair: tuple[Neighbour, Neighbour] = (first, second if earlier_alphabet is None else "earlier")
    pilot = Pilot(samples=0, ids=0, bits_per_id=0.0)
    return ContextModel(alphabet, pair, steps, leaves, pilot, earlier_alphabet)


def _random_step(rng: np.random.Generator, nodes: int, below: int, alphabets: tuple[int, int]) -> Step:
    children = np.full(nodes, below // nodes)
    children[rng.permutation(nodes)[: below % nodes]] += 1
    tables = rng.integers(1, 4, nodes)
    maps, first, second = rng.integers(1, 4), rng.integers(1, 5), rng.integers(1, 5)
    clusters = (7, 5) if rng.random() < 0.5 else (0, 0)
    limits = [(of_map or classes, classes) for of_map, classes in zip(clusters, (first, second), strict=True)]
    ids = zip(alphabets, limits, strict=True)
    sides = [rng.integers(0, most, (maps, alphabet + 1)).astype(np.uint8) for alphabet, (most, _) in ids]
    sides += [rng.integers(0, most, (nodes, n)).astype(np.uint8) for n, (_, most) in zip(clusters, limits, strict=True)]
    pairs = rng.integers(0, tables[:, None, None], (nodes, first, second))
    frequencies = []
    for symbols in np.repeat(children, tables):
        cuts = np.sort(rng.choice(4095, symbols - 1, replace=False) + 1)
        frequencies.append(np.diff(cuts, prepend=0, append=4096))
    return Step(
        children.astype(np.uint8),
        tables.astype(np.uint16),
        rng.integers(0, maps, nodes).astype(np.uint16),
        *sides,
        pairs.astype(np.uint16),
        np.concatenate(frequencies).astype(np.uint16),
    )
