"""`MixtureLoader`: batches from several datasets at once, in exact proportions, resumable like those of one."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any, Literal, cast, get_args

from tokenshard.errors import SpecError
from tokenshard.loading.decoding import Batch
from tokenshard.loading.loader import TokenLoader

Per = Literal["batch", "step"]
End = Literal["repeat", "stop"]
STATE_VERSION = 1


class MixtureLoader:
    """Batches ``{stream name: batch}`` of several loaders, whose samples may differ in grid, levels and columns.

    After any step, what a stream has given lies less than one sample (``per="step"``: one step) from its weight's share
    of everything given, and every rank's batch has the same size. Nothing is drawn: the mix is a function of weights
    and position. Each stream keeps an epoch and an order of its own, those of its loader.
    """

    def __init__(
        self,
        loaders: Mapping[str, TokenLoader],
        weights: Mapping[str, float],
        batch_size: int = 256,
        *,
        global_batch_size: int | None = None,
        per: Per = "batch",
        end: End = "repeat",
    ) -> None:
        """``loaders`` say datasets, columns, shuffle and selection; their batch sizes and remainders count for nothing.

        ``weights``: one number above 0 a stream; only their ratios count. ``batch_size``: samples of this rank, of all
        streams together; ``global_batch_size``: of all ranks, and goes before it. ``per``: every `batch` has samples of
        all streams, or every `step` is of one stream. ``end``: streams `repeat` without end, or the epoch of all ends
        (`stop`) before the batch that one of them cannot fill any more.
        Raises SpecError when loaders, weights and batch size do not fit together.
        """
        self.names = tuple(loaders)
        self._loaders = {name: _stream(loader) for name, loader in loaders.items()}
        self.per, self.end = per, end
        self._check(weights)
        total = sum(Fraction(str(weights[name])) for name in self.names)
        self.weights = {name: Fraction(str(weights[name])) / total for name in self.names}
        sums = list(itertools.accumulate(self.weights.values(), initial=Fraction(0)))
        self._spans = dict(zip(self.names, itertools.pairwise(sums), strict=True))
        world = next(iter(self._loaders.values())).world
        self.global_batch_size = batch_size * world if global_batch_size is None else global_batch_size
        self._given = dict.fromkeys(self.names, 0)
        """samples of the epoch, of all ranks, by stream"""
        self._fit(world)

    # -- state --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Where each stream is; small and JSON-able. May be loaded at any world size and number of threads."""
        return {
            "version": STATE_VERSION,
            "per": self.per,
            "weights": {name: str(weight) for name, weight in self.weights.items()},
            "given": dict(self._given),
            "streams": {name: loader.state_dict() for name, loader in self._loaders.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on exactly there. Raises SpecError naming what differs: streams, weights, a dataset or an order."""
        mine = self.state_dict()
        for field in ("version", "per", "weights"):
            if state.get(field) != mine[field]:
                raise SpecError(f"mixture state: {field} is {state.get(field)!r}, but this mixture has {mine[field]!r}")
        given = {name: state["given"][name] for name in self.names}
        for name, loader in self._loaders.items():
            loader.load_state_dict(state["streams"][name])
        self._given = given

    # -- iteration ----------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[dict[str, Batch]]:
        """The batches from here on: without end, or (``end="stop"``) to the end of the epoch."""
        streams = {name: loader.quotas(self._quotas(name)) for name, loader in self._loaders.items()}
        try:
            for quotas in self._steps():
                if self.end == "stop" and any(self._lacks(name, size) for name, size in quotas.items()):
                    break
                batch = {name: next(streams[name]) for name in quotas}
                for name, size in quotas.items():
                    self._given[name] += size
                yield batch
        finally:
            for stream in streams.values():
                cast(Any, stream).close()
        self._given = dict.fromkeys(self.names, 0)
        for loader in self._loaders.values():
            loader.epoch, loader.position = loader.epoch + (loader.position > 0), 0

    def _steps(self) -> Iterator[dict[str, int]]:
        """Samples of each stream in the global batches from here on."""
        if self.per == "step":
            given = dict(self._given)
            while True:
                name = self._next_stream(given)
                given[name] += self.global_batch_size
                yield {name: self.global_batch_size}
        done = sum(self._given.values())
        while True:
            yield {name: self._quota(name, done) for name in self.names}
            done += self.global_batch_size

    def _next_stream(self, given: Mapping[str, int]) -> str:
        """The stream of the next step: of those whose share is due, the one that could wait the shortest time.

        Keeps every stream within one step of its share (Tijdeman, "The chairman assignment problem", 1980).
        """
        size = self.global_batch_size
        step = sum(given.values()) // size + 1
        slack = Fraction(1, max(1, 2 * len(self.names) - 2))
        due = [name for name in self.names if step * self.weights[name] - Fraction(given[name], size) >= slack]
        return min(due, key=lambda name: (1 - slack + Fraction(given[name], size)) / self.weights[name])

    def _quota(self, name: str, done: int) -> int:
        return self._share(name, done + self.global_batch_size) - self._share(name, done)

    def _share(self, name: str, samples: int) -> int:
        """Samples of a stream among the first so many: rounded so that the streams add up."""
        start, stop = self._spans[name]
        return math.floor(samples * stop) - math.floor(samples * start)

    def _quotas(self, name: str) -> Iterator[tuple[int, int]]:
        """What a stream gives from here on: samples of a step, and which rank gets the first odd one."""
        if self.per == "step":
            yield from itertools.repeat((self.global_batch_size, 0))
        done = sum(self._given.values())
        while True:
            before = sum(self._quota(other, done) for other in self.names[: self.names.index(name)])
            yield self._quota(name, done), before
            done += self.global_batch_size

    def _lacks(self, name: str, size: int) -> bool:
        """Whether the epoch of a stream has fewer samples left."""
        loader = self._loaders[name]
        finished = loader.position == 0 and self._given[name] > 0
        return finished or loader.position + size > loader.epoch_length(loader.epoch)

    # -- checks -------------------------------------------------------------------------------------------------------

    def _check(self, weights: Mapping[str, float]) -> None:
        if not self.names or set(weights) != set(self.names):
            raise SpecError(f"a mixture needs a weight for each of its streams: {', '.join(self.names)}")
        for name, weight in weights.items():
            if not (math.isfinite(weight) and weight > 0):
                raise SpecError(f"weight of {name!r} must be a number above 0, not {weight!r}")
        for name, value, allowed in (("per", self.per, get_args(Per)), ("end", self.end, get_args(End))):
            if value not in allowed:
                raise SpecError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")
        if len({(loader.rank, loader.world) for loader in self._loaders.values()}) > 1:
            raise SpecError("the streams of a mixture must have the same rank and world")

    def _fit(self, world: int) -> None:
        if self.global_batch_size < world:
            raise SpecError(f"a global batch of {self.global_batch_size} is too small for {world} ranks")
        size = self.global_batch_size
        for name, loader in self._loaders.items():
            start, stop = self._spans[name] if self.per == "batch" else (Fraction(0), Fraction(1))
            least, most = math.floor(size * stop) - math.ceil(size * start), math.ceil(size * stop)
            most -= math.floor(size * start)
            if least < world:
                enough = math.ceil((world + 2) / self.weights[name])
                raise SpecError(
                    f"stream {name!r} may have less than a sample a rank in a batch of {size}; "
                    f"take a global batch of {enough} or per='step'"
                )
            if loader.epoch_length(loader.epoch) < most:
                raise SpecError(f"stream {name!r} has fewer samples than the {most} it gives to a batch")
            loader.global_batch_size = most


def _stream(loader: TokenLoader) -> TokenLoader:
    """A loader of its own for the mixture: epochs follow each other without a gap."""
    stream = copy.copy(loader)
    stream.remainder = "spill"
    return stream
