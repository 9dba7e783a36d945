"""The model of the `context` codec and its file format, `.tsm`: a tree over the alphabet with frequency tables.

Fitted once a dataset on a pilot sample, stored under its own hash in ``models/``, and needed by every decoder. The
format is specified in `schemas/shard-format.md`. A model is checked in full when it is built, so that the compiled
loops may index its arrays without tests.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tokenshard.codecs.base import Ids, id_dtype
from tokenshard.codecs.model_file import open_model, pack_model, unpacked
from tokenshard.codecs.model_file import require as _require
from tokenshard.spec.base import StoredDocument

MAGIC = b"TSMODEL\0"
VERSION = 1
MAX_CHILDREN = 32
MAX_STEPS = 4
MAX_ALPHABET = MAX_CHILDREN**MAX_STEPS
TOTAL = 4096
"""Sum of the frequencies of every table."""

MAX_TABLES = 32_000
"""Tables of all steps where any node has more than one; else the memory is the limit."""

MAX_RUNTIME_BYTES = 4 << 20
"""Tables and maps in memory, all but the leaf order: more is refused."""

Neighbour = Literal["left", "left2", "up", "previous", "earlier"]
"""`earlier`: the id of the level before at the same place; the others are ids of the same level."""


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
    clusters: tuple[int, int] = Field(description="of first and second neighbours; 0 where maps give the classes")
    classes: tuple[int, int] = Field(description="classes of the first and of the second neighbour")
    frequencies: int = Field(ge=1, le=MAX_CHILDREN << 16)


class ModelHeader(StoredDocument):
    """The JSON header of a model file."""

    alphabet: int = Field(ge=1, le=MAX_ALPHABET)
    neighbours: tuple[Neighbour, Neighbour]
    earlier_alphabet: int | None = Field(default=None, ge=1, le=MAX_ALPHABET)
    steps: tuple[StepHeader, ...] = Field(min_length=1, max_length=MAX_STEPS)
    pilot: Pilot

    @property
    def second_alphabet(self) -> int:
        """Alphabet of the second neighbour, the only one that may be of another level."""
        return self.alphabet if self.earlier_alphabet is None else self.earlier_alphabet


@dataclass(frozen=True, eq=False)
class Step:
    """One step of every path: the nodes at one depth of the tree, left to right, and their tables."""

    children: NDArray[np.uint8]
    """[nodes]: symbols of each node, 1 to 32."""
    tables: NDArray[np.uint16]
    """[nodes]: tables of each node, at least 1."""
    map_of: NDArray[np.uint16]
    """[nodes]: which class map a node uses."""
    first_map: NDArray[np.uint8]
    """[maps, alphabet + 1]: class (or cluster) of each id as first neighbour; the last entry is "no neighbour"."""
    second_map: NDArray[np.uint8]
    """[maps, alphabet of the second neighbour + 1]: its class (or cluster) as second neighbour."""
    first_refined: NDArray[np.uint8]
    """[nodes, clusters]: class of each cluster of first neighbours; no columns where the map gives classes."""
    second_refined: NDArray[np.uint8]
    """[nodes, clusters]: the same for second neighbours."""
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
            class_maps=len(self.first_map),
            clusters=(self.first_refined.shape[1], self.second_refined.shape[1]),
            classes=classes,
            frequencies=len(self.frequencies),
        )

    @property
    def row(self) -> int:
        """Entries a table takes in memory: 16 where these are enough, else 32."""
        return MAX_CHILDREN // 2 if self.children.max() <= MAX_CHILDREN // 2 else MAX_CHILDREN

    def arrays(self) -> tuple[NDArray[Any], ...]:
        """All arrays in the order of the file."""
        maps = self.first_map, self.second_map, self.first_refined, self.second_refined
        return (self.children, self.tables, self.map_of, *maps, self.pairs, self.frequencies)

    @property
    def table_lengths(self) -> NDArray[np.int64]:
        """Frequencies of each table: the children of its node."""
        return np.repeat(self.children.astype(np.int64), self.tables)

    @property
    def has_contexts(self) -> bool:
        return self.pairs.shape[1:] != (1, 1) or bool((self.tables != 1).any())


@dataclass(frozen=True, eq=False)
class ContextModel:
    """A complete, checked model. Raises :class:`FormatError` when its parts do not fit together."""

    alphabet: int
    neighbours: tuple[Neighbour, Neighbour]
    steps: tuple[Step, ...]
    leaves: Ids
    """[alphabet]: the ids in the order of the leaves, left to right."""
    pilot: Pilot
    earlier_alphabet: int | None = None
    """Alphabet of the level before, where it is the second neighbour."""

    def __post_init__(self) -> None:
        _require(all(bool((step.tables >= 1).all()) for step in self.steps), "a node without a table")
        header = self.header
        _check_header(header)
        for number, step in enumerate(self.steps):
            below = self.steps[number + 1].children if number + 1 < len(self.steps) else self.leaves
            _check_step(step, number, header, len(below))
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
            earlier_alphabet=self.earlier_alphabet,
            steps=tuple(step.header for step in self.steps),
            pilot=self.pilot,
        )

    def measured(self, bits_per_id: float) -> ContextModel:
        """The same model with the bits an id of its pilot costs."""
        return replace(self, pilot=self.pilot.model_copy(update={"bits_per_id": bits_per_id}))

    def to_bytes(self) -> bytes:
        """The model as a `.tsm` file; equal models give equal bytes."""
        arrays = [part for step in self.steps for part in step.arrays()] + [self.leaves]
        return pack_model(MAGIC, VERSION, self.header, b"".join(_byte_planes(array) for array in arrays))

    @classmethod
    def from_bytes(cls, data: bytes) -> ContextModel:
        """Read a `.tsm` file. Raises :class:`FormatError` when it is damaged, too large or too new."""
        header, frame = open_model(data, MAGIC, VERSION, ModelHeader)
        _check_header(header)
        dtype = np.dtype(id_dtype(header.alphabet))
        shapes = [shape for step in header.steps for shape in _shapes(step, header)]
        shapes.append(((header.alphabet,), dtype))
        arrays = _split(unpacked(frame, sum(_size(*shape) for shape in shapes)), shapes)
        steps = tuple(Step(*(next(arrays) for _ in range(9))) for _ in header.steps)
        model = cls(header.alphabet, header.neighbours, steps, next(arrays), header.pilot, header.earlier_alphabet)
        _require(model.header == header, "the header and the arrays differ")
        return model


def _shapes(step: StepHeader, header: ModelHeader) -> list[tuple[tuple[int, ...], np.dtype[Any]]]:
    byte, word = np.dtype(np.uint8), np.dtype(np.uint16)
    nodes = step.nodes
    return [
        ((nodes,), byte),
        ((nodes,), word),
        ((nodes,), word),
        ((step.class_maps, header.alphabet + 1), byte),
        ((step.class_maps, header.second_alphabet + 1), byte),
        ((nodes, step.clusters[0]), byte),
        ((nodes, step.clusters[1]), byte),
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


def _check_header(header: ModelHeader) -> None:
    """Limits that hold before anything is allocated."""
    of_earlier = ["earlier" in header.neighbours[:1], header.neighbours[1] == "earlier"]
    _require(of_earlier == [False, header.earlier_alphabet is not None], "neighbours and alphabets do not fit")
    for step in header.steps:
        _require(all(1 <= classes <= 256 for classes in step.classes), "class counts must be 1 to 256")
        _require(step.class_maps > 0 or step.classes == (1, 1), "classes without a class map")
        of_sides = [0 < clusters <= 256 for clusters in step.clusters]
        _require(all(of_sides) or step.clusters == (0, 0), "clusters must be 1 to 256 on both sides, or 0")
        _require(step.class_maps > 0 or step.clusters == (0, 0), "clusters without a class map")
    size = runtime_bytes(header.steps, header.alphabet, header.second_alphabet)
    tables = sum(step.tables for step in header.steps)
    contexts = any(step.classes != (1, 1) or step.tables > step.nodes for step in header.steps)
    _require(not contexts or tables <= MAX_TABLES, f"{tables} tables, above the limit of {MAX_TABLES}")
    _require(size <= MAX_RUNTIME_BYTES, f"{size} bytes of tables and maps, above the limit of {MAX_RUNTIME_BYTES}")


def runtime_bytes(steps: Sequence[StepHeader], alphabet: int, second_alphabet: int) -> int:
    """Bytes that tables and maps take in memory, all but the leaf order; at most 4 MiB are allowed."""
    size = 0
    for step in steps:
        first, second = step.classes
        size += (16 + sum(step.clusters)) * step.nodes + step.class_maps * (alphabet + second_alphabet + 2)
        size += 2 * step.nodes * first * (1 << (second - 1).bit_length()) + 2 * MAX_CHILDREN * step.tables
    return size


def _check_step(step: Step, number: int, header: ModelHeader, below: int) -> None:
    """Everything the compiled loops rely on: no array of a checked step leads outside another."""
    where = f"step {number}"
    nodes, classes = len(step.children), step.pairs.shape[1:]
    _require(len(step.tables) == len(step.map_of) == len(step.pairs) == nodes, f"{where}: arrays of different length")
    maps = len(step.first_map)
    covered = [(maps, header.alphabet + 1), (maps, header.second_alphabet + 1)]
    sides, refined = (step.first_map, step.second_map), (step.first_refined, step.second_refined)
    _require([side.shape for side in sides] == covered, f"{where}: class maps do not cover the alphabet")
    _require(
        bool(((step.children >= 1) & (step.children <= MAX_CHILDREN)).all()), f"{where}: a node of no or > 32 symbols"
    )
    _require(int(step.children.sum(dtype=np.int64)) == below, f"{where}: children and the next step differ in number")
    _require(bool((step.map_of < max(maps, 1)).all()), f"{where}: a class map that does not exist")
    _require(len(refined[0]) == len(refined[1]) == nodes, f"{where}: arrays of different length")
    for side, own, limit in zip(sides, refined, classes, strict=True):
        _require(bool((side < (own.shape[1] or limit)).all()), f"{where}: a class or cluster that does not exist")
        _require(bool((own < limit).all()), f"{where}: a class that does not exist")
    _require(bool((step.pairs < step.tables[:, None, None]).all()), f"{where}: a table that does not exist")
    lengths = step.table_lengths
    _require(int(lengths.sum()) == len(step.frequencies), f"{where}: frequencies and tables differ in number")
    _require(bool((step.frequencies >= 1).all()), f"{where}: a symbol of frequency 0")
    sums = np.add.reduceat(step.frequencies.astype(np.int64), np.cumsum(lengths) - lengths)
    _require(bool((sums == TOTAL).all()), f"{where}: a table that does not sum to {TOTAL}")
