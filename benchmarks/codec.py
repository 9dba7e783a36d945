"""Bits, speed and memory of the codecs beside everything else that stores ids, on ids of real images.

    python benchmarks/codec.py [--images FIT MEASURE …] [--out FOLDER] [--quick]

Tokenizers and tables are fitted on the images below the first folder; ids of the others are measured, each folder by
itself. With one folder every fourth image is held out; without any, four photographs of scikit-image are used, which
shows that it runs but is too little to keep the bounds. Patch tokenizers have codebooks of 256, 1,024 and 8,192 codes;
the convolutional, residual and product ones are plain k-means made here. Models are sized for a dataset of 100 million
ids; their bytes, like those of all tables, are listed apart.

Speeds are million ids a second of CPU time of one thread, the median of five runs (of three that take over a second),
compilation excluded. The load of the machine is printed because it decides how much cache is left. The checks at the
end are the bounds that the format promises. FOLDER gets `codec.json` and `codec.png`.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from coding import checks
from coding.checks import Check
from coding.measure import Row, measured
from coding.plots import plot
from coding.rivals import Fitted, fit_own, rivals
from coding.tokens import Block, Images, TokenSet, load_images, sample_photos, token_sets

BOUNDS = {1024: ("<= 0.60", ">= 40", ">= 25"), 8192: ("<= 0.72", ">= 15", ">= 8")}
"""For patches of photographs, by size of the codebook: bits to H0, decoding and encoding speed."""


def images_of(folders: list[Path]) -> tuple[Images, dict[str, Images]]:
    """Images to fit on, and those to measure by name."""
    if len(folders) > 1:
        names = [folder.resolve().name for folder in folders[1:]]
        return load_images(folders[0]), {
            name: load_images(folder) for name, folder in zip(names, folders[1:], strict=True)
        }
    if folders:
        images = load_images(folders[0])
        return [image for n, image in enumerate(images) if n % 4], {"held out": images[::4]}
    train, held_out = sample_photos()
    return train, {"held out": held_out}


def compare(tokens: TokenSet, own: dict[str, Fitted]) -> Iterator[Row]:
    """Every rival on every block of a set; speeds on the first."""
    for number, (name, block) in enumerate(tokens.measured.items()):
        for rival in rivals(tokens, block, own):
            yield measured(tokens.name, name, block, rival, speed=number == 0)


def print_rows(rows: list[Row]) -> None:
    """The rows of one set on one folder, and what its best general-purpose rival is."""
    best = min((row for row in rows if row.kind == "general"), key=lambda row: row.bits)
    entropy = rows[0].bits / rows[0].of_entropy
    print(f"\n{rows[0].tokens}, {rows[0].ids}: {rows[0].num_ids} ids, H0 {entropy:.3f}; best rival {best.codec}")
    print(f"{'':32}{'bits/id':>9}{'x H0':>8}{'x best':>8}{'tables kB':>11}{'encode':>9}{'decode':>9}{'MiB':>7}")
    for row in rows:
        figures = zip((row.encode, row.decode, row.memory), (9, 9, 7), strict=True)
        timed = "".join(f"{'' if figure is None else f'{figure:.1f}':>{width}}" for figure, width in figures)
        print(
            f"{row.codec:32}{row.bits:9.3f}{row.of_entropy:8.3f}{row.bits / best.bits:8.3f}"
            f"{row.table_bytes / 1000:11.1f}{timed}",
            flush=True,
        )


def promised(tokens: TokenSet, rows: list[Row]) -> Iterator[Check]:
    """The bounds on bits and speed that one set has to keep."""
    best = min(row.bits for row in rows if row.kind == "general")
    (own,) = (row for row in rows if row.codec == "context")
    place = f"{tokens.name}, {own.ids}"
    patch = tokens.name.startswith("patch")
    of_entropy, decode, encode = BOUNDS.get(tokens.alphabet, ("", "", "")) if patch else ("", "", "")
    yield Check(f"{place}: bits to H0", round(own.of_entropy, 3), "x", of_entropy)
    yield Check(f"{place}: bits to the best rival", round(own.bits / best, 3), "x", "<= 0.80" if patch else "")
    if own.decode and own.encode and decode:
        (ans,) = (row for row in rows if row.codec == "constriction ANS")
        yield Check(f"{place}: decode", round(own.decode, 1), "M/s", decode)
        yield Check(f"{place}: decode to constriction", round(own.decode / (ans.decode or 1), 2), "x", ">= 1.2")
        yield Check(f"{place}: encode", round(own.encode, 1), "M/s", encode)


def kept(check: Check) -> bool:
    """Whether a measured value lies within its bound (text: is the one wanted)."""
    relation, _, bound = check.target.rpartition(" ")
    if not relation:
        return check.target in ("", check.value)
    return float(check.value) <= float(bound) if relation == "<=" else float(check.value) >= float(bound)


def more_checks(train: Images, by_name: dict[str, tuple[Block, dict[str, Fitted]]], quick: bool) -> Iterator[Check]:
    """What is measured apart from the table: on the ids of 8 x 8 patches with 1,024 codes."""
    block, own = by_name["patch 8x8 K=1024"]
    context, packed = own["context"][0][0], own["pack"][0][0]
    yield from checks.speed(packed, "pack", block, (">= 900", ""))
    with tempfile.TemporaryDirectory(prefix="tokenshard-") as scratch:
        yield from checks.shard(context, block, Path(scratch))
    yield from checks.threads(context, block)
    yield from checks.known_source()
    yield from checks.choice(block, 1024)
    yield from checks.fit_time(train, quick)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, nargs="+", default=[], metavar="FOLDER")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where codec.json and codec.png go")
    parser.add_argument("--quick", action="store_true", help="one tokenizer only: to see that it runs")
    options = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    train, measured_images = images_of(options.images)
    rows: list[Row] = []
    found: list[Check] = []
    kept_sets: dict[str, tuple[Block, dict[str, Fitted]]] = {}
    for tokens in token_sets(train, measured_images, options.quick):
        own = fit_own(tokens)
        part = list(compare(tokens, own))
        for name in tokens.measured:
            of_block = [row for row in part if row.ids == name]
            print_rows(of_block)
            found += promised(tokens, of_block)
        rows += part
        kept_sets[tokens.name] = next(iter(tokens.measured.values())), own
    found += more_checks(train, kept_sets, options.quick)
    print(f"\nload of the machine at the end: {os.getloadavg()[0]:.1f}")
    for check in found:
        verdict = "" if not check.target else "ok" if kept(check) else "MISSED"
        print(f"{check.what:72}{check.value:>10} {check.unit:4}{check.target:10}{verdict}")
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        result = {
            "load": os.getloadavg(),
            "cores": os.cpu_count(),
            "rows": [asdict(row) for row in rows],
            "checks": [{**asdict(check), "kept": kept(check)} for check in found],
        }
        (options.out / "codec.json").write_text(json.dumps(result, indent=1))
        plot(rows, options.out / "codec.png")


if __name__ == "__main__":
    main()
