"""SeiT's files against token shards, on real ids: 391 codes, 32 x 32 tokens an image, as in the paper.

    python benchmarks/seit.py IMAGES [--json]

IMAGES is a folder of photographs. They are converted with a patch tokenizer of 391 codes (7 x 7 pixels at 224 x 224),
written as SeiT has them (gzip with byte escapes, index, labels), and those files are imported again with nothing else
beside them. Bytes: gzip blob, index and labels there; shards (footers, keys and labels included) and codec models here;
codebooks are left out on both sides. Exits with 1 where the shards are more than 0.75 of SeiT's files.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

from tokenshard.api import convert_images, open_dataset, run
from tokenshard.shards.export.registry import export
from tokenshard.spec.job import Import, build_job

LIMIT = 0.75
OURS_ALONE = ("tokenshard.json", "train.columns.parquet")
"""Files of the export that a set of SeiT does not have."""


def measure(images: Path, folder: Path) -> dict[str, float]:
    engine = {"kind": "local", "workers": 1}
    source = {"size": 224, "fit": "resize"}
    convert_images(images, folder / "tokens", "patch:7x7,k=391", source=source, engine=engine)
    tokens = open_dataset(folder / "tokens")
    export(tokens, folder / "seit", "seit")
    for name in OURS_ALONE:
        (folder / "seit" / name).unlink()
    job = {"source": {"path": str(folder / "seit"), "format": "seit"}, "output": str(folder / "back"), "engine": engine}
    run(build_job(Import, job))
    back = open_dataset(folder / "back")
    assert (np.asarray(back.codes(range(len(back)))) == np.asarray(tokens.codes(range(len(tokens))))).all()
    sizes = {path.name: path.stat().st_size for path in (folder / "seit").glob("train-*")}
    blob = sizes["train-token.data.bin.gz"]
    shards, models = back.manifest.totals.token_bytes, sum(back.manifest.models.values())
    ids = back.manifest.totals.ids
    raw = len(gzip.decompress((folder / "seit" / "train-token.data.bin.gz").read_bytes()))
    return {
        "images": len(back),
        "ids": ids,
        "escaped_bytes": raw,
        "gzip_bytes": blob,
        "seit_bytes": sum(sizes.values()),
        "shard_bytes": shards,
        "model_bytes": models,
        "gzip_bits_per_id": round(8 * blob / ids, 3),
        "bits_per_id": round(8 * (shards + models) / ids, 3),
        "ratio_to_gzip": round((shards + models) / blob, 4),
        "ratio_to_files": round((shards + models) / sum(sizes.values()), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options.images, Path(folder))
    if options.json:
        print(json.dumps({**found, "load": os.getloadavg()[0]}, indent=1))
    else:
        for name, value in found.items():
            print(f"{name:<17} {value:,}")
    sys.exit(0 if found["ratio_to_gzip"] <= LIMIT else 1)


if __name__ == "__main__":
    main()
