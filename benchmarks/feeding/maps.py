"""The reference, and loaders that others have for arrays: all over the same memory-mapped .npy files."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from feeding.peer import BATCH, Made, Peer, ResumedEpochs, Shuffled
from feeding.tokens import Tokens


class Memmap(Peer):
    """The reference: a NumPy gather a batch."""

    def write(self, raw: Path) -> None:
        Tokens.load(raw).save(self.folder / "set", text=False)

    @cached_property
    def tokens(self) -> Tokens:
        return Tokens.load(self.folder / "set")

    @cached_property
    def keys(self) -> Any:
        return self.tokens.keys.astype(str)

    def open(self) -> Any:
        return Shuffled(len(self.tokens.codes), self.batch)

    def batch(self, ids: Any) -> Made:
        codes, labels = torch.from_numpy(self.tokens.codes[ids]), torch.from_numpy(self.tokens.labels[ids])
        return codes, labels, self.keys[ids].tolist()

    def sample(self) -> Callable[[int], Any]:
        return Samples(self).__getitem__


class Samples:
    """Map-style: one dict a sample."""

    def __init__(self, files: Memmap) -> None:
        self._codes, self._labels, self._keys = files.tokens.codes, files.tokens.labels, files.keys.tolist()

    def __len__(self) -> int:
        return len(self._codes)

    def __getitem__(self, n: int) -> dict[str, Any]:
        return {"codes": np.array(self._codes[n]), "label": int(self._labels[n]), "key": self._keys[n]}

    def __repr__(self) -> str:  # part of Grain's state
        return "Samples"


class TorchdataNodes(Memmap):
    """torchdata's nodes, a batch at a time."""

    def open(self) -> Any:
        from torchdata import nodes

        numbers = nodes.IterableWrapper(Shuffled(len(self.tokens.codes), np.asarray))
        return nodes.Loader(nodes.Mapper(numbers, self.batch))


class TorchdataStateful(Memmap):
    """torchdata's StatefulDataLoader, a sample at a time, collated by torch."""

    def open(self) -> Any:
        from torchdata.stateful_dataloader import StatefulDataLoader

        draw = torch.Generator().manual_seed(0)
        return StatefulDataLoader(Samples(self), BATCH, shuffle=True, generator=draw)  # type: ignore[arg-type]

    def made(self, batch: Any) -> Made:
        return batch["codes"], batch["label"], batch["key"]


class Grain(Memmap):
    """Grain's map dataset, a sample at a time, without threads."""

    def open(self) -> Any:
        import grain

        source = grain.MapDataset.source(Samples(self))
        alone = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        return ResumedEpochs(lambda number: source.shuffle(seed=number).batch(BATCH).to_iter_dataset(alone))

    def made(self, batch: Any) -> Made:
        return torch.from_numpy(batch["codes"]), torch.from_numpy(batch["label"]), batch["key"].tolist()
