"""Grids at twice the resolution of a stored level, as an upscaler draws them; written like decoded grids.

Each cell becomes four that share its area. A strip is drawn with so much around it that no border of strips shows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tokenshard.errors import SpecError
from tokenshard.grids.dataset import GridDataset
from tokenshard.grids.decode import Band, GridDecoder
from tokenshard.grids.georeference import Axis, Georeference, Window
from tokenshard.grids.normalise import physical
from tokenshard.sources.grids.opened import valid_cells
from tokenshard.sources.grids.tiles import level_size
from tokenshard.training.folder import TrainedModel
from tokenshard.training.grid_sr import upscaled
from tokenshard.training.models.upscaler import Upscaler, bicubic

RIM = 64
"""Coarser cells around a strip that are drawn with it: more than the network sees, and where gaps are filled from."""
BANDS = ("elevation", "bicubic")


class FinerGeoreference(Georeference):
    """The place of the four parts of each cell; of a reduced level no more of them than the finer level has."""

    def __init__(self, coarse: Georeference) -> None:
        entry, level = coarse.entry, coarse.level
        self.entry = entry.model_copy(update={"registration": "pixel"})
        self.level, self.cell_size = level, level / 2
        self.height, self.width = 2 * coarse.height, 2 * coarse.width
        if level % 2 == 0:
            self.height, self.width = level_size(entry.height, level // 2), level_size(entry.width, level // 2)
        self.x = None if coarse.x is None else _halved(coarse.x, self.width)
        self.y = None if coarse.y is None else _halved(coarse.y, self.height)


def _halved(axis: Axis, size: int) -> Axis:
    """The middles of the halves of each cell."""
    values = axis.values.astype(np.float64)
    spacing = np.gradient(values) if len(values) > 1 else np.full(1, axis.step or 0.0)
    if axis.step is not None:
        spacing = np.full(len(values), axis.step)
    halves = np.stack([values - spacing / 4, values + spacing / 4], axis=1).reshape(-1)[:size]
    step = None if axis.step is None else axis.step / 2
    return replace(axis, values=halves, step=step, period=None if axis.period is None else 2 * axis.period)


class UpscaledGrid(GridDecoder):
    """Decodes windows of a grid at twice the resolution of a level."""

    def __init__(self, dataset: GridDataset, grid: str, model: TrainedModel, level: int = 1) -> None:
        super().__init__(dataset, grid, level)
        assert isinstance(model.module, Upscaler), "of this kind"
        self._module, self._model = model.module, model.document.weights_sha256[:16]
        (self._seen,) = super().bands([self._module.config.input])
        self._coarse = self.reference
        self.reference = FinerGeoreference(self._coarse)
        self.entry = self.reference.entry

    @property
    def facts(self) -> Mapping[str, Any]:
        return {**super().facts, "tokenshard_bound": "none", "tokenshard_upscaled_by": self._model}

    def max_error(self, window: Window) -> float | None:
        """None: what is drawn has no bound."""
        return None

    def bands(self, kinds: Sequence[str] | None) -> tuple[Band, ...]:
        """`elevation` as the upscaler draws it, `bicubic` interpolation. Raises SpecError for others."""
        wanted = tuple(dict.fromkeys(kinds or BANDS[:1]))
        for kind in wanted:
            if kind not in BANDS:
                raise SpecError(f"no band {kind!r} of an upscaled grid; there are: {', '.join(BANDS)}")
        layer = self.entry.elevation
        dtype = "float64" if layer.dtype == "float64" else "float32"
        names = {"elevation": layer.name, "bicubic": f"{layer.name}_bicubic"}
        return tuple(Band(kind, names[kind], dtype, np.dtype(dtype).type(np.nan), None) for kind in wanted)

    def read(self, window: Window, bands: Sequence[Band]) -> list[NDArray[Any]]:
        coarse = self._coarse
        around = coarse.x is not None and coarse.x.period is not None
        rows, top = _widened(window.rows, coarse.height, False)
        columns, left = _widened(window.columns, coarse.width, around)
        heights = self._heights(Window(rows, columns))
        place = np.s_[top : top + window.shape[0], left : left + window.shape[1]]
        makers: dict[str, Callable[[Tensor], Tensor]] = {"elevation": self._module, "bicubic": bicubic}
        return [upscaled(makers[band.kind], heights)[place].astype(band.dtype) for band in bands]

    def _heights(self, window: Window) -> NDArray[np.float64]:
        """Cells of the level that is there, in the unit of the grid; NaN where there is none."""
        (stored,) = super().read(window, [self._seen])
        if self._seen.kind == "tokens":
            return stored.astype(np.float64)
        layer = self.entry.elevation
        return np.where(valid_cells(stored, layer), physical(stored, layer), np.nan)


def _widened(span: slice, size: int, around: bool) -> tuple[slice, int]:
    """Coarser cells under a range of finer ones and RIM around them; and where in what they become it begins."""
    start, stop = span.start // 2 - RIM, -(-span.stop // 2) + RIM
    if not around:
        start, stop = max(0, start), min(size, stop)
    return slice(start, stop), span.start - 2 * start
