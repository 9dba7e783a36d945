"""The peer: the same decoding and encoding as a Ray Data pipeline, written with `write_parquet`.

It is the pipeline that suits Ray Data best: paths go in, and one actor does all of the work on a batch, so that no
pixels pass through the object store.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tokenshard.sources.images.decode import decode_image
from tokenshard.spec.images import ImageSourceSpec
from tokenshard.store import Store
from tokenshard.tokenizers.folder import load_tokenizer

BATCH = 32


class Encoder:
    """Paths -> keys and ids."""

    def __init__(self, output: str, tokenizer: str) -> None:
        self._tokenizer = load_tokenizer(Store(output), f"tokenizer/{tokenizer}")
        self._spec = ImageSourceSpec(path=".")

    def __call__(self, batch: dict[str, Any]) -> pa.Table:
        images = [decode_image(Path(path).read_bytes(), self._spec) for path in batch["item"]]
        if len({image.shape for image in images}) == 1:
            ids = [codes.ravel() for codes in self._tokenizer.encode(np.stack(images))]
        else:
            ids = [self._tokenizer.encode(image[None]).ravel() for image in images]
        return pa.table({"key": pa.array(list(batch["item"])), "codes": pa.array(ids, pa.list_(pa.uint16()))})


def run_peer(output: str, tokenizer: str, folder: str, workers: int, count: int) -> dict[str, Any]:
    """Convert the first ``count`` images of a folder."""
    import ray
    import ray.data

    ray.init(address="local", num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False
    paths = sorted(str(path) for path in Path(folder).iterdir())[:count]
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        ray.data.from_items(paths, override_num_blocks=max(workers, count // 256)).map_batches(
            Encoder,
            fn_constructor_args=(output, tokenizer),
            batch_size=BATCH,
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=1,
        ).write_parquet(scratch)
        written = sum(path.stat().st_size for path in Path(scratch).iterdir())
    return {"wall": time.perf_counter() - started, "rows": len(paths), "bytes": written}


if __name__ == "__main__":
    print(json.dumps(run_peer(**json.loads(sys.argv[2]))))
