"""One mutation of one dataset, read in every way, and what came of it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fuzzing import KINDS
from fuzzing.codec_damage import Block, blocks_of, damaged_model, damaged_stream
from fuzzing.dataset_damage import DAMAGES, Copy
from fuzzing.outcome import INSIDE, REFUSED, SAME, VIOLATED, Violation, unclear
from tokenshard.errors import FormatError, SpecError
from tokenshard.shards.dataset import open_dataset
from tokenshard.shards.rejects import read_rejects
from tokenshard.shards.verify import verify

MOST_ROWS = 400
"""Rows read of a dataset that claims to have more."""


@dataclass(frozen=True)
class Reading:
    """Everything that can be read of a dataset, to be compared."""

    codes: list[np.ndarray]
    table: Any
    rejects: Any
    tokenizer: Any

    def equals(self, other: Reading) -> bool:
        return (
            len(self.codes) == len(other.codes)
            and all(map(np.array_equal, self.codes, other.codes))
            and self.table.equals(other.table)
            and self.rejects.equals(other.rejects)
            and self.tokenizer == other.tokenizer
        )


class Material:
    """Datasets to damage, copied to a folder of their own, and what they hold."""

    def __init__(self, sets: Path, folder: Path) -> None:
        self.copies: list[Copy] = []
        self.readings: dict[Copy, Reading] = {}
        self.blocks: list[Block] = []
        for source in sorted(path for path in sets.iterdir() if path.is_dir()):
            target = folder / source.name
            shutil.copytree(source, target, ignore=shutil.ignore_patterns(".tmp"))
            self.copies.append(Copy(target))
            self.readings[self.copies[-1]] = read_everything(target)
            ds = open_dataset(target)
            for group in range(ds.num_row_groups):
                self.blocks += blocks_of(ds, ds.read_group(group))
        self.full = [files for files in self.copies if self.readings[files].codes]
        self.listed = [files for files in self.copies if files.has_list]
        self.modelled = [block for block in self.blocks if block.model is not None]

    def run(self, seed: int, index: int) -> tuple[str, str, str]:
        """(kind, outcome, detail) of mutation ``index``."""
        rng, kind = np.random.default_rng([seed, index]), KINDS[index % len(KINDS)]
        try:
            if kind == "stream":
                return kind, damaged_stream(rng, self.blocks[rng.integers(len(self.blocks))]), ""
            if kind == "model":
                return kind, damaged_model(rng, self.modelled[rng.integers(len(self.modelled))]), ""
            copies = {"file": self.copies, "manifest": self.copies, "list": self.listed}.get(kind, self.full)
            return kind, self._in_dataset(rng, kind, copies[rng.integers(len(copies))]), ""
        except (FormatError, SpecError) as error:
            problem = unclear(error)
            return kind, VIOLATED if problem else REFUSED, problem
        except Violation as violation:
            return kind, VIOLATED, str(violation)
        except Exception as error:
            return kind, VIOLATED, f"{type(error).__name__}: {error}"[:500]

    def _in_dataset(self, rng: np.random.Generator, kind: str, files: Copy) -> str:
        try:
            DAMAGES[kind](rng, files)
            found = read_everything(files.folder, deep=bool(rng.random() < 0.1))
        except (FormatError, SpecError) as error:
            if str(files.folder) not in str(error):
                raise Violation(f"the message does not name the file: {error}") from error
            raise
        finally:
            files.restore()
        if found.equals(self.readings[files]):
            return SAME
        if kind == "file":
            raise Violation("something else was read, and no error came")
        return INSIDE


def read_everything(folder: Path, deep: bool = False) -> Reading:
    """Opens the dataset and reads all its parts, ids by row groups, by number and by key."""
    if deep:
        report = verify(open_dataset(folder).store, deep=True, threads=1)
        if not report.ok:
            raise FormatError(report.errors[0])
    ds = open_dataset(folder)
    rows = min(len(ds), MOST_ROWS)
    codes = list(ds.codes(range(rows)))
    alphabets = [level.alphabet for level in ds.manifest.code.levels]
    for sample in codes:
        levels = [sample] if len(alphabets) == 1 else sample
        for ids, alphabet in zip(levels, alphabets, strict=True):
            if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < alphabet:
                raise Violation("an id outside the alphabet")
    if rows:
        some = ds.codes([rows - 1, 0])
        if not (np.array_equal(some[0], codes[-1]) and np.array_equal(some[1], codes[0])):
            raise Violation("a sample alone is not the sample in its row group")
    table = ds.table()
    for shard in range(min(len(ds.manifest.shards), 4)):
        reader = ds.reader(shard)
        if len(reader.chunks) != len(reader.entry.row_groups):
            raise Violation("another number of row groups")
    return Reading(codes, table, read_rejects(ds.store, ds.manifest), ds.tokenizer_files())
