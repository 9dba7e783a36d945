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
from tokenshard.grids.lattice import inside, own_cells, seen_cells
from tokenshard.grids.normalise import Normal, normal_of, normalised, physical, restored
from tokenshard.grids.rows import MADE, STREAMS, row_of
from tokenshard.sources.base import CodeLayout, Sample
from tokenshard.sources.grids.tiles import GridTile, inner
from tokenshard.spec.job import ConvertGrids
from tokenshard.spec.manifest import TokenizerEntry
from tokenshard.store import Store
from tokenshard.tokenizers.grid_codes import Codes, LatticeTokenizer


class Gridding(Encoding):
    """The encoding of a `convert-grids` job: what tokenizers do in any job, and more."""

    def __init__(self, spec: ConvertGrids) -> None:
        self._tokenizing = Tokenizing(spec)
        self._bound, self._guided, self._tile = spec.bound, spec.guided, spec.source.tile

    def window(self, sample: Sample, draw: np.random.Generator) -> Window:
        return Window(replace(cast(GridTile, sample), layers={}, shoalest=None, columns={}))

    def fit(self, windows: Sequence[Window], output: Store, inputs: int) -> tuple[TokenizerEntry, TileTokens]:
        fields = [replace(window, sample=_with_field(cast(GridTile, window.sample))) for window in windows]
        entry, encoder = self._tokenizing.fit(fields, output, inputs)
        tokenizer = encoder.tokenizer
        if not isinstance(tokenizer, LatticeTokenizer):
            raise SpecError(f"tokenizers of kind {tokenizer.spec.kind} have no lattice of patches, as grids need")
        if self._guided and tokenizer.spec.numerics != "integer":
            raise SpecError(
                f"--guided needs tokens that decode to the same cells everywhere; those of kind {tokenizer.spec.kind} "
                "do not: leave it out, or take a `grid` tokenizer"
            )
        return entry, TileTokens(tokenizer, tuple(encoder.tables))

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
        tokenizer = cast(LatticeTokenizer, self._tokenizing.load(pilot, output).tokenizer)
        return TileEncoder(tokenizer, bound=self._bound, guided=self._guided)


def _with_field(tile: GridTile) -> Sample:
    """A sample whose data are the values that a tokenizer is fitted to."""
    values = np.where(tile.core_valid, physical(tile.core, tile.grid.elevation), np.nan)
    return Sample(tile.key, tile.uri, values, tile.raw_bytes)


@dataclass(frozen=True)
class TileTokens:
    """Makes the tokens of tiles, and nothing else."""

    tokenizer: LatticeTokenizer
    tables: Sequence[bytes] = ()

    def encode(self, samples: Sequence[Sample]) -> Sequence[Encoded]:
        return [Encoded(self.tokens(cast(GridTile, sample))[0]) for sample in samples]

    def tokens(self, tile: GridTile) -> tuple[NDArray[np.uint16], Normal, Codes]:
        """Ids [levels, rows, columns] of a tile, where it lies, and codes of the tile with the patches around it."""
        values = physical(tile.data, tile.grid.elevation)
        normal = normal_of(inner(values, tile.tile), tile.core_valid, self.tokenizer.step)
        cells, there = seen_cells(tile, values, self.tokenizer)
        codes = self.tokenizer.codes(normalised(cells, there, normal))
        own = inside(self.tokenizer.ring, *self.tokenizer.grid(tile.tile.height, tile.tile.width))
        ids = self.tokenizer.ids(codes.part(own))
        codes.means[own] = self.tokenizer.codes_of(ids).means
        return ids, normal, codes

    def size(self, sample: Sample, ids: NDArray[Any]) -> tuple[int, ...]:
        tile = cast(GridTile, sample).tile
        return tile.height, tile.width


@dataclass(frozen=True)
class TileEncoder(TileTokens):
    """Makes all columns of a tile."""

    bound: str = "lossless"
    guided: bool = False

    def encode(self, samples: Sequence[Sample]) -> Sequence[Encoded]:
        return [self._encoded(cast(GridTile, sample)) for sample in samples]

    def _encoded(self, tile: GridTile) -> Encoded:
        ids, normal, codes = self.tokens(tile)
        field = self.tokenizer.cells_within(codes, (tile.tile.height, tile.tile.width))
        guide = own_cells(self.tokenizer, ids, normal, tile.core.shape) if self.guided else None
        return Encoded(ids, row_of(tile, normal, restored(field, normal), self.bound, guide))
