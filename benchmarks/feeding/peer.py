"""What a loader is to the benchmark.

A batch is (uint16 tensor [B, side, side], int64 tensor [B], list of B keys), whatever the loader makes of it first; a
loader that has no labels and keys gives None for them, and its row says so.
"""

from __future__ import annotations

import io
import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

BATCH = 256
BUFFER = 5000
"""Samples in the buffer of loaders that shuffle a stream."""

Made = tuple[torch.Tensor, torch.Tensor | None, list[Any] | None]

_BEFORE, _AFTER = 7, 100
"""Batches before a state is taken, and most batches that are compared after it."""


class Peer(ABC):
    """One loader over one folder."""

    note = ""
    """What a reader of its row must know."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abstractmethod
    def write(self, raw: Path) -> None:
        """Fill an empty folder from the .npy files of :class:`feeding.tokens.Tokens`."""

    @abstractmethod
    def open(self) -> Any:
        """A loader. Each iteration is an epoch in another order; new loaders begin with the same one.

        One that can be resumed has ``state_dict`` and ``load_state_dict``.
        """

    def made(self, batch: Any) -> Made:
        """What the loader delivers, as the benchmark wants it."""
        found: Made = batch
        return found

    def sample(self) -> Callable[[int], Any] | None:
        """Reads one sample by number, where the library has that."""
        return None

    @cached_property
    def loader(self) -> Any:
        return self.open()

    def epoch(self) -> Iterator[Made]:
        """The next epoch of one loader that stays open."""
        return map(self.made, self.loader)

    def resumes(self) -> tuple[bool, int] | None:
        """Whether a new loader goes on exactly where a state of another was taken, in mid-epoch; bytes of the state.

        None where there is no state.
        """
        whole = self._codes(self.open(), _BEFORE + _AFTER)
        first = self.open()
        if not hasattr(first, "state_dict"):
            return None
        begun = self._codes(first, _BEFORE)
        state, size = _stored(first.state_dict())
        del first  # some libraries allow one reader of a folder at a time
        second = self.open()
        second.load_state_dict(state)
        return np.array_equal(np.concatenate([begun, self._codes(second, _AFTER)]), whole), size

    def _codes(self, loader: Any, batches: int) -> NDArray[np.uint16]:
        taken = itertools.islice(map(self.made, loader), batches)
        return np.concatenate([np.array(codes) for codes, _, _ in taken])


def _stored(state: Any) -> tuple[Any, int]:
    """A state as it comes back from a file, and the bytes of that: JSON, or torch's own where there are tensors."""
    try:
        text = json.dumps(state)
        return json.loads(text), len(text)
    except TypeError:
        file = io.BytesIO()
        torch.save(state, file)
        return torch.load(io.BytesIO(file.getvalue()), weights_only=True), len(file.getvalue())


class Shuffled:
    """Epochs of a random-access source: sample numbers in a new order each time, a batch of them fetched at once."""

    def __init__(self, count: int, fetch: Callable[[NDArray[np.int64]], Any]) -> None:
        self._count, self._fetch, self._epoch = count, fetch, 0

    def __iter__(self) -> Iterator[Any]:
        order = np.random.default_rng(self._epoch).permutation(self._count)
        self._epoch += 1
        for first in range(0, self._count, BATCH):
            yield self._fetch(order[first : first + BATCH])


class Epochs:
    """Epochs of a library whose datasets are made anew for each, with the state of its iterators where they have one.

    ``make(epoch)`` gives an iterable.
    """

    def __init__(self, make: Callable[[int], Any]) -> None:
        self._make, self._epoch = make, 0

    def __iter__(self) -> Iterator[Any]:
        dataset = self._make(self._epoch)
        self._epoch += 1
        return iter(dataset)


class ResumedEpochs(Epochs):
    """The same for iterators with ``get_state`` and ``set_state``."""

    _state: Any = None

    def __iter__(self) -> Iterator[Any]:
        self._iterator: Any = super().__iter__()
        if self._state is not None:
            self._iterator.set_state(self._state)
            self._state = None
        return self._iterator

    def state_dict(self) -> Any:
        return self._iterator.get_state()

    def load_state_dict(self, state: Any) -> None:
        self._state = state
