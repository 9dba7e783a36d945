"""Order-0 codecs on one core: bits an id against the entropy, and CPU time against `constriction`.

    python benchmarks/codec_order0.py [--json]

Ids are drawn from a random skewed distribution, 1,024 to a sample. Times are process CPU time, median of five runs,
compilation excluded; the load of the machine is printed because it decides how much cache is left.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable

import numpy as np

from tokenshard.codecs.context import ContextCodec
from tokenshard.codecs.pack import PackCodec

IDS_A_SAMPLE = 1024
SAMPLES = 512
RUNS = 5


def cpu_seconds(action: Callable[[], object]) -> float:
    """Median CPU seconds of an action, after one run that does not count."""
    action()
    times = []
    for _ in range(RUNS):
        start = time.process_time()
        action()
        times.append(time.process_time() - start)
    return statistics.median(times)


def row(name: str, alphabet: int, ids: np.ndarray, size: int, encode: Callable, decode: Callable) -> dict:
    counts = np.unique_counts(ids).counts / ids.size
    return {
        "codec": name,
        "alphabet": alphabet,
        "entropy": round(float(-(counts * np.log2(counts)).sum()), 4),
        "bits_per_id": round(8 * size / ids.size, 4),
        "encode_mids_per_s": round(ids.size / cpu_seconds(encode) / 1e6, 1),
        "decode_mids_per_s": round(ids.size / cpu_seconds(decode) / 1e6, 1),
    }


def measure_own(codec: PackCodec | ContextCodec, ids: np.ndarray, grids: np.ndarray) -> dict:
    data, lengths = codec.encode(ids, grids)
    out = np.empty_like(ids)
    assert (codec.decode(data, lengths, grids, out) == ids).all()
    return row(
        codec.name,
        codec.alphabet,
        ids,
        len(data),
        lambda: codec.encode(ids, grids),
        lambda: codec.decode(data, lengths, grids, out),
    )


def measure_constriction(alphabet: int, ids: np.ndarray) -> dict:
    """Range ANS of `constriction` with one categorical model, one coder a sample."""
    import constriction

    Categorical, AnsCoder = constriction.stream.model.Categorical, constriction.stream.stack.AnsCoder

    counts = np.bincount(ids, minlength=alphabet) + 1e-3
    model = Categorical((counts / counts.sum()).astype(np.float32), perfect=False)
    samples = ids.reshape(SAMPLES, IDS_A_SAMPLE).astype(np.int32)

    def encode() -> list[np.ndarray]:
        streams = []
        for sample in samples:
            coder = AnsCoder()
            coder.encode_reverse(sample, model)
            streams.append(coder.get_compressed())
        return streams

    def decode(streams: list[np.ndarray]) -> np.ndarray:
        return np.stack([AnsCoder(stream).decode(model, IDS_A_SAMPLE) for stream in streams])

    streams = encode()
    assert (decode(streams) == samples).all()
    size = sum(stream.nbytes for stream in streams)
    return row("constriction", alphabet, ids, size, encode, lambda: decode(streams))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    as_json = parser.parse_args().json
    rng = np.random.default_rng(0)
    grids = np.full((SAMPLES, 2), 32, np.int32)
    results = []
    for alphabet in (256, 1024, 8192):
        ids = rng.choice(alphabet, SAMPLES * IDS_A_SAMPLE, p=rng.dirichlet(np.full(alphabet, 2.0))).astype(np.uint16)
        results.append(measure_own(PackCodec(alphabet), ids, grids))
        results.append(measure_own(ContextCodec.fit(ids, grids, alphabet), ids, grids))
        results.append(measure_constriction(alphabet, ids))
    if as_json:
        print(json.dumps({"load": os.getloadavg()[0], "results": results}, indent=1))
        return
    print(f"load {os.getloadavg()[0]:.1f}, {SAMPLES} samples of {IDS_A_SAMPLE} ids, Mid/s of CPU time")
    print(f"{'codec':14}{'K':>6}{'H0':>9}{'bits/id':>9}{'encode':>9}{'decode':>9}")
    for r in results:
        print(
            f"{r['codec']:14}{r['alphabet']:6}{r['entropy']:9.4f}{r['bits_per_id']:9.4f}"
            f"{r['encode_mids_per_s']:9.1f}{r['decode_mids_per_s']:9.1f}"
        )


if __name__ == "__main__":
    main()
