"""What the methods that learn nothing from a sample have in common: `fp16` and `bits`."""

from __future__ import annotations

from typing import Self

from tokenshard.retrieval.compression.base import Arrays, Compressor, Config, numbers
from tokenshard.retrieval.compression.checks import checked_sample
from tokenshard.retrieval.exact import Multivectors


class Untrained(Compressor):
    """All there is to know is the number of dimensions."""

    def __init__(self, dimensions: int) -> None:
        self.dimensions = dimensions

    @classmethod
    def parse(cls, arguments: tuple[str, ...]) -> Config:
        return numbers(cls.name, arguments, {}, 0)

    @classmethod
    def fit(cls, sample: Multivectors, seed: int, options: Config) -> Self:
        return cls(checked_sample(sample).shape[1])

    def config(self) -> Config:
        return {"dimensions": self.dimensions}

    def arrays(self) -> Arrays:
        return {}

    @classmethod
    def from_state(cls, config: Config, arrays: Arrays) -> Self:
        return cls(int(config["dimensions"]))
