"""What a trainer has to know of a token dataset before it reads a batch: alphabets, token grid, codebooks, labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from tokenshard.errors import SpecError
from tokenshard.shards.dataset import Dataset
from tokenshard.tokenizers.base import CodebookTokenizer
from tokenshard.tokenizers.folder import tokenizer_from
from tokenshard.tokenizers.frames import NUM_FRAMES

MOST_CHANNELS = 32
"""Of code vectors, as in SeiT. Wider ones, as pixels of patches are, cost memory and time on the device, and the axes
that fall away carry little."""
UNIGRAM_IDS = 2_000_000
"""Ids that the unigram entropy is measured on."""


@dataclass(frozen=True)
class CodeSpace:
    """The codes of a dataset as a model sees them."""

    alphabets: tuple[int, ...]
    """codes of each level"""
    grid: tuple[int, ...]
    """rows and columns of codes of an image, frames, rows and columns of a clip; or of the crop that is taken of it"""
    codebooks: tuple[Tensor, ...] | None
    """float32 [alphabet, d] by level, centred, of unit variance in the first level; None where they are not known"""
    tokenizer: str
    """fingerprint"""


def code_space(dataset: Dataset, crop: tuple[int, ...] | None = None) -> CodeSpace:
    """The codes of a dataset of images or clips. Raises SpecError where samples have no common token grid and no crop
    is given, or one that does not fit."""
    where, code = dataset.store.root, dataset.manifest.code
    if len(code.grid) not in (2, 3):
        raise SpecError(
            f"{where}: token grids have {len(code.grid)} axes; models of tokens need rows and columns, or frames, rows "
            "and columns"
        )
    shape = "ROWSxCOLUMNS" if len(code.grid) == 2 else "FRAMESxROWSxCOLUMNS"
    grid = crop or dataset.fixed_grid
    if grid is None:
        raise SpecError(f"{where}: samples have token grids of their own; give --crop {shape}, or convert --size")
    if len(grid) != len(code.grid):
        raise SpecError(
            f"{where}: a crop of {'x'.join(map(str, grid))} does not fit its token grids; give --crop {shape}"
        )
    alphabets = tuple(level.alphabet for level in code.levels)
    return CodeSpace(alphabets, tuple(grid), _codebooks(dataset, alphabets), dataset.manifest.tokenizer.fingerprint)


def decodes_from_start(dataset: Dataset) -> bool:
    """Whether ids stand for groups of frames, of which only the first of a clip and those after it can be decoded."""
    return NUM_FRAMES in {column.name for column in dataset.manifest.columns}


def check_same_tokenizer(train: Dataset, val: Dataset, cropped: bool = False) -> None:
    """Raises SpecError where ids of two datasets do not mean the same, or their grids differ (unless ``cropped``)."""
    first, second = train.manifest.tokenizer.fingerprint, val.manifest.tokenizer.fingerprint
    if first != second:
        raise SpecError(
            f"{val.store.root}: its tokenizer is {second}, that of {train.store.root} is {first}; convert it with "
            f"--tokenizer {train.store.url(f'tokenizer/{first}')}"
        )
    if train.fixed_grid != val.fixed_grid and not cropped:
        raise SpecError(
            f"{val.store.root}: its token grid is {_shape(val)}, that of {train.store.root} is {_shape(train)}; "
            "convert both with the same --size, or give --crop"
        )


def _shape(dataset: Dataset) -> str:
    return "x".join(map(str, dataset.fixed_grid)) if dataset.fixed_grid else "not fixed"


def _codebooks(dataset: Dataset, alphabets: tuple[int, ...]) -> tuple[Tensor, ...] | None:
    tokenizer = tokenizer_from(*dataset.tokenizer_files())
    if not isinstance(tokenizer, CodebookTokenizer):
        return None
    try:
        books = [torch.from_numpy(book) for book in tokenizer.codebooks()]
    except SpecError:  # ids of an import that came without the vectors
        return None
    if [len(book) for book in books] != list(alphabets):
        return None
    return standardised(books)


def standardised(codebooks: list[Tensor]) -> tuple[Tensor, ...]:
    """Codebooks [K, d] moved to mean 0 by level, and scaled together so that the first has unit variance; of more than
    32 channels the principal ones."""
    centred = [book - book.mean(0) for book in codebooks]
    if centred[0].shape[1] > MOST_CHANNELS:
        centred = _principal(centred)
    scale = centred[0].square().mean().sqrt().clamp_min(1e-12)
    return tuple(book / scale for book in centred)


def _principal(codebooks: list[Tensor]) -> list[Tensor]:
    """Codebooks [K, d] turned to the principal axes of all codes, of which the first ones stay."""
    joined = torch.cat(codebooks).double()
    axes = torch.linalg.eigh(joined.T @ joined).eigenvectors.flip(1)[:, :MOST_CHANNELS]
    largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    return [(book.double() @ (axes * largest.sign())).float() for book in codebooks]


def unigram_entropy(dataset: Dataset, most: int = UNIGRAM_IDS) -> float:
    """Bits an id without context, mean over levels, of row groups spread evenly that hold about ``most`` ids."""
    groups = dataset.num_row_groups
    each = max(1, dataset.manifest.totals.ids // max(1, groups))
    chosen = np.unique(np.linspace(0, groups - 1, min(groups, max(1, most // each))).round().astype(int))
    levels = len(dataset.manifest.code.levels)
    counts: list[np.ndarray[Any, np.dtype[np.int64]]] = [np.zeros(1, np.int64)] * levels
    for group in chosen.tolist():
        for level, ids in enumerate(dataset.read_group(group).decode()):
            found = np.bincount(ids)
            longer, shorter = (found, counts[level]) if len(found) > len(counts[level]) else (counts[level], found)
            longer[: len(shorter)] += shorter
            counts[level] = longer
    entropies = []
    for one in counts:
        share = one[one > 0] / max(1, one.sum())
        entropies.append(float(-(share * np.log2(share)).sum()))
    return float(np.mean(entropies))


@dataclass(frozen=True)
class Labels:
    """The classes of a label column."""

    column: str
    classes: int
    names: tuple[str, ...] | None


def read_labels(dataset: Dataset, column: str, classes: int | None = None, remedy: str | None = None) -> Labels:
    """The classes of a dataset: as many as asked for, else as the column has names, else its largest value + 1.

    Raises SpecError for a column that is missing, or holds anything but whole numbers from 0 below ``classes``; then
    ``remedy`` is what it advises.
    """
    where = dataset.store.root
    entries = {entry.name: entry for entry in dataset.manifest.columns}
    if column not in entries:
        others = [name for name in dataset.schema.names if name != "key"]
        raise SpecError(
            f"{where}: no column {column!r} to learn from; convert with --labels, or name one of: {', '.join(others)}"
        )
    values = dataset.table([column]).column(column)
    if not pa.types.is_integer(values.type):
        raise SpecError(f"{where}: column {column!r} holds {values.type}, not whole numbers from 0 to classes - 1")
    if values.null_count:
        raise SpecError(f"{where}: {values.null_count:,} samples have no {column!r}; leave them out when converting")
    names = entries[column].names
    low, high = (pc.min_max(values).as_py()[side] for side in ("min", "max")) if len(values) else (0, 0)
    count = classes or (len(names) if names else high + 1)
    if low < 0 or high >= count:
        raise SpecError(
            f"{where}: {column!r} goes from {low} to {high}, which does not fit {count} classes; "
            + (remedy or f"give --classes {high + 1}, or correct the labels")
        )
    if count < 2:
        raise SpecError(f"{where}: all samples have the same {column!r}; there is nothing to tell apart")
    return Labels(column, count, names if names and len(names) == count else None)


def check_same_classes(mine: Labels, where: str, val: Dataset) -> None:
    """Raises SpecError where the labels of ``val`` are not those that ``where`` has."""
    remedy = f"{where} has no others: take a dataset converted from folders of the same names, or train on all classes"
    other = read_labels(val, mine.column, mine.classes, remedy)
    if mine.names and other.names and mine.names != other.names:
        pairs = enumerate(zip(mine.names, other.names, strict=True))
        wrong = next(place for place, (first, second) in pairs if first != second)
        raise SpecError(
            f"{val.store.root}: class {wrong} is {other.names[wrong]!r}, in {where} it is {mine.names[wrong]!r}; "
            "convert both from folders of the same names"
        )


def ids_of(batch: dict[str, Any], device: torch.device, levels: int) -> Tensor:
    """int64 [B, levels, *grid] on the device, of the codes of a loader's batch, which are what is moved."""
    codes: Tensor = batch["codes"].to(device, non_blocking=True).long()
    return codes if levels > 1 else codes[:, None]


def missing_codebooks(dataset: Dataset, what: str) -> SpecError:
    return SpecError(
        f"{dataset.store.root}: {what} needs the vectors of the codes, which its tokenizer does not hold; "
        "give --embedding learned, or import the codes together with their codebook"
    )
