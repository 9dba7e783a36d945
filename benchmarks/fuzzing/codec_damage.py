"""Damaged streams and models, as a codec gets them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import numpy as np
import zstandard

from fuzzing.guarded import guarded
from fuzzing.mutated import change_value, mutated
from fuzzing.outcome import INSIDE, REFUSED, SAME, Violation, unclear
from tokenshard.codecs.base import Codec, Ids, id_dtype, sample_sizes
from tokenshard.codecs.choose import load_codec
from tokenshard.errors import FormatError, InputError
from tokenshard.shards.dataset import Dataset, read_model
from tokenshard.shards.reader import RowGroup
from tokenshard.spec.codec import CodecSpec

MOST_IDS = 1 << 22
"""Ids of a block; grids that ask for more are damaged, as a reader finds from the manifest."""


@dataclass(frozen=True)
class Block:
    """The streams of one level of a row group, as a codec gets them."""

    codec: Codec
    data: np.ndarray
    lengths: np.ndarray
    grids: np.ndarray
    earlier: Ids | None
    model: bytes | None
    spec: CodecSpec


def blocks_of(ds: Dataset, group: RowGroup) -> list[Block]:
    """One block a level of a row group."""
    levels = group.decode()
    blocks = []
    for number, (spec, codec) in enumerate(zip(group.specs, group.codecs, strict=True)):
        lengths = group.lengths[number]
        if lengths is None:  # ids in lists: as their bytes
            data, lengths = codec.encode(levels[number], group.grids)
        else:
            data = group.streams[number]
        earlier = levels[number - 1] if codec.needs_earlier else None
        model = read_model(ds.store, ds.manifest, spec.model) if spec.model else None
        blocks.append(Block(codec, data, lengths, group.grids, earlier, model, spec))
    return blocks


def damaged_stream(rng: np.random.Generator, block: Block) -> str:
    """Decodes damaged streams, or streams under damaged lengths or grids, into arrays that end at a forbidden page."""
    data, lengths, grids = block.data.tobytes(), block.lengths.copy(), block.grids
    way = rng.integers(5)
    if way == 0 and len(lengths):
        row = rng.integers(len(lengths))
        lengths[row] = rng.choice([0, 1, 2, 3, 4, -1, int(lengths[row]) + 2, 2**31 - 1])
    elif way == 1:
        grids = grids.copy()
        grids[rng.integers(len(grids))] = rng.choice([0, 1, 2, 5, 17, 300, -1, 2**31 - 1], grids.shape[1])
    elif way == 2:
        data, lengths = _resized_stream(rng, data, lengths)
    else:
        data = mutated(data, rng, keep_length=True)
    size = int(sample_sizes(grids).sum())
    if size > MOST_IDS:
        raise FormatError(f"{size} ids in one block")
    earlier = block.earlier
    if earlier is not None and len(earlier) != size:
        earlier = np.resize(earlier, size)
    out = guarded(np.zeros(size, id_dtype(block.codec.alphabet)))
    ids = block.codec.decode(guarded(np.frombuffer(data, np.uint8)), lengths, grids, out, earlier)
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < block.codec.alphabet:
        raise Violation("an id outside the alphabet")
    intact = data == block.data.tobytes() and np.array_equal(lengths, block.lengths) and grids is block.grids
    return SAME if intact else INSIDE


def _resized_stream(rng: np.random.Generator, data: bytes, lengths: np.ndarray) -> tuple[bytes, np.ndarray]:
    """A stream shortened or made longer, with its length."""
    if not len(data):
        return data, lengths
    row = int(rng.choice(np.flatnonzero(lengths)))
    start = int(lengths[:row].sum())
    stream = mutated(data[start : start + int(lengths[row])], rng)
    changed = lengths.copy()
    changed[row] = len(stream)
    return data[:start] + stream + data[start + int(lengths[row]) :], changed


def damaged_model(rng: np.random.Generator, block: Block) -> str:
    """Reads a damaged but signed model file; where it is accepted, decodes the streams, and noise, with it."""
    model = block.model
    assert model is not None
    end = 16 + int.from_bytes(model[12:16], "little")
    header, arrays = model[16:end], zstandard.decompress(model[end:-32])
    way = rng.integers(6)
    if way <= 2:
        arrays = mutated(arrays, rng, keep_length=way > 0)
    elif way == 3:
        header = mutated(header, rng)
    else:
        document = json.loads(header)
        change_value(rng, document)
        header = json.dumps(document).encode()
    frame = zstandard.compress(arrays, 1) if rng.random() < 0.95 else mutated(model[end:-32], rng)
    body = model[:12] + len(header).to_bytes(4, "little") + header + frame
    signed = body + hashlib.sha256(body).digest()
    spec = block.spec.model_copy(update={"model": hashlib.sha256(signed).hexdigest()})
    codec = load_codec(spec, signed)
    noise = rng.integers(0, 256, len(block.data), np.uint8)
    refused = 0
    for data in (block.data, noise):
        out = guarded(np.zeros(int(sample_sizes(block.grids).sum()), id_dtype(codec.alphabet)))
        try:
            ids = codec.decode(guarded(data), block.lengths, block.grids, out, block.earlier)
        except FormatError as error:
            if problem := unclear(error):
                raise Violation(problem) from error
            refused += 1
            continue
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < codec.alphabet:
            raise Violation("an id outside the alphabet")
    round_trip(rng, codec, block)
    return REFUSED if refused == 2 else INSIDE


def round_trip(rng: np.random.Generator, codec: Codec, block: Block) -> None:
    """A model that was accepted codes any ids, and they come back."""
    total = int(sample_sizes(block.grids).sum())
    ids = rng.integers(0, codec.alphabet, total).astype(id_dtype(codec.alphabet))
    try:
        data, lengths = codec.encode(ids, block.grids, block.earlier)
    except InputError:
        return  # the level before is outside the alphabet that the model claims for it
    if not np.array_equal(codec.decode(data, lengths, block.grids, earlier=block.earlier), ids):
        raise Violation("a model that was accepted does not give back what it coded")
