"""Crops: parts of the stored grids, of one shape, the same for everyone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from shards.conftest import Rows
from tokenshard.errors import SpecError
from tokenshard.loading.crop import Crop
from tokenshard.loading.loader import TokenLoader
from tokenshard.loading.order import Shuffle
from tokenshard.shards.dataset import Dataset

Make = Callable[..., tuple[Dataset, list[Rows]]]
COUNTS = (300, 7, 193)
LARGE = "height >= 12 and width >= 16"
KINDS: list[tuple[dict[str, Any], tuple[int, ...], str | None]] = [
    ({}, (3, 5), None),
    ({"varied": True}, (3, 4), LARGE),
    ({"varied": True, "codecs": ("context", "context")}, (3, 4), LARGE),
    ({"rank": 1, "varied": True}, (4,), "num_tokens >= 4"),
    ({"rank": 3, "codecs": ("pack", "context")}, (1, 3, 2), None),
    ({"alphabet": 100_000}, (8, 8), None),
]


@pytest.mark.parametrize(("options", "size", "where"), KINDS, ids=repr)
def test_a_crop_is_the_part_of_the_grid_at_its_corner(
    datasets: Make, options: dict[str, Any], size: tuple[int, ...], where: str | None
) -> None:
    dataset, written = datasets(*COUNTS, **options)
    samples = [sample for rows in written for sample in rows.samples()]
    loader = TokenLoader(dataset, 50, Shuffle(3, 2), 6, crop=size, where=where, rank=0, world=1)
    loader.set_epoch(3)
    numbers = np.concatenate(list(loader.sample_numbers()))
    found = torch.cat([batch["codes"] for batch in loader]).numpy()
    several = len(written[0].batch.ids) > 1
    assert found.shape[-len(size) :] == size
    assert found.dtype == samples[0].dtype
    grids = np.array([samples[n].shape[several:] for n in numbers], np.int32)
    corners = Crop(size).corners(grids, 6, np.full(len(numbers), 3), numbers)
    for codes, number, corner in zip(found, numbers, corners.tolist(), strict=True):
        part = tuple(slice(at, at + length) for at, length in zip(corner, size, strict=True))
        assert np.array_equal(codes, samples[number][(..., *part)])


def test_random_crops_reach_every_place_evenly_and_change_with_epoch_and_seed() -> None:
    grids, numbers = np.full((30_000, 2), 8, np.int32), np.arange(30_000)
    drawn = {
        (seed, epoch): Crop((6, 4)).corners(grids, seed, np.full(30_000, epoch), numbers)
        for seed in range(2)
        for epoch in range(2)
    }
    for corners in drawn.values():
        counts = np.histogram2d(*corners.T, bins=[range(4), range(6)])[0]
        assert abs(counts / 2000 - 1).max() < 0.1
    assert abs(np.corrcoef(np.concatenate([corners.T for corners in drawn.values()])) - np.eye(8)).max() < 0.03


def test_ranks_batches_and_threads_change_no_crop(datasets: Make) -> None:
    dataset, _ = datasets(*COUNTS)
    options: dict[str, Any] = {"shuffle": Shuffle(3, 2), "seed": 1, "crop": (2, 2), "columns": ["key", "codes"]}

    def crops(loaders: list[TokenLoader]) -> dict[str, list[Any]]:
        batches = [(epoch, batch) for loader in loaders for epoch in range(2) for batch in loader]
        rows = [(epoch, *row) for epoch, batch in batches for row in zip(*batch.values(), strict=True)]
        return {f"{epoch} {key}": codes.tolist() for epoch, key, codes in rows}

    alone = crops([TokenLoader(dataset, 40, rank=0, world=1, threads=0, **options)])
    ranks = [TokenLoader(dataset, global_batch_size=48, rank=rank, world=3, threads=2, **options) for rank in range(3)]
    assert crops(ranks) == alone


def test_a_centre_crop_is_in_the_middle(datasets: Make) -> None:
    dataset, written = datasets(*COUNTS)
    batch = next(iter(TokenLoader(dataset, 20, crop=Crop((2, 4), "centre"))))
    assert np.array_equal(batch["codes"].numpy(), [codes[3:5, 2:6] for codes in written[0].samples()[:20]])


def test_crops_that_do_not_fit_are_refused(datasets: Make) -> None:
    dataset, _ = datasets(*COUNTS, varied=True)
    for crop, message in (
        ((3,), r"crop=\(3,\) does not fit token grids with 2 axes"),
        ((0, 3), "does not fit"),
        (Crop((2, 2), "left"), "at one of random, centre, not 'left'"),  # type: ignore[arg-type]
    ):
        with pytest.raises(SpecError, match=message):
            TokenLoader(dataset, crop=crop)
    with pytest.raises(SpecError, match=r"there is a sample of .* leave such samples out with where="):
        list(TokenLoader(dataset, crop=(7, 7)))
