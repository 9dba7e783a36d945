"""How well the windowed shuffle mixes, by lanes and window: the table of `docs/loader.md`.

    python benchmarks/shuffle.py

4,000 row groups of 500 samples, whose labels are sorted (1,000 classes), in batches of 256; 200 batches all over the
epoch. *Spread*: standard deviation of the places a batch draws from, as a share of a uniform permutation's. *Labels*:
different labels in a batch, as a share of a uniform permutation's. *Held*: row groups in memory at a time.
"""

from __future__ import annotations

import numpy as np

from tokenshard.loading.order import EpochOrder, Shuffle

BLOCKS, ROWS, LABELS, BATCH, BATCHES = 4000, 500, 1000, 256, 200


def quality(shuffle: Shuffle | None) -> tuple[float, float]:
    """Spread and labels of a kind of shuffle."""
    total = BLOCKS * ROWS
    order = EpochOrder(np.full(BLOCKS, ROWS), 0, 0, shuffle)
    spreads, labels = [], []
    for first in np.linspace(0, total - BATCH, BATCHES).astype(int).tolist():
        block, row = order.locate(order.batch(first, BATCH))
        place = block * ROWS + row
        spreads.append(np.std(place) / (total / np.sqrt(12)))
        labels.append(len(np.unique(place * LABELS // total)))
    uniform = LABELS * (1 - (1 - 1 / LABELS) ** BATCH)
    return float(np.mean(spreads)), float(np.mean(labels)) / uniform


def main() -> None:
    print("| shuffle | held | spread | labels |\n|---|---|---|---|")
    print("| as stored | 1 | {:.3f} | {:.3f} |".format(*quality(None)))
    for lanes in (1, 4, 16, 64):
        for window in (1, 2, 8, 32):
            spread, labels = quality(Shuffle(lanes, window))
            print(f"| lanes {lanes}, window {window} | {lanes * window} | {spread:.3f} | {labels:.3f} |", flush=True)
    print("| uniform (one window) | {} | {:.3f} | {:.3f} |".format(BLOCKS, *quality(Shuffle(1, BLOCKS))))


if __name__ == "__main__":
    main()
