"""Every way of storing ids that the benchmark compares, each as a pair of functions over the same block.

`general` ones know nothing of grids and are what people use today; `order-0` coders have the frequencies of single ids;
`own` are the codecs of this package. Tables (dictionaries, frequencies, models) come from ids that are not measured.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from numpy.typing import NDArray

from coding.tokens import Block, TokenSet
from tokenshard.codecs.base import Ids, sample_sizes
from tokenshard.codecs.context import ContextCodec
from tokenshard.codecs.fit import Earlier
from tokenshard.codecs.pack import PackCodec

Kind = Literal["plain", "general", "order-0", "own"]
Fitted = tuple[list[PackCodec | ContextCodec], int]

DATASET_IDS = 10**8
"""Ids of the dataset that models are sized for."""

_ESCAPE = 255
_DICTIONARY_BYTES = 110 << 10


@dataclass(frozen=True)
class Rival:
    """``encode()`` gives a coded block, ``decode`` its ids (flat, all levels), ``size`` its bytes without tables."""

    name: str
    kind: Kind
    encode: Callable[[], Any]
    decode: Callable[[Any], NDArray[Any]]
    size: Callable[[Any], int] = len
    table_bytes: int = 0


def rivals(tokens: TokenSet, block: Block, own: dict[str, Fitted]) -> Iterator[Rival]:
    """All rivals for a block of a set; ``own``: the package's codecs from :func:`fit_own`."""
    flat = np.concatenate(block.levels)
    yield Rival("raw u16", "plain", flat.tobytes, partial(np.frombuffer, dtype=np.uint16))
    for name, (codecs, table_bytes) in own.items():
        kind: Kind = "plain" if name == "pack" else "own"
        encode, decode = partial(_encode_own, codecs, block), partial(_decode_own, codecs, block)
        yield Rival(name, kind, encode, decode, _own_bytes, table_bytes)
    for level in (1, 3, 9, 19):
        yield _zstd(f"zstd {level}", flat, level)
    if len(block.levels) > 1:
        side_by_side = np.stack(block.levels, axis=1).reshape(-1)
        yield _zstd("zstd 19, levels in turn", side_by_side, 19)
    for level in (1, 3, 9, 19):
        yield _parquet(f"Parquet dictionary + zstd {level}", flat, pa.uint16(), level, use_dictionary=True)
    for level in (1, 3, 9, 19):
        split = {"use_dictionary": False, "use_byte_stream_split": True}
        yield _parquet(f"Parquet byte split + zstd {level}", flat, pa.binary(2), level, **split)
    yield from _dictionary_zstd(tokens, block)
    yield Rival("gzip 6", "general", partial(gzip.compress, flat.tobytes(), 6), _gunzipped)
    yield Rival("SeiT (bytes + escape, gzip 6)", "general", partial(_seit, flat), _of_seit)
    yield from _pcodec(flat)
    yield from _constriction(tokens, block)


# -- this package ----------------------------------------------------------------------------------------------------


def fit_own(tokens: TokenSet) -> dict[str, Fitted]:
    """`pack`, order 0 and `context`, one codec a level, with the bytes of their models."""
    fitted, k = tokens.fitted, tokens.alphabet
    packs: list[PackCodec | ContextCodec] = [PackCodec(k) for _ in fitted.levels]
    flat: list[PackCodec | ContextCodec] = []
    contexts: list[PackCodec | ContextCodec] = []
    for level, ids in enumerate(fitted.levels):
        earlier = Earlier(fitted.levels[level - 1], k) if level else None
        share = DATASET_IDS // len(fitted.levels)
        flat.append(ContextCodec.fit(ids, fitted.grids, k, contexts="none"))
        contexts.append(ContextCodec.fit(ids, fitted.grids, k, earlier=earlier, expected_ids=share))
    named = {"pack": packs, "order 0 (rANS)": flat, "context": contexts}
    return {name: (codecs, sum(len(c.model_bytes() or b"") for c in codecs)) for name, codecs in named.items()}


def _encode_own(codecs: list[PackCodec | ContextCodec], block: Block) -> list[tuple[Any, Any]]:
    coded, before = [], None
    for codec, ids in zip(codecs, block.levels, strict=True):
        coded.append(codec.encode(ids, block.grids, before if codec.needs_earlier else None))
        before = ids
    return coded


def _decode_own(codecs: list[PackCodec | ContextCodec], block: Block, coded: list[tuple[Any, Any]]) -> NDArray[Any]:
    size = len(block.levels[0])
    out = np.empty(size * len(codecs), np.uint16)
    before: Ids | None = None
    for level, (codec, (data, lengths)) in enumerate(zip(codecs, coded, strict=True)):
        own = out[level * size : (level + 1) * size]
        before = codec.decode(data, lengths, block.grids, own, before if codec.needs_earlier else None)
    return out


def _own_bytes(coded: list[tuple[Any, Any]]) -> int:
    return sum(len(data) for data, _ in coded)


# -- general-purpose compression -------------------------------------------------------------------------------------


def _zstd(name: str, flat: NDArray[Any], level: int) -> Rival:
    def decode(data: bytes) -> NDArray[Any]:
        return np.frombuffer(zstandard.ZstdDecompressor().decompress(data), np.uint16)

    return Rival(name, "general", lambda: zstandard.ZstdCompressor(level).compress(flat.tobytes()), decode)


def _parquet(name: str, flat: NDArray[Any], kind: pa.DataType, level: int, **options: Any) -> Rival:
    def encode() -> pa.Buffer:
        column = pa.Array.from_buffers(kind, len(flat), [None, pa.py_buffer(flat)])
        sink = pa.BufferOutputStream()
        table = pa.table({"codes": column}, schema=pa.schema([pa.field("codes", kind, nullable=False)]))
        pq.write_table(
            table, sink, compression="zstd", compression_level=level, row_group_size=len(flat),
            data_page_size=1 << 30, dictionary_pagesize_limit=1 << 24, write_statistics=False, **options,
        )  # fmt: skip
        return sink.getvalue()

    def decode(data: pa.Buffer) -> NDArray[Any]:
        column = pq.read_table(pa.BufferReader(data), use_threads=False)["codes"].combine_chunks()
        return np.frombuffer(column.buffers()[1], np.uint16, len(flat), 2 * column.offset)

    return Rival(name, "general", encode, decode, lambda data: data.size)


def _dictionary_zstd(tokens: TokenSet, block: Block) -> Iterator[Rival]:
    """One frame a sample, with a dictionary trained on the fitted samples; nothing where these are too few."""
    try:
        trained = zstandard.train_dictionary(_DICTIONARY_BYTES, [ids.tobytes() for ids in _samples(tokens.fitted)])
    except zstandard.ZstdError:
        return
    samples = [ids.tobytes() for ids in _samples(block)]
    for level in (3, 19):
        compressor = zstandard.ZstdCompressor(level, dict_data=trained)
        decompressor = zstandard.ZstdDecompressor(dict_data=trained)
        yield Rival(
            f"zstd {level} a sample + dictionary",
            "general",
            lambda compressor=compressor: [compressor.compress(sample) for sample in samples],
            lambda frames, decompressor=decompressor: np.frombuffer(
                b"".join(decompressor.decompress(frame) for frame in frames), np.uint16
            ),
            lambda frames: sum(map(len, frames)),
            len(trained.as_bytes()),
        )


def _samples(block: Block) -> list[Ids]:
    ends = np.cumsum(sample_sizes(block.grids))[:-1]
    return [part for level in block.levels for part in np.split(level, ends)]


def _gunzipped(data: bytes) -> NDArray[Any]:
    return np.frombuffer(gzip.decompress(data), np.uint16)


def _seit(flat: NDArray[Any]) -> bytes:
    """A byte an id, 255 standing for "255 more": SeiT's layout, with as many escapes as an id needs."""
    escapes, rest = np.divmod(flat, _ESCAPE)
    ends = np.cumsum(escapes.astype(np.int64) + 1)
    stored = np.full(int(ends[-1]), _ESCAPE, np.uint8)
    stored[ends - 1] = rest
    return gzip.compress(stored.tobytes(), 6)


def _of_seit(data: bytes) -> NDArray[Any]:
    stored = np.frombuffer(gzip.decompress(data), np.uint8)
    places = np.flatnonzero(stored != _ESCAPE)
    escapes = np.diff(places, prepend=-1) - 1
    return (escapes * _ESCAPE + stored[places]).astype(np.uint16)


def _pcodec(flat: NDArray[Any]) -> Iterator[Rival]:
    from pcodec import ChunkConfig, standalone

    config = ChunkConfig(compression_level=8)
    yield Rival("pcodec 8", "general", lambda: standalone.simple_compress(flat, config), standalone.simple_decompress)


# -- order-0 coders of constriction ----------------------------------------------------------------------------------


def _constriction(tokens: TokenSet, block: Block) -> Iterator[Rival]:
    """ANS and range coding with one table of frequencies a level, one coder a sample; tables as four bytes an id."""
    import constriction

    model, queue, stack = (getattr(constriction.stream, part) for part in ("model", "queue", "stack"))
    k = tokens.alphabet
    per_level = len(block.grids)
    samples = [sample.astype(np.int32) for sample in _samples(block)]
    tables = []
    for ids in tokens.fitted.levels:
        counts = np.bincount(ids, minlength=k) + 0.5
        tables.append(model.Categorical((counts / counts.sum()).astype(np.float32), perfect=False))
    of_sample = [tables[number // per_level] for number in range(len(samples))]

    def encode_ans() -> list[NDArray[np.uint32]]:
        streams = []
        for sample, table in zip(samples, of_sample, strict=True):
            coder = stack.AnsCoder()
            coder.encode_reverse(sample, table)
            streams.append(coder.get_compressed())
        return streams

    def encode_range() -> list[NDArray[np.uint32]]:
        streams = []
        for sample, table in zip(samples, of_sample, strict=True):
            coder = queue.RangeEncoder()
            coder.encode(sample, table)
            streams.append(coder.get_compressed())
        return streams

    def decode(decoder: type[Any], streams: list[NDArray[np.uint32]]) -> NDArray[Any]:
        each = zip(streams, of_sample, samples, strict=True)
        return np.concatenate([decoder(stream).decode(table, len(sample)) for stream, table, sample in each])

    def nbytes(streams: list[NDArray[np.uint32]]) -> int:
        return sum(stream.nbytes for stream in streams)

    size = 4 * k * len(tables)
    yield Rival("constriction ANS", "order-0", encode_ans, partial(decode, stack.AnsCoder), nbytes, size)
    yield Rival("constriction range", "order-0", encode_range, partial(decode, queue.RangeDecoder), nbytes, size)
