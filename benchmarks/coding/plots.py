"""The two pictures of the benchmark: bits to the order-0 entropy of each set, and bits against decoding speed."""

from __future__ import annotations

from pathlib import Path

from coding.measure import Row

SHOWN = (
    "pack", "order 0 (rANS)", "context", "zstd 19", "Parquet dictionary + zstd 3", "SeiT (bytes + escape, gzip 6)",
    "pcodec 8", "constriction ANS",
)  # fmt: skip


def plot(rows: list[Row], path: Path) -> None:
    """Write a PNG with both pictures."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    sets = list(dict.fromkeys((row.tokens, row.ids) for row in rows))
    figure, (left, right) = plt.subplots(1, 2, figsize=(16, 0.45 * len(sets) + 3))
    height = 0.8 / len(SHOWN)
    for number, codec in enumerate(SHOWN):
        found = {(row.tokens, row.ids): row.of_entropy for row in rows if row.codec == codec}
        places = [place - 0.4 + number * height for place in range(len(sets))]
        left.barh(places, [found[key] for key in sets], height, label=codec)
    left.set_yticks(range(len(sets)), [f"{tokens}, {ids}" for tokens, ids in sets])
    left.invert_yaxis()
    left.axvline(1, color="black", linewidth=0.7)
    left.set_xlim(0, 1.8)
    left.set_xlabel("bits, × order-0 entropy (tables excluded)")
    left.legend(fontsize="small")
    timed = [row for row in rows if row.decode and row.codec in SHOWN and row.tokens == "patch 8x8 K=1024"]
    for row in timed:
        right.scatter(row.decode, row.bits, marker="*" if row.kind == "own" else "o")
        right.annotate(row.codec, (row.decode, row.bits), fontsize="small", xytext=(5, 3), textcoords="offset points")
    right.set_xscale("log")
    right.set_xlabel("decoding, million ids a second of CPU time")
    right.set_ylabel("bits an id")
    right.set_title("patch 8x8, K = 1024")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
