"""The model of the `context` codec and its file format, `.tsm`: a tree over the alphabet with frequency tables.

Fitted once a dataset on a pilot sample, stored under its own hash in ``models/``, and needed by every decoder. The
format is specified in `schemas/shard-format.md`. A model is checked in full when it is built, so that the compiled
loops may index its arrays without tests.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import zstandard
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from tokenshard.codecs.base import Ids, id_dtype
from tokenshard.errors import FormatError
from tokenshard.spec.base import StoredDocument, canonical_json

MAGIC = b"TSMODEL\0"
VERSION = 1
MAX_CHILDREN = 32
MAX_STEPS = 4
MAX_ALPHABET = MAX_CHILDREN**MAX_STEPS
TOTAL = 4096
"""Sum of the frequencies of every table."""

MAX_RUNTIME_BYTES = 4 << 20
"""Tables and maps in memory, all but the leaf order: more is refused."""

_PREFIX = struct.Struct("<8sII")
_DIGEST_BYTES = 32

Neighbour = Literal["left", "up", "previous"]


class Pilot(StoredDocument):
    """What a model was fitted on."""

    samples: int = Field(ge=0)
    ids: int = Field(ge=0)
    bits_per_id: float = Field(ge=0, description="bits an id of the pilot costs by the tables, streams' ends excluded")


class StepHeader(StoredDocument):
    """Sizes of the arrays of one step."""

    nodes: int = Field(ge=1, le=MAX_CHILDREN ** (MAX_STEPS - 1))
    tables: int = Field(ge=1, description="tables of all nodes together")
    class_maps: int = Field(ge=0, le=1 << 16)
    classes: tuple[int, int] = Field(description="classes of the first and of the second neighbour")
    frequencies: int = Field(ge=1, le=MAX_CHILDREN << 16)


class ModelHeader(StoredDocument):
    """The JSON header of a model file."""

    alphabet: int = Field(ge=1, le=MAX_ALPHABET)
    neighbours: tuple[Neighbour, Neighbour]
    steps: tuple[StepHeader, ...] = Field(min_length=1, max_length=MAX_STEPS)
    pilot: Pilot


@dataclass(frozen=True, eq=False)
class Step:
    """One step of every path: the nodes at one depth of the tree, left to right, and their tables."""

    children: NDArray[np.uint8]
    """[nodes]: symbols of each node, 1 to 32."""
    tables: NDArray[np.uint16]
    """[nodes]: tables of each node, at least 1."""
    map_of: NDArray[np.uint16]
    """[nodes]: which class map a node uses."""
    class_maps: NDArray[np.uint8]
    """[maps, 2, alphabet + 1]: class of each id as first and second neighbour; the last entry is "no neighbour"."""
    pairs: NDArray[np.uint16]
    """[nodes, classes of the first, classes of the second]: which of the node's tables a class pair uses."""
    frequencies: NDArray[np.uint16]
    """Frequencies (1 to 4096, summing to 4096) of the children, table after table, node after node."""

    @property
    def header(self) -> StepHeader:
        classes = (self.pairs.shape[1], self.pairs.shape[2])
        return StepHeader(
            nodes=len(self.children),
            tables=int(self.tables.sum(dtype=np.int64)),
            class_maps=len(self.class_maps),
            classes=classes,
            frequencies=len(self.frequencies),
        )

    @property
    def has_contexts(self) -> bool:
        return self.pairs.shape[1:] != (1, 1) or bool((self.tables != 1).any())


class KernelArrays(NamedTuple):
    """A model as the compiled loops index it. Nodes are numbered depth by depth, left to right; leaves follow."""

    nodes: NDArray[np.uint32]
    """[nodes, 3]: number of the first child, place of the class map in ``classes``, place of the node in ``tables``."""
    classes: NDArray[np.uint16]
    """Class maps; those of the first neighbour are premultiplied, so that the sum of both classes is a pair."""
    tables: NDArray[np.uint16]
    """Table of each node and class pair; empty where every node has one table, of the node's own number."""
    ends: NDArray[np.uint16]
    """[1 + tables, 32], flat: cumulative frequencies, filled up with 4096; the first row is all 4096."""
    leaves: Ids
    """Ids in leaf order."""


@dataclass(frozen=True, eq=False)
class ContextModel:
    """A complete, checked model. Raises :class:`FormatError` when its parts do not fit together."""

    alphabet: int
    neighbours: tuple[Neighbour, Neighbour]
    steps: tuple[Step, ...]
    leaves: Ids
    """[alphabet]: the ids in the order of the leaves, left to right."""
    pilot: Pilot

    def __post_init__(self) -> None:
        _check_header(self.header)
        for number, step in enumerate(self.steps):
            below = self.steps[number + 1].children if number + 1 < len(self.steps) else self.leaves
            _check_step(step, number, self.alphabet, len(below))
        _require(len(self.steps[0].children) == 1, "the first step has more than one node")
        seen = np.zeros(self.alphabet, np.bool_)
        _require(len(self.leaves) == self.alphabet, "the leaves are not the alphabet")
        _require(
            bool((self.leaves >= 0).all() and (self.leaves < self.alphabet).all()), "a leaf is outside the alphabet"
        )
        seen[self.leaves] = True
        _require(bool(seen.all()), "an id has no leaf")

    @property
    def header(self) -> ModelHeader:
        return ModelHeader(
            alphabet=self.alphabet,
            neighbours=self.neighbours,
            steps=tuple(step.header for step in self.steps),
            pilot=self.pilot,
        )

    def kernel_arrays(self) -> KernelArrays:
        nodes = np.zeros((sum(len(step.children) for step in self.steps), 3), np.uint32)
        children = np.concatenate([step.children for step in self.steps])
        nodes[:, 0] = 1 + np.cumsum(children, dtype=np.int64) - children
        ends = [np.full((1, MAX_CHILDREN), TOTAL, np.uint16), *(_ends(step) for step in self.steps)]
        classes, tables = np.zeros(0, np.uint16), np.zeros(0, np.uint16)
        if any(step.has_contexts for step in self.steps):
            classes, tables = self._place_contexts(nodes)
        return KernelArrays(nodes, classes, tables, np.concatenate(ends).reshape(-1), self.leaves)

    def _place_contexts(self, nodes: NDArray[np.uint32]) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
        """Lay class maps and pair maps of all steps back to back and enter their places in ``nodes``."""
        classes: list[NDArray[np.uint16]] = []
        tables: list[NDArray[np.uint16]] = []
        node = class_at = table_at = first_table = 0
        for step in self.steps:
            maps = np.zeros((max(len(step.class_maps), 1), 2, self.alphabet + 1), np.uint16)
            maps[: len(step.class_maps)] = step.class_maps
            maps[:, 0] *= step.pairs.shape[2]
            here = slice(node, node + len(step.children))
            nodes[here, 1] = class_at + step.map_of.astype(np.int64) * maps[0].size
            nodes[here, 2] = table_at + np.arange(len(step.pairs)) * step.pairs[0].size
            before = first_table + np.cumsum(step.tables, dtype=np.int64) - step.tables
            tables.append((step.pairs + before[:, None, None]).astype(np.uint16).reshape(-1))
            classes.append(maps.reshape(-1))
            node, class_at, table_at = here.stop, class_at + maps.size, table_at + step.pairs.size
            first_table += int(step.tables.sum(dtype=np.int64))
        return np.concatenate(classes), np.concatenate(tables)

    def to_bytes(self) -> bytes:
        """The model as a `.tsm` file; equal models give equal bytes."""
        header = canonical_json(self.header.model_dump(mode="json"))
        arrays = [part for step in self.steps for part in _arrays(step)] + [self.leaves]
        payload = b"".join(_byte_planes(array) for array in arrays)
        body = _PREFIX.pack(MAGIC, VERSION, len(header)) + header + zstandard.compress(payload, 19)
        return body + hashlib.sha256(body).digest()

    @classmethod
    def from_bytes(cls, data: bytes) -> ContextModel:
        """Read a `.tsm` file. Raises :class:`FormatError` when it is damaged, too large or too new."""
        header, frame = _open(data)
        dtype = np.dtype(id_dtype(header.alphabet))
        shapes = [shape for step in header.steps for shape in _shapes(step, header.alphabet)]
        shapes.append(((header.alphabet,), dtype))
        arrays = _split(_decompress(frame, sum(_size(*shape) for shape in shapes)), shapes)
        steps = tuple(Step(*(next(arrays) for _ in range(6))) for _ in header.steps)
        model = cls(header.alphabet, header.neighbours, steps, next(arrays), header.pilot)
        _require(model.header == header, "the header and the arrays differ")
        return model


def _table_lengths(step: Step) -> NDArray[np.int64]:
    return np.repeat(step.children.astype(np.int64), step.tables)


def _ends(step: Step) -> NDArray[np.uint16]:
    """[tables, 32] cumulative frequencies of a step's tables."""
    lengths = _table_lengths(step)
    running = np.cumsum(step.frequencies, dtype=np.int64) - np.repeat(np.arange(len(lengths)) * TOTAL, lengths)
    ends = np.full((len(lengths), MAX_CHILDREN), TOTAL, np.uint16)
    ends[np.arange(MAX_CHILDREN) < lengths[:, None]] = running
    return ends


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise FormatError(f"codec model: {problem}; restore the file below models/ or convert again")


def _arrays(step: Step) -> tuple[NDArray[Any], ...]:
    return (step.children, step.tables, step.map_of, step.class_maps, step.pairs, step.frequencies)


def _shapes(step: StepHeader, alphabet: int) -> list[tuple[tuple[int, ...], np.dtype[Any]]]:
    byte, word = np.dtype(np.uint8), np.dtype(np.uint16)
    nodes = step.nodes
    return [
        ((nodes,), byte),
        ((nodes,), word),
        ((nodes,), word),
        ((step.class_maps, 2, alphabet + 1), byte),
        ((nodes, *step.classes), word),
        ((step.frequencies,), word),
    ]


def _size(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    return int(np.prod(shape, dtype=np.int64)) * dtype.itemsize


def _byte_planes(array: NDArray[Any]) -> bytes:
    """All lowest bytes first, then all next ones, and so on: compresses better than interleaved bytes."""
    flat = np.ascontiguousarray(array).reshape(-1)
    little = flat.astype(flat.dtype.newbyteorder("<"), copy=False)
    return little.view(np.uint8).reshape(-1, flat.dtype.itemsize).T.tobytes()


def _split(payload: bytes, shapes: list[tuple[tuple[int, ...], np.dtype[Any]]]) -> Iterator[Any]:
    at = 0
    for shape, dtype in shapes:
        size = _size(shape, dtype)
        planes = np.frombuffer(payload, np.uint8, size, at).reshape(dtype.itemsize, -1)
        little = np.ascontiguousarray(planes.T).view(dtype.newbyteorder("<"))
        yield little.astype(dtype).reshape(shape)
        at += size


def _open(data: bytes) -> tuple[ModelHeader, bytes]:
    """Prefix, checksum and header; returns the header and the zstd frame."""
    _require(len(data) >= _PREFIX.size + _DIGEST_BYTES and data[:8] == MAGIC, "not a .tsm file")
    _, version, length = _PREFIX.unpack_from(data)
    if version > VERSION:
        raise FormatError(f"codec model: version {version} needs a newer tokenshard (this one reads {VERSION})")
    _require(hashlib.sha256(data[:-_DIGEST_BYTES]).digest() == data[-_DIGEST_BYTES:], "the checksum does not match")
    end = _PREFIX.size + length
    _require(version == VERSION and end <= len(data) - _DIGEST_BYTES, "the header is damaged")
    try:
        header = ModelHeader.model_validate_json(data[_PREFIX.size : end])
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise FormatError(f"codec model: header field {place or '(all)'}: {first['msg']}") from None
    _check_header(header)
    return header, data[end:-_DIGEST_BYTES]


def _decompress(frame: bytes, size: int) -> bytes:
    try:
        stated = zstandard.get_frame_parameters(frame).content_size
        _require(stated == size, f"{size} bytes of arrays expected, {stated} found")
        payload = zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise FormatError(f"codec model: the arrays cannot be decompressed ({error})") from None
    _require(len(payload) == size, f"{size} bytes of arrays expected, {len(payload)} found")
    return payload


def _check_header(header: ModelHeader) -> None:
    """Limits that hold before anything is allocated."""
    size = 0
    for step in header.steps:
        first, second = step.classes
        _require(1 <= first <= 256 and 1 <= second <= 256, "class counts must be 1 to 256")
        _require(step.class_maps > 0 or (first, second) == (1, 1), "classes without a class map")
        size += 12 * step.nodes + 4 * step.class_maps * (header.alphabet + 1) + 2 * step.nodes * first * second
        size += 2 * MAX_CHILDREN * step.tables
    _require(sum(step.tables for step in header.steps) <= 1 << 16, "more than 65,536 tables")
    _require(size <= MAX_RUNTIME_BYTES, f"{size} bytes of tables and maps, above the limit of {MAX_RUNTIME_BYTES}")


def _check_step(step: Step, number: int, alphabet: int, below: int) -> None:
    """Everything the compiled loops rely on: no array of a checked step leads outside another."""
    where = f"step {number}"
    nodes, classes = len(step.children), step.pairs.shape[1:]
    _require(len(step.tables) == len(step.map_of) == len(step.pairs) == nodes, f"{where}: arrays of different length")
    _require(step.class_maps.shape[1:] == (2, alphabet + 1), f"{where}: class maps do not cover the alphabet")
    _require(
        bool(((step.children >= 1) & (step.children <= MAX_CHILDREN)).all()), f"{where}: a node of no or > 32 symbols"
    )
    _require(int(step.children.sum(dtype=np.int64)) == below, f"{where}: children and the next step differ in number")
    _require(bool((step.tables >= 1).all()), f"{where}: a node without a table")
    _require(bool((step.map_of < max(len(step.class_maps), 1)).all()), f"{where}: a class map that does not exist")
    for side in range(2):
        _require(bool((step.class_maps[:, side] < classes[side]).all()), f"{where}: a class that does not exist")
    _require(bool((step.pairs < step.tables[:, None, None]).all()), f"{where}: a table that does not exist")
    lengths = _table_lengths(step)
    _require(int(lengths.sum()) == len(step.frequencies), f"{where}: frequencies and tables differ in number")
    _require(bool((step.frequencies >= 1).all()), f"{where}: a symbol of frequency 0")
    sums = np.add.reduceat(step.frequencies.astype(np.int64), np.cumsum(lengths) - lengths)
    _require(bool((sums == TOTAL).all()), f"{where}: a table that does not sum to {TOTAL}")
