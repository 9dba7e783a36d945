"""Tokens in few bytes: datasets of the first images of the order, and such with shuffled labels or positions."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import tokenshard
from accuracy.images import Images, Labels, Pixels
from accuracy.stored import Stored, alone, size_of
from tokenshard.spec.job import Import, build_job
from tokenshard.training.codes import code_space

Codes = NDArray[np.int32]


@dataclass(frozen=True)
class TokenSetting:
    """A tokenizer by what `convert images --tokenizer` takes, or the folder of one."""

    tokenizer: str

    def __str__(self) -> str:
        return Path(self.tokenizer).name


def key(place: int) -> str:
    """Keys sort as the order does, so that a beginning of it is a predicate on them."""
    return f"{place:06}"


def convert(images: Images, side: int, tokenizer: str, folder: Path) -> None:
    """Convert images in their order."""
    with alone(folder):
        if (folder / "manifest").exists():
            return
        manifest = folder.with_suffix(".csv")
        with manifest.open("w", newline="") as table:
            writer = csv.writer(table, lineterminator="\n")
            writer.writerow(["key", "path", "label"])
            for place, (file, label) in enumerate(zip(images.files, images.labels, strict=True)):
                writer.writerow([key(place), file.resolve(), label])
        source = {"size": side, "fit": "center-crop"}
        tokenshard.convert_images(manifest, folder, tokenizer=tokenizer, source=source, engine={"kind": "local"})


def tokenizer_of(folder: Path) -> Path:
    """The tokenizer in a dataset."""
    [found] = (folder / "tokenizer").iterdir()
    return found


def stored(folder: Path, setting: TokenSetting) -> Stored:
    """What counts of a dataset: shards, entropy tables and the vectors of the codes as a model gets them (float16)."""
    dataset = tokenshard.open(folder)
    books = code_space(dataset).codebooks
    codebook = folder.with_suffix(".codebook.npy")
    with alone(codebook):
        np.save(codebook, np.concatenate([book.numpy() for book in books or ()]).astype(np.float16))
        counted = {
            "shards": size_of(folder / "data"),
            "entropy tables": size_of(folder / "models"),
            "codebook": size_of(codebook),
        }
    apart = {"tokenizer": size_of(folder / "tokenizer"), "manifest": size_of(folder / "manifest")}
    return Stored(folder, str(setting), len(dataset), counted, apart, fixed=("entropy tables", "codebook"))


def pixels_of(folder: Path, batch: int = 256) -> Pixels:
    """All samples of a dataset, decoded by its tokenizer: uint8 [N, height, width, 3]."""
    dataset, codes = tokenshard.open(folder), codes_of(folder)
    parts = [codes[start : start + batch] for start in range(0, len(codes), batch)]
    return np.concatenate([dataset.tokenizer.decode(part) for part in parts])


def codes_of(folder: Path) -> Codes:
    """All ids of a dataset, int32 [N, levels, rows, columns]."""
    dataset = tokenshard.open(folder)
    found = dataset.codes(range(len(dataset))).astype(np.int32)
    return found if found.ndim == 4 else found[:, None]


def grid_of(folder: Path) -> tuple[int, ...]:
    """Rows and columns of codes."""
    grid = tokenshard.open(folder).fixed_grid
    assert grid is not None, folder
    return grid


def labels_of(folder: Path) -> Labels:
    return np.array(tokenshard.open(folder).table(["label"]).column("label"), np.int64)


def rewrite(source: Path, codes: Codes, labels: Labels, folder: Path) -> None:
    """A dataset of these ids of the tokenizer of ``source``."""
    with alone(folder):
        if (folder / "manifest").exists():
            return
        arrays = folder.with_suffix(".npz")
        levels = tokenshard.open(source).manifest.code.levels
        shape = codes if len(levels) > 1 else codes[:, 0]
        np.savez(arrays, codes=shape, keys=np.array([key(place) for place in range(len(codes))]), label=labels)
        fields = {
            "path": str(arrays),
            "format": "npz",
            "options": {"levels": len(levels)},
            "alphabet": [level.alphabet for level in levels],
            "modality": "image",
            "tokenizer": str(tokenizer_of(source)),
        }
        tokenshard.run(build_job(Import, {"source": fields, "output": str(folder), "engine": {"kind": "local"}}))


def shuffled_positions(codes: Codes, seed: int) -> Codes:
    """The codes of every sample in an order of its own."""
    flat = codes.reshape(*codes.shape[:2], -1)
    order = np.random.default_rng(seed).permuted(np.tile(np.arange(flat.shape[2]), (len(flat), 1)), axis=1)
    return np.take_along_axis(flat, order[:, None], 2).reshape(codes.shape)
