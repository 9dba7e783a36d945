"""Tiles of grids as a job encodes them: tokens for training, and beside them the cells within a bound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from tokenshard.engine.encoding import Encoded, Encoding, Window
from tokenshard.engine.job_folder import PilotResult
from tokenshard.engine.tokenizing import Tokenizing
from tokenshard.errors import SpecError
from tokenshard.grids.normalise import Normal, normal_of, normalised, physical, restored
from tokenshard.grids.rows import MADE, STREAMS, row_of
from tokenshard.sources.base import CodeLayout, Sample
from tokenshard.sources.grids.tiles import HALO, GridTile, inner
from tokenshard.spec.job import ConvertGrids
from tokenshard.spec.manifest import TokenizerEntry
from tokenshard.store import Store
from tokenshard.tokenizers.base import Tokenizer


class Gridding(Encoding):
    """The encoding of a `convert-grids` job: what tokenizers do in any job, and more."""

    def __init__(self, spec: ConvertGrids) -> None:
        self._tokenizing = Tokenizing(spec)
        self._bound, self._tile = spec.bound, spec.source.tile

    def window(self, sample: Sample, draw: np.random.Generator) -> Window:
        return Window(replace(cast(GridTile, sample), layers={}, shoalest=None, columns={}))

    def fit(self, windows: Sequence[Window], output: Store, inputs: int) -> tuple[TokenizerEntry, TileTokens]:
        fields = [replace(window, sample=_with_field(cast(GridTile, window.sample))) for window in windows]
        entry, encoder = self._tokenizing.fit(fields, output, inputs)
        return entry, TileTokens(encoder.tokenizer, tuple(encoder.tables))

    def layout(self, tokenizer: TokenizerEntry, output: Store) -> CodeLayout:
        layout = self._tokenizing.layout(tokenizer, output)
        if len(layout.downsample) != 2 or any(self._tile % step for step in layout.downsample):
            raise SpecError(
                f"tiles of {self._tile} cells are not made of whole patches of {list(layout.downsample)}; choose "
                "another --tile or tokenizer"
            )
        preprocess = {**layout.preprocess, "bound": self._bound}
        return replace(layout, made=MADE, streams=STREAMS, preprocess=preprocess)

    def load(self, pilot: PilotResult, output: Store) -> TileEncoder:
        return TileEncoder(self._tokenizing.load(pilot, output).tokenizer, bound=self._bound)


def _with_field(tile: GridTile) -> Sample:
    """A sample whose data are what a tokenizer sees of a tile."""
    values, valid = physical(tile.core, tile.grid.elevation), tile.core_valid
    field = normalised(values, valid, normal_of(values, valid, tile.grid.elevation))
    return Sample(tile.key, tile.uri, field.astype(np.float32), tile.raw_bytes)


@dataclass(frozen=True)
class TileTokens:
    """Makes the tokens of tiles, and nothing else."""

    tokenizer: Tokenizer
    tables: Sequence[bytes] = ()

    def encode(self, samples: Sequence[Sample]) -> Sequence[Encoded]:
        return [Encoded(self.tokens(cast(GridTile, sample))[0]) for sample in samples]

    def tokens(self, tile: GridTile) -> tuple[NDArray[Any], Normal]:
        """Ids [levels, rows, columns] of a tile, and how it was normalised."""
        layer = tile.grid.elevation
        values = physical(tile.data, layer)
        normal = normal_of(inner(values, tile.tile), tile.core_valid, layer)
        # patches at the lower and right edge of a grid are made whole by the cells the halo repeats
        height, width = self._whole(tile)
        part = (slice(HALO, HALO + height), slice(HALO, HALO + width))
        field: NDArray[Any] = normalised(values[part], tile.valid[part], normal)
        return self.tokenizer.encode(field[None])[0], normal

    def _whole(self, tile: GridTile) -> tuple[int, int]:
        steps = self.tokenizer.spec.downsample
        sides = (tile.tile.height, tile.tile.width)
        return tuple(-(-side // step) * step for side, step in zip(sides, steps, strict=True))  # type: ignore[return-value]

    def size(self, sample: Sample, ids: NDArray[Any]) -> tuple[int, ...]:
        tile = cast(GridTile, sample).tile
        return tile.height, tile.width


@dataclass(frozen=True)
class TileEncoder(TileTokens):
    """Makes all columns of a tile."""

    bound: str = "lossless"

    def encode(self, samples: Sequence[Sample]) -> Sequence[Encoded]:
        return [self._encoded(cast(GridTile, sample)) for sample in samples]

    def _encoded(self, tile: GridTile) -> Encoded:
        ids, normal = self.tokens(tile)
        field = self.tokenizer.decode(ids[None], (tile.tile.height, tile.tile.width))[0]
        return Encoded(ids, row_of(tile, normal, restored(field, normal), self.bound))
