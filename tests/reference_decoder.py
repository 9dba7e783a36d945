"""A second implementation of the streams of all codecs and of `.tsm` files: schemas/shard-format-streams.md, no more.

Plain Python integers and lists, nothing shared with the package: if both agree, the specification says enough. Slow.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass
from itertools import accumulate, product
from math import prod

import zstandard


@dataclass
class Step:
    children: list[int]
    tables: list[int]
    map_of: list[int]
    class_maps: tuple[list[int], list[int]]
    clusters: tuple[int, int]
    refined: tuple[list[int], list[int]]
    classes: tuple[int, int]
    pairs: list[int]
    frequencies: list[int]

    def __post_init__(self) -> None:
        self.first_child = [0, *accumulate(self.children)]
        self._first = [0, *accumulate(c * t for c, t in zip(self.children, self.tables, strict=True))]
        assert self._first[-1] == len(self.frequencies)

    def frequencies_of(self, node: int, table: int) -> list[int]:
        assert table < self.tables[node]
        begin = self._first[node] + table * self.children[node]
        return self.frequencies[begin : begin + self.children[node]]


@dataclass
class Model:
    alphabet: int
    second_alphabet: int
    neighbours: list[str]
    steps: list[Step]
    leaves: list[int]


def read_model(data: bytes) -> Model:
    assert data[:8] == b"TSMODEL\0"
    assert hashlib.sha256(data[:-32]).digest() == data[-32:]
    version, length = struct.unpack("<II", data[8:16])
    assert version == 1
    header = json.loads(data[16 : 16 + length])
    payload = zstandard.ZstdDecompressor().decompress(data[16 + length : -32])
    at = 0

    def take(count: int, width: int) -> list[int]:
        nonlocal at
        planes = [payload[at + count * i : at + count * (i + 1)] for i in range(width)]
        at += count * width
        return [sum(plane[k] << 8 * i for i, plane in enumerate(planes)) for k in range(count)]

    alphabet, steps = header["alphabet"], []
    second_alphabet = header["earlier_alphabet"] or alphabet
    for step in header["steps"]:
        nodes, (a, b) = step["nodes"], step["classes"]
        children, tables, map_of = take(nodes, 1), take(nodes, 2), take(nodes, 2)
        maps = step["class_maps"]
        class_maps = take(maps * (alphabet + 1), 1), take(maps * (second_alphabet + 1), 1)
        clusters = step["clusters"]
        refined = take(nodes * clusters[0], 1), take(nodes * clusters[1], 1)
        pairs, frequencies = take(nodes * a * b, 2), take(step["frequencies"], 2)
        steps.append(Step(children, tables, map_of, class_maps, clusters, refined, (a, b), pairs, frequencies))
    leaves = take(alphabet, 2 if alphabet <= 65536 else 4)
    assert at == len(payload)
    assert sorted(leaves) == list(range(alphabet))
    return Model(alphabet, second_alphabet, header["neighbours"], steps, leaves)


def decode_sample(model: Model, stream: bytes, grid: tuple[int, ...], earlier: list[int] | None = None) -> list[int]:
    """The ids of one `context` sample (``earlier``: those of the level before); AssertionError if it is damaged."""
    places = list(product(*(range(side) for side in grid)))
    if model.alphabet == 1 or not places:
        assert stream == b""
        return [0] * len(places)
    words = list(reversed(struct.unpack(f"<{len(stream) // 2}H", stream)))
    x = words.pop() + (words.pop() << 16)
    assert x >= 1 << 16
    ids: dict[tuple[int, ...], int] = {}
    for number, place in enumerate(places):
        around = [
            earlier[number] if name == "earlier" else ids.get(_back(place, name), model.alphabet)
            for name in model.neighbours
        ]
        node = 0
        for step in model.steps:
            frequencies = step.frequencies_of(node, _table(model, step, node, around))
            slot, symbol, start = x % 4096, 0, 0
            while start + frequencies[symbol] <= slot:
                start += frequencies[symbol]
                symbol += 1
            x = frequencies[symbol] * (x // 4096) + slot - start
            if x < 1 << 16:
                x = (x << 16) + words.pop()
            node = step.first_child[node] + symbol
        ids[place] = model.leaves[node]
    assert x == 1 << 16
    assert not words
    return [ids[place] for place in places]


@dataclass
class CopyModel:
    frequencies: list[list[int]]
    others: Model


def read_copy_model(data: bytes) -> CopyModel:
    assert data[:8] == b"TSMCOPY\0"
    assert hashlib.sha256(data[:-32]).digest() == data[-32:]
    version, length = struct.unpack("<II", data[8:16])
    assert version == 1
    table = struct.unpack("<16384H", zstandard.ZstdDecompressor().decompress(data[16 : 16 + length]))
    frequencies = [list(table[i : i + 4]) for i in range(0, len(table), 4)]
    assert all(sum(row) == 4096 for row in frequencies)
    return CopyModel(frequencies, read_model(data[16 + length : -32]))


def decode_copied(model: CopyModel, stream: bytes, grid: tuple[int, ...]) -> list[int]:
    """The ids of one `copy` sample; AssertionError if it is damaged."""
    places = list(product(*(range(side) for side in grid)))
    if not places:
        assert stream == b""
        return []
    tree = model.others
    words = list(reversed(struct.unpack(f"<{len(stream) // 2}H", stream)))
    x = words.pop() + (words.pop() << 16)
    assert x >= 1 << 16
    ids: dict[tuple[int, ...], int] = {}

    def taken(frequencies: list[int]) -> int:
        nonlocal x
        slot, symbol, start = x % 4096, 0, 0
        while start + frequencies[symbol] <= slot:
            start += frequencies[symbol]
            symbol += 1
        x = frequencies[symbol] * (x // 4096) + slot - start
        if x < 1 << 16:
            x = (x << 16) + words.pop()
        return symbol

    for t, y, x_ in places:

        def at(dt: int, dy: int, dx: int, here: tuple[int, int, int] = (t, y, x_)) -> int:
            inside = 0 <= here[2] + dx < grid[2]
            return ids.get((here[0] + dt, here[1] + dy, here[2] + dx), tree.alphabet) if inside else tree.alphabet

        previous, left, up = at(-1, 0, 0), at(0, 0, -1), at(0, -1, 0)
        pairs = [
            (left, at(-1, 0, -1)), (up, at(-1, -1, 0)), (at(0, -1, 1), at(-1, -1, 1)), (left, previous),
            (up, previous), (left, up), (previous, at(-1, 0, 1)), (previous, at(-1, 1, 0)), (previous, at(-1, 0, -1)),
            (previous, at(-1, -1, 0)), (at(0, -1, -1), up), (at(0, -1, -1), left),
        ]  # fmt: skip
        context = sum((a == b) << 11 - place for place, (a, b) in enumerate(pairs))
        source = taken(model.frequencies[context])
        if source == 3:
            around = [{"previous": previous, "left": left, "up": up}[name] for name in tree.neighbours]
            node = 0
            for step in tree.steps:
                symbol = taken(step.frequencies_of(node, _table(tree, step, node, around)))
                node = step.first_child[node] + symbol
            ids[t, y, x_] = tree.leaves[node]
        else:
            ids[t, y, x_] = (previous, left, up)[source]
    assert x == 1 << 16
    assert not words
    return [ids[place] for place in places]


def decode_packed(alphabet: int, stream: bytes, count: int) -> list[int]:
    """The ids of one `pack` sample; AssertionError if it is damaged."""
    bits = (alphabet - 1).bit_length()
    assert len(stream) == -(-count * bits // 8)
    number = int.from_bytes(stream, "little")
    assert number >> count * bits == 0
    ids = [number >> bits * i & (1 << bits) - 1 for i in range(count)]
    assert all(i < alphabet for i in ids)
    return ids


def joined_grid(grids: list[tuple[int, ...]]) -> tuple[int, ...]:
    """The grid of rows that share a stream."""
    if all(grid[1:] == grids[0][1:] for grid in grids):
        return (sum(grid[0] for grid in grids), *grids[0][1:])
    return (*[1] * (len(grids[0]) - 1), sum(prod(grid) for grid in grids))


def _back(place: tuple[int, ...], name: str) -> tuple[int, ...]:
    """The place of a neighbour; one that is in no grid where the axis is missing."""
    axis = len(place) - {"left": 1, "left2": 1, "up": 2, "previous": 3}[name]
    back = 2 if name == "left2" else 1
    return (*place[:axis], place[axis] - back, *place[axis + 1 :]) if axis >= 0 else ()


def _table(model: Model, step: Step, node: int, around: list[int]) -> int:
    classes = [0, 0]
    if step.class_maps[0]:
        for side, alphabet in enumerate((model.alphabet, model.second_alphabet)):
            classes[side] = step.class_maps[side][step.map_of[node] * (alphabet + 1) + around[side]]
            if step.clusters[side]:
                classes[side] = step.refined[side][node * step.clusters[side] + classes[side]]
    a, b = step.classes
    return step.pairs[(node * a + classes[0]) * b + classes[1]]


def multiset_laws() -> list[list[list[int]]]:
    """[law][ids - 1]: frequencies of the counts 0 to ``ids`` in the left part of a node of 1 to 31 ids."""
    low = [6, 12, 24, 48, 96, 160, 256, 384, 544, 736, 960, 1216, 1504, 1792]
    laws = []
    for weight in (None, 64, 32, 16, 8, 4, 2, 1):
        for share in [*low, 2048, *(4096 - s for s in reversed(low))]:
            p, tables = share / 4096, []
            for n in range(1, 32):
                terms = [1.0]
                for k in range(n):
                    ratio = (n - k) / (k + 1)
                    if weight is None:
                        ratio = ratio * p / (1 - p)
                    else:
                        ratio = ratio * (p * weight + k) / ((1 - p) * weight + (n - k - 1))
                    terms.append(terms[-1] * ratio)
                total = 0.0
                for term in terms:
                    total += term
                table = [1 + int(term / total * (4096 - n - 1)) for term in terms]
                table[table.index(max(table))] += 4096 - sum(table)
                tables.append(table)
            laws.append(tables)
    return laws


_MULTISET_LAWS = multiset_laws()


def decode_multiset(model: bytes, stream: bytes, size: int) -> list[int]:
    """The sorted ids of one `multiset` sample; AssertionError if it is damaged."""
    assert model[:8] == b"TSMULTI\0"
    assert hashlib.sha256(model[:-32]).digest() == model[-32:]
    version, length = struct.unpack("<II", model[8:16])
    assert version == 1
    alphabet = json.loads(model[16 : 16 + length])["alphabet"]
    of_node = zstandard.ZstdDecompressor().decompress(model[16 + length : -32])
    assert len(of_node) == alphabet
    if size == 0 or alphabet == 1:
        assert stream == b""
        return [0] * size
    words = list(reversed(struct.unpack(f"<{len(stream) // 2}H", stream)))
    x = words.pop() + (words.pop() << 16)

    def take(start: int, frequency: int) -> None:
        nonlocal x
        x = frequency * (x // 4096) + x % 4096 - start
        if x < 1 << 16:
            x = (x << 16) + words.pop()

    def take_uniform(width: int) -> int:
        slot = x % 4096
        number = next(i for i in range(width) if i * 4096 // width <= slot < (i + 1) * 4096 // width)
        take(number * 4096 // width, (number + 1) * 4096 // width - number * 4096 // width)
        return number

    def count_of(node: int, n: int) -> int:
        table = _MULTISET_LAWS[of_node[node]][min(n, 31) - 1]
        slot, k, start = x % 4096, 0, 0
        while start + table[k] <= slot:
            start += table[k]
            k += 1
        take(start, table[k])
        if n < 32:
            return k
        first, end = -(-k * (n + 1) // 32), -(-(k + 1) * (n + 1) // 32)
        width, rest = end - first, 0
        if width > 4096:
            rest = x % 4096
            take(rest, 1)
            rest += 4096 * take_uniform((width - 1) // 4096 + 1)
        elif width > 1:
            rest = take_uniform(width)
        return first + rest

    def ids_below(low: int, high: int, n: int) -> list[int]:
        if n == 0 or high - low == 1:
            return [low] * n
        middle = (low + high) // 2
        k = count_of(middle, n)
        return ids_below(low, middle, k) + ids_below(middle, high, n - k)

    ids = ids_below(0, alphabet, size)
    assert x == 1 << 16
    assert not words
    return ids
