"""What codecs and shards promise apart from bits: known sources, choice, overhead, threads, start, fitting time."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from coding.measure import cpu_seconds
from coding.rivals import DATASET_IDS
from coding.tokens import Block, Images, encoded, encoder_of
from tokenshard.codecs.base import Grids, Ids
from tokenshard.codecs.choose import choose_codec, load_codec
from tokenshard.codecs.context import ContextCodec
from tokenshard.codecs.pack import PackCodec
from tokenshard.shards.reader import ShardReader
from tokenshard.shards.schema import CodeColumns
from tokenshard.shards.writer import ShardWriter, TokenBatch
from tokenshard.spec.codec import CodecSpec
from tokenshard.spec.manifest import TokenizerEntry
from tokenshard.store import Store
from tokenshard.tokenizers.patch import PatchTokenizer

SAMPLE_BITS = 24
"""What the state of a stream costs on average."""

TEXT_BYTES = 24 << 20
TEXT_SAMPLE = 1024
ROWS = 8192


@dataclass(frozen=True)
class Check:
    """One promise: what was measured, and the bound, if there is one."""

    what: str
    value: float | str
    unit: str = ""
    target: str = ""


def markov_field(samples: int, k: int, side: int, seed: int) -> tuple[NDArray[np.uint16], float]:
    """(ids [samples, side, side], bits an id): an id follows from left (p 0.45) or from up (0.35), else is noise."""
    rng = np.random.default_rng(seed)
    of_left, of_up = rng.permutation(k + 1) % k, rng.permutation(k + 1) % k
    noise = rng.dirichlet(np.full(k, 0.5))
    ids, bits = np.full((samples, side + 1, side + 1), k), 0.0
    for row in range(1, side + 1):
        for column in range(1, side + 1):
            a, b = of_left[ids[:, row, column - 1]], of_up[ids[:, row - 1, column]]
            source = rng.random(samples)
            now = np.where(source < 0.45, a, np.where(source < 0.8, b, rng.choice(k, samples, p=noise)))
            bits -= np.log2(0.45 * (now == a) + 0.35 * (now == b) + 0.2 * noise[now]).sum()
            ids[:, row, column] = now
    return ids[:, 1:, 1:].astype(np.uint16), bits / (samples * side * side)


def known_source() -> Iterator[Check]:
    """A Markov field of 64 ids with known conditional entropy, 4.2 million ids to fit on."""
    field, rate = markov_field(5120, 64, 32, seed=1)
    grids = np.full((1024, 2), 32, np.int32)
    fitted, rest = field[:4096].reshape(-1), field[4096:].reshape(-1)
    codec = ContextCodec.fit(fitted, np.repeat(grids, 4, axis=0), 64, expected_ids=DATASET_IDS)
    bits = 8 * len(codec.encode(rest, grids)[0]) / len(rest) - SAMPLE_BITS / 1024
    shares = np.bincount(rest, minlength=64) / len(rest)
    order0 = float(-(shares * np.log2(shares)).sum())
    yield Check(
        "known source: bits less 24 a sample, to its conditional entropy", round(bits / rate, 4), "x", "<= 1.02"
    )
    yield Check("known source: bits to its order-0 entropy", round(bits / order0, 3), "x", "<= 0.7")


def choice(photos: Block, k: int) -> Iterator[Check]:
    """What the pilot takes for uniform ids, text and photographs, and what that costs on data it has not seen."""
    rng = np.random.default_rng(0)
    uniform = rng.integers(0, 1024, 2000 * 1024).astype(np.uint16)
    yield from _chosen("uniform ids", uniform, np.full((2000, 2), 32, np.int32), 1024, "pack")
    yield from _chosen("photographs", photos.levels[0], photos.grids, k, "context")
    text, words = text_ids()
    yield from _chosen("text (BPE)", text, np.full((len(text) // TEXT_SAMPLE, 1), TEXT_SAMPLE, np.int32), words, "zstd")


def _chosen(name: str, ids: Ids, grids: Grids, k: int, wanted: str) -> Iterator[Check]:
    """The first half of the samples is the pilot, the rest is measured with every codec the pilot fitted."""
    half = len(grids) // 2
    cut = int(grids[:half].prod(axis=1, dtype=np.int64).sum())
    every = {
        want: choose_codec(ids[:cut], grids[:half], k, want, expected_ids=DATASET_IDS)
        for want in ("auto", "pack", "zstd", "context")
    }
    costs = {}
    for want, chosen in every.items():
        codec, rest = chosen.codec, ids[cut:]
        data = codec.encode(rest, grids[half:])[0]
        listed = getattr(codec, "parquet_bytes", None)
        size = listed(rest) if listed else len(data)
        costs[want] = 8 * size / len(rest) + 8 * len(codec.model_bytes() or b"") / DATASET_IDS
    yield Check(f"pilot: {name}", every["auto"].codec.name, "", wanted)
    yield Check(
        f"pilot: {name}, to the best on unseen ids", round(costs["auto"] / min(costs.values()), 3), "x", "<= 1.03"
    )


def text_ids() -> tuple[NDArray[np.uint16], int]:
    """BPE ids of the Python sources of this interpreter and its packages, and the size of the vocabulary."""
    from tokenizers import ByteLevelBPETokenizer

    files, size = [], 0
    for folder in (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")):
        for file in sorted(Path(folder).rglob("*.py")):
            files.append(file.read_text(errors="replace"))
            size += len(files[-1])
            if size > TEXT_BYTES:
                break
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(files[::8], vocab_size=32_768, show_progress=False)
    order = np.random.default_rng(0).permutation(len(files))
    ids = np.concatenate([np.asarray(tokenizer.encode(files[file]).ids, np.uint16) for file in order])
    return ids[: len(ids) // TEXT_SAMPLE * TEXT_SAMPLE], tokenizer.get_vocab_size()


def shard(codec: ContextCodec, block: Block, scratch: Path) -> Iterator[Check]:
    """A shard of real streams: bytes that are no streams, and Parquet to ids with every checksum verified."""
    rows = min(ROWS, len(block.grids) * 20)
    same = np.flatnonzero((block.grids == block.grids[0]).all(axis=1))
    size = int(block.grids[0].prod())
    first = np.concatenate([[0], np.cumsum(block.grids.prod(axis=1, dtype=np.int64))])
    samples = np.stack([block.levels[0][first[i] : first[i] + size] for i in same])
    ids = samples[np.arange(rows) % len(samples)].reshape(-1)
    model = codec.model_bytes()
    name = hashlib.sha256(model).hexdigest()
    spec = CodecSpec(column="codes", codec="context", alphabet=codec.alphabet, model=name)
    columns = CodeColumns(codes=(spec,), grid=(None, None), extents=("height", "width"), downsample=(8, 8))
    batch = TokenBatch(
        keys=[f"train/{number:08d}.jpg" for number in range(rows)],
        sizes=np.repeat(8 * block.grids[:1], rows, axis=0),
        ids=(ids,),
        raw_bytes=0,
        columns=pa.table({"label": np.random.default_rng(0).integers(0, 1000, rows)}),
    )
    entry = TokenizerEntry(fingerprint="0" * 16, numerics="integer")
    stream_bytes = len(codec.encode(ids, np.repeat(block.grids[:1], rows, axis=0))[0])
    target = stream_bytes * 1024 // rows  # of which row groups of 1,024 rows come
    path = scratch / "shard.parquet"
    with ShardWriter(path, "data/shard.parquet", columns, [codec], entry, batch.columns.schema, target) as writer:
        writer.append(batch)
        written = writer.close()
    (scratch / "data").mkdir()
    path.rename(scratch / "data" / "shard.parquet")
    (scratch / "model.tsm").write_bytes(model)
    (scratch / "entry.json").write_text(written.model_dump_json())
    reader = ShardReader(Store(scratch), written, lambda spec: load_codec(spec, model))
    chunks = [reader.metadata.row_group(g).column(c) for g in range(len(written.row_groups)) for c in (0, 6)]
    users = sum(chunk.total_compressed_size for chunk in chunks)
    overhead = (written.bytes - stream_bytes - users) / rows
    groups = len(written.row_groups)
    layout = f"{groups} x {written.row_groups[0].rows} rows"
    yield Check(f"shard of {layout}: overhead a sample", round(overhead, 2), "B", "<= 4.5")
    yield Check("shard: footer a row group", round(written.footer.length / groups), "B", "<= 700")

    def read() -> None:
        for group in range(groups):
            (level,) = reader.read_group(group).decode()
            level.reshape(-1, size)

    rate = len(ids) / 1e6 / cpu_seconds(read)
    yield Check("shard: Parquet to [B, T], checksums verified", round(rate, 1), "M/s", ">= 35")
    yield Check("second process: start to first decoded batch", round(_second_process(scratch), 2), "s", "<= 2")


FIRST_BATCH = """
import sys
from pathlib import Path
from tokenshard.codecs.choose import load_codec
from tokenshard.shards.reader import ShardReader
from tokenshard.spec.manifest import ShardEntry
from tokenshard.store import Store
folder = Path(sys.argv[1])
entry = ShardEntry.model_validate_json((folder / "entry.json").read_text())
model = (folder / "model.tsm").read_bytes()
reader = ShardReader(Store(folder), entry, lambda spec: load_codec(spec, model))
print(reader.read_group(0).decode()[0].size)
"""


def _second_process(folder: Path) -> float:
    """Wall seconds; the least of three, as other work on the machine only adds to it."""
    times = []
    for _ in range(4):  # the first one fills caches
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", FIRST_BATCH, str(folder)], check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def threads(codec: ContextCodec, block: Block) -> Iterator[Check]:
    """Two threads decode twice as much in nearly the same time, where the second core is idle."""
    ids, grids = block.levels[0], block.grids
    data, lengths = codec.encode(ids, grids)
    rounds = 1 + 20_000_000 // len(ids)

    def work(_: int) -> None:
        out = np.empty_like(ids)
        for _ in range(rounds):
            codec.decode(data, lengths, grids, out)

    def seconds(count: int) -> float:
        start = time.perf_counter()
        with ThreadPoolExecutor(count) as pool:
            list(pool.map(work, range(count)))
        return time.perf_counter() - start

    work(0)
    gains = [2 * seconds(1) / seconds(2) for _ in range(5)]
    load = f", load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    yield Check(f"two threads to one, best of five{load}", round(max(gains), 2), "x", ">= 1.6")


def speed(codec: ContextCodec | PackCodec, name: str, block: Block, targets: tuple[str, str]) -> Iterator[Check]:
    ids, grids = block.levels[0], block.grids
    data, lengths = codec.encode(ids, grids)
    out = np.empty_like(ids)
    decode = len(ids) / 1e6 / cpu_seconds(lambda: codec.decode(data, lengths, grids, out))
    yield Check(f"{name}: decode", round(decode, 1), "M/s", targets[0])
    if targets[1]:
        encode = len(ids) / 1e6 / cpu_seconds(lambda: codec.encode(ids, grids))
        yield Check(f"{name}: encode", round(encode, 1), "M/s", targets[1])


def fit_time(images: Images, quick: bool) -> Iterator[Check]:
    """CPU seconds of fitting to ten million ids (every image also shifted by half a patch)."""
    tokenizer = PatchTokenizer.fit(images, 0, patch=(4, 4), k=1024)
    shifted = [image[2:-2, 2:-2] for image in images]
    block = encoded(encoder_of(tokenizer), [*images, *shifted])
    ends = np.cumsum(block.grids.prod(axis=1, dtype=np.int64))
    samples = int(np.searchsorted(ends, 10**6 if quick else 10**7, "right"))
    ids = block.levels[0][: ends[samples - 1]]
    start = time.process_time()
    ContextCodec.fit(ids, block.grids[:samples], 1024, expected_ids=DATASET_IDS)
    seconds = time.process_time() - start
    target = "<= 30" if len(ids) > 9_000_000 else ""
    yield Check(f"fitting K = 1024 to {len(ids) / 1e6:.1f} million ids, CPU", round(seconds, 1), "s", target)
