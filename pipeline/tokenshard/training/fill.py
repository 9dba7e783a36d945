"""Gaps of grids filled by a masked token model: what the tokens around suggest, joined to the cells that are known.

The model predicts the means of the patches that a gap hides (expected values of their ids). What these decode to is
bent so that it meets the cells around: the difference that is known there continues into the gap as a harmonic
function, the smoothest there is (Laplace's equation). The same without any tokens is what it is measured beside.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tokenshard.errors import SpecError
from tokenshard.grids.dataset import GridDataset
from tokenshard.grids.decode import Band, GridDecoder
from tokenshard.grids.georeference import Window
from tokenshard.grids.harmonic import harmonic
from tokenshard.grids.lattice import seen_codes
from tokenshard.grids.layers import decode_joined
from tokenshard.grids.normalise import physical
from tokenshard.sources.grids.opened import valid_cells
from tokenshard.sources.grids.tiles import Tile
from tokenshard.tokenizers.grid_codes import Codes, LatticeTokenizer
from tokenshard.training.folder import TrainedModel
from tokenshard.training.gain import gain_over
from tokenshard.training.heads.base import LevelHead
from tokenshard.training.heads.parallel import ParallelHead
from tokenshard.training.models.masked import MaskedModel

BANDS = ("elevation", "harmonic", "tid")
INTERPOLATED, UNKNOWN = 41, 70
"""Of GEBCO's type identifiers: interpolated by a computer; a grid whose sources are not told."""
MOST_CELLS = 1 << 26
"""Of a window that is filled at once."""
LEAST_SEEN = 0.25
"""Share of the patches of a model's window that must be known."""
Real = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class MeanModel:
    """Expected means of hidden patches, by a masked token model of tiles of a grid."""

    module: MaskedModel
    tokenizer: LatticeTokenizer
    tile: int
    """patches of a side of a tile, whose mean ids are counted from"""

    def expected(self, codes: Codes, hidden: Mask) -> Real:
        """Means [rows, columns] in steps of hidden patches; NaN where too little is known around, or a patch is not
        hidden. Windows of the model overlap by half, and count by how far a patch is from their edges."""
        rows, columns = self.module.config.encoder.grid[-2:]
        weight = np.minimum(np.arange(rows), np.arange(rows)[::-1])[:, None] + 1.0
        weight = weight * (np.minimum(np.arange(columns), np.arange(columns)[::-1]) + 1.0)
        total, weights = np.zeros(hidden.shape), np.zeros(hidden.shape)
        for place in self._windows(hidden):
            found = self._window(codes, hidden, place)
            if found is not None:
                total[place] += np.where(hidden[place], weight * found, 0)
                weights[place] += np.where(hidden[place], weight, 0)
        return np.where(weights > 0, total / np.maximum(weights, 1e-9), np.nan)

    def _windows(self, hidden: Mask) -> Iterator[tuple[slice, slice]]:
        """Places of the model that hold hidden patches."""
        sides = self.module.config.encoder.grid[-2:]
        if any(size < side for size, side in zip(hidden.shape, sides, strict=True)):
            return
        starts = [
            sorted({*range(0, size - side, max(1, side // 2)), size - side})
            for size, side in zip(hidden.shape, sides, strict=True)
        ]
        for top in starts[0]:
            for left in starts[1]:
                place = slice(top, top + sides[0]), slice(left, left + sides[1])
                if hidden[place].any():
                    yield place

    @torch.inference_mode()
    def _window(self, codes: Codes, hidden: Mask, place: tuple[slice, slice]) -> Real | None:
        part, shown = codes.part(place), codes.there[place] & ~hidden[place]
        if shown.mean() < LEAST_SEEN:
            return None
        base = self._base(codes, hidden, place)
        ids = self.tokenizer.ids(Codes(part.there, part.means - base, part.gains, part.shapes)).astype(np.int64)
        module, levels = self.module, len(ids)
        stride = module.config.encoder.stride
        by_position = shown.reshape(shown.shape[0] // stride, stride, -1, stride).all(axis=(1, 3))
        kept = torch.from_numpy(by_position.reshape(1, -1).astype(np.int64) * levels)
        visible = torch.from_numpy(np.flatnonzero(by_position))[None]
        features = module.leave(module(torch.from_numpy(ids)[None], kept, visible))
        assert isinstance(module.head, ParallelHead), "checked when the grid was opened"
        head = module.head.levels[0]
        assert isinstance(head, LevelHead), "as all of them"
        log_p = head.log_probabilities(features.flatten(0, 2))
        log_p[:, 0] = -torch.inf  # there is a value, it is only not known
        share = log_p.softmax(1).double()
        means = share @ torch.arange(share.shape[1], dtype=torch.float64) - self.tokenizer.means // 2
        grid = module.grid_of(means.view(1, -1, module.config.encoder.covered, 1).expand(-1, -1, -1, levels))
        found: Real = grid[0, 0].numpy() + base
        return found

    def _base(self, codes: Codes, hidden: Mask, place: tuple[slice, slice]) -> float:
        """What ids are counted from: the mean of what is known in a tile around a window."""
        around = tuple(
            slice(max(0, (span.start + span.stop - self.tile) // 2), (span.start + span.stop + self.tile) // 2)
            for span in place
        )
        known = codes.there[around] & ~hidden[around]
        return float(np.rint(codes.means[around][known].mean()))


def bent(values: Real, known: Mask, tokens: Real, gap: Mask) -> Real:
    """Values of a gap: what tokens say (NaN: nothing), bent to meet the known cells; else harmonic."""
    plain = harmonic(values, known, gap)
    said = np.isfinite(tokens)
    rest = harmonic(np.where(said, values - tokens, 0), known & said, gap & said)
    return np.where(said & gap, tokens + rest, plain)


class FilledGrid(GridDecoder):
    """Decodes level 1 of a grid with its gaps filled, as far as ``reach`` cells from a known one."""

    def __init__(self, dataset: GridDataset, grid: str, model: TrainedModel, reach: int = 64) -> None:
        super().__init__(dataset, grid)
        assert isinstance(model.module, MaskedModel), "of this kind"
        own = dataset.dataset.manifest.tokenizer.fingerprint
        if model.document.tokenizer != own:
            raise SpecError(f"{dataset.dataset.store.root}: its tokens are not those that the model learned from")
        if not isinstance(model.module.head, ParallelHead):
            raise SpecError("a model with the head `summed` knows no means; train one with --embedding learned")
        self._model = MeanModel(model.module, self._tokenizer, dataset.tile // self._tokenizer.patch[0])
        self._weights, self._reach = model.document.weights_sha256[:16], reach
        (self._cells_band,) = super().bands(["elevation"])
        self._last: tuple[Window, dict[str, NDArray[Any]]] | None = None

    @property
    def facts(self) -> Mapping[str, Any]:
        return {**super().facts, "tokenshard_filled_by": self._weights}

    def bands(self, kinds: Sequence[str] | None) -> tuple[Band, ...]:
        """`elevation` filled, `harmonic` interpolation alone, `tid`: which cells. Raises SpecError for others."""
        found = []
        layer = self.entry.elevation
        dtype = "float64" if layer.dtype == "float64" else "float32"
        for kind in dict.fromkeys(kinds or BANDS[:1]):
            if kind not in BANDS:
                raise SpecError(f"no band {kind!r} of a filled grid; there are: {', '.join(BANDS)}")
            name = {"elevation": layer.name, "harmonic": f"{layer.name}_harmonic", "tid": "tid"}[kind]
            fill: Any = np.uint8(0) if kind == "tid" else np.dtype(dtype).type(np.nan)
            found.append(Band(kind, name, "uint8" if kind == "tid" else dtype, fill, None))
        return tuple(found)

    def strips(
        self, window: Window, bands: Sequence[Band]
    ) -> Iterator[tuple[Window, list[NDArray[Any]]]]:  # a gap is filled as a whole
        yield window, self.read(window, bands)

    def read(self, window: Window, bands: Sequence[Band]) -> list[NDArray[Any]]:
        if window.shape[0] * window.shape[1] > MOST_CELLS:
            raise SpecError(f"a window of more than {MOST_CELLS:,} cells is not filled at once; give a smaller --bbox")
        values, known = self.known(window)
        gap = ~known & self._near(known)
        tokens = self.suggested(window, gap)
        found = {"harmonic": np.where(known, values, harmonic(values, known, gap))}
        found["elevation"] = np.where(known, values, bent(values, known, tokens, gap))
        found["tid"] = self._kinds(window, known, np.isfinite(found["elevation"]))
        return [found[band.kind].astype(band.dtype) for band in bands]

    def known(self, window: Window) -> tuple[Real, Mask]:
        """Cells in the unit of the grid (0: none), and which have a value."""
        (stored,) = super().read(window, [self._cells_band])
        known = valid_cells(stored, self.entry.elevation)
        return np.where(known, physical(stored, self.entry.elevation), 0.0), known

    def suggested(self, window: Window, gap: Mask, removed: Mask | None = None) -> Real:
        """What tokens say of the cells of a window, those that the model draws among them; NaN where nothing is said.

        ``removed``: cells whose tokens are not to be looked at.
        """
        tokenizer, lattice = self._tokenizer, self._lattice
        patch = tokenizer.patch
        top, left = window.rows.start // patch[0] * patch[0], window.columns.start // patch[1] * patch[1]
        tile = Tile(1, 0, 0, top, left, window.rows.stop - top, window.columns.stop - left)
        codes = seen_codes(tokenizer, lattice, tile, self.dataset.tile, self._codes_of)
        inset = (window.rows.start - top, window.columns.start - left)
        lost, wanted = (self._patches(mask, codes, inset) for mask in (removed, gap))
        beside = _beside(lost)
        there = codes.there & ~lost
        shapes, gains = np.where(beside, 0, codes.shapes), np.where(beside, 0, codes.gains)
        hidden = wanted & ~there
        seen = Codes(there, np.where(there, codes.means, 0), gains, shapes)
        if hidden.any():
            means = self._model.expected(seen, hidden)
            drawn = np.isfinite(means)
            seen = Codes(there | drawn, np.where(drawn, np.rint(means), seen.means), gains, shapes)
        ring = tokenizer.ring
        cells = tokenizer.field(seen)[ring * patch[0] :, ring * patch[1] :] * tokenizer.step
        height, width = window.shape
        return cells[inset[0] : inset[0] + height, inset[1] : inset[1] + width]

    def _patches(self, mask: Mask | None, codes: Codes, inset: tuple[int, int]) -> Mask:
        """Patches of a lattice with its ring that have a cell of a mask of the window."""
        patch, ring = self._tokenizer.patch, self._tokenizer.ring
        rows, columns = codes.there.shape
        whole = np.zeros((rows * patch[0], columns * patch[1]), np.bool_)
        if mask is not None:
            top, left = ring * patch[0] + inset[0], ring * patch[1] + inset[1]
            whole[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
        return np.asarray(whole.reshape(rows, patch[0], columns, patch[1]).any(axis=(1, 3)))

    def _near(self, known: Mask) -> Mask:
        from scipy import ndimage

        if not known.any():
            return np.zeros_like(known)
        return np.asarray(ndimage.distance_transform_edt(~known) <= self._reach)

    def _kinds(self, window: Window, known: Mask, there: Mask) -> NDArray[np.uint8]:
        """Type identifiers: the source's own where it has them."""
        own = np.full(known.shape, UNKNOWN, np.uint8)
        layer = self.entry.layer("source")
        if layer is not None and layer.name.lower() == "tid":
            for part in self.dataset.parts(self.grid, self.level, window, ["source"]):
                shape = (part.row["height"], part.row["width"])
                own[part.place] = decode_joined(part.row["source"], layer, shape)[0][part.inside]
        return np.where(known, own, np.where(there, INTERPOLATED, 0)).astype(np.uint8)

    @property
    def patch(self) -> int:
        """Cells of a side of a patch."""
        return max(self._tokenizer.patch)

    @property
    def window(self) -> tuple[int, ...]:
        """Rows and columns of patches that the model sees at once."""
        return self._model.module.config.encoder.grid[-2:]


def _beside(lost: Mask) -> Mask:
    """Patches that are lost or next to one: their gains and shapes know of it."""
    wide = np.pad(lost, 1)
    rows, columns = lost.shape
    parts = [wide[down : down + rows, across : across + columns] for down in range(3) for across in range(3)]
    return np.asarray(np.logical_or.reduce(parts))


def measured(grid: FilledGrid, holes: int, side: int, seed: int) -> dict[str, float]:
    """MAE and RMSE, in the unit of the grid, of cells that were removed and filled again: by the model and harmonic.

    ``holes`` squares of ``side`` cells, on patches, drawn where all cells around have a value. Raises SpecError where
    there is no such place.
    """
    patch = grid.patch
    side = max(patch, side // patch * patch)
    rim = max(side, *(patch * size for size in grid.window))
    draw = np.random.default_rng(seed)
    errors: dict[str, list[Real]] = {"model": [], "harmonic": []}
    height, width = grid.reference.height, grid.reference.width
    span = side + 2 * rim
    whole = [size // patch - span // patch for size in (height, width)]
    if min(whole) < 0:
        raise SpecError(f"{grid.entry.uri}: smaller than the {span} cells that a hole and its surroundings take")
    for _ in range(20 * holes):
        top, left = (int(draw.integers(0, size + 1)) * patch for size in whole)
        window = Window(slice(top, top + span), slice(left, left + span))
        values, known = grid.known(window)
        if not known.all():
            continue
        gap = np.zeros_like(known)
        gap[rim : rim + side, rim : rim + side] = True
        tokens = grid.suggested(window, gap, gap)
        made = {"model": bent(values, ~gap, tokens, gap), "harmonic": harmonic(values, ~gap, gap)}
        for name, filled in made.items():
            errors[name].append((filled - values)[gap])
        if len(errors["model"]) == holes:
            break
    if not errors["model"]:
        raise SpecError(f"{grid.entry.uri}: no square of {span} cells has a value everywhere; give a smaller --hole")
    found: dict[str, float] = {"holes": len(errors["model"]), "side": side}
    for name, parts in errors.items():
        all_errors = np.concatenate(parts)
        found |= {
            f"{name}_mae": float(np.abs(all_errors).mean()),
            f"{name}_rmse": float(np.sqrt((all_errors**2).mean())),
        }
    return found


def verdict_of(figures: Mapping[str, float]) -> str:
    """Whether a model is worth more than no model, by the figures of :func:`measured`."""
    return gain_over("harmonic", figures["model_rmse"] / max(figures["harmonic_rmse"], 1e-12))
