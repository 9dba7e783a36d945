"""Gathered rows -> batches of tensors: the last step of the loader, whole chunks of batches at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from tokenshard.codecs.base import Grids, Ids, id_dtype, sample_sizes
from tokenshard.loading.blocks import Gathered, is_fixed_width
from tokenshard.loading.crop import Crop
from tokenshard.loading.order import Longs
from tokenshard.shards.dataset import Dataset

CODES = "codes"
Batch = dict[str, Any]
Spans = Sequence[tuple[int, int]]
"""Rows [start, end) of a chunk that each batch gets."""


@dataclass(frozen=True)
class Decoder:
    """Makes the batches of a chunk. ``columns`` may hold `codes`, of which the first ``levels`` levels are given."""

    dataset: Dataset
    columns: tuple[str, ...]
    levels: int
    pin: bool = False
    crop: Crop | None = None
    seed: int = 0

    def batches(self, rows: Gathered, spans: Spans, samples: tuple[Longs, Longs] | None = None) -> list[Batch]:
        """One dict a span, of the gathered rows. ``samples``: their numbers in the dataset and epochs, for crops.

        Raises FormatError on damage.
        """
        batches: list[Batch] = [{} for _ in spans]
        for name in self.columns:
            if name == CODES:
                if self.crop is not None and samples is not None:
                    self._crops(self.crop, rows, spans, batches, *samples)
                else:
                    self._codes(rows, spans, batches)
                continue
            fixed = is_fixed_width(self.dataset.schema.field(name).type)
            values = torch.from_numpy(rows.column(name)) if fixed else rows.objects(name)
            for (start, end), batch in zip(spans, batches, strict=True):
                batch[name] = values[start:end]
        return batches

    def _codes(self, rows: Gathered, spans: Spans, batches: list[Batch]) -> None:
        fixed, grids, count = self.dataset.fixed_grid, self._grids(rows), len(rows)
        sizes = sample_sizes(grids) if fixed is None else np.full(count, int(np.prod(fixed)), np.int64)
        out = self._ids(rows, grids, int(sizes.sum()))
        if fixed is not None:
            shaped = out.view(self.levels, count, *fixed)
            shaped = shaped[0] if self.levels == 1 else shaped.transpose(0, 1).contiguous()
            for (start, end), batch in zip(spans, batches, strict=True):
                batch[CODES] = shaped[start:end]
            return
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
        for (start, end), batch in zip(spans, batches, strict=True):
            first, last = int(offsets[start]), int(offsets[end])
            batch[CODES] = out[0, first:last] if self.levels == 1 else out[:, first:last]
            batch["grid"] = torch.from_numpy(np.ascontiguousarray(grids[start:end]))
            batch["offsets"] = torch.from_numpy(offsets[start : end + 1] - first)

    def _crops(
        self, crop: Crop, rows: Gathered, spans: Spans, batches: list[Batch], sample: Longs, epoch: Longs
    ) -> None:
        grids = self._grids(rows)
        corners = crop.corners(grids, self.seed, epoch, sample)
        ids = self._ids(rows, grids, int(sample_sizes(grids).sum())).numpy()
        cut = [torch.from_numpy(crop.cut(level, grids, corners)) for level in ids]
        out = cut[0] if self.levels == 1 else torch.stack(cut, 1)
        out = out.pin_memory() if self.pin else out
        for (start, end), batch in zip(spans, batches, strict=True):
            batch[CODES] = out[start:end]

    def _grids(self, rows: Gathered) -> Grids:
        fixed = self.dataset.fixed_grid
        return rows.grids() if fixed is None else np.broadcast_to(np.array(fixed, np.int32), (len(rows), len(fixed)))

    def _ids(self, rows: Gathered, grids: Grids, total: int) -> torch.Tensor:
        """The tokenizer's ids of all rows, [levels, total]."""
        columns = self.dataset.manifest.code.columns[: self.levels]
        dtype = id_dtype(max(level.alphabet for level in self.dataset.manifest.code.levels))
        out = self._empty(len(columns) * total, dtype).view(len(columns), total)
        stored: list[Ids] = [
            ids if ids.dtype == id_dtype(spec.alphabet) else np.empty(total, id_dtype(spec.alphabet))
            for ids, spec in zip(out.numpy(), columns, strict=True)
        ]
        rows.codes(grids, [spec.alphabet for spec in columns], stored)
        for level, ids in enumerate(stored):
            remap = self.dataset.manifest.code.levels[level].remap
            if remap is not None:
                out.numpy()[level] = np.array(remap, dtype)[ids]
            elif ids.dtype != dtype:
                out.numpy()[level] = ids
        return out

    def _empty(self, size: int, dtype: type[np.uint16] | type[np.int32]) -> torch.Tensor:
        if self.pin:
            return torch.empty(size, dtype=getattr(torch, dtype.__name__), pin_memory=True)
        # Arrow keeps what is freed for a while; fresh pages from the system would cost more than filling them.
        memory = pa.allocate_buffer(size * np.dtype(dtype).itemsize)
        return torch.from_numpy(np.frombuffer(memory, dtype))
