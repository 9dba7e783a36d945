"""Augmentation on the device: crops of vectors equal crops of one-hot codes, and each rule does what it says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from tokenshard.spec.training import AugmentSpec
from tokenshard.training.augment.draws import Draws
from tokenshard.training.augment.ids import replace_by_synonyms, swap_squares, synonym_table
from tokenshard.training.augment.recipe import Augmentation, smoothed_targets
from tokenshard.training.augment.vectors import (
    adapt_color,
    add_noise,
    colors,
    crop_and_resize,
    cutmix_boxes,
    mix_boxes,
    random_boxes,
    resize,
)
from tokenshard.training.codes import ids_of
from tokenshard.training.models.embedding import CodeEmbedding

CODES = 64


@pytest.fixture(scope="module")
def embedding() -> CodeEmbedding:
    torch.manual_seed(0)
    return CodeEmbedding((CODES,), 8, frozen=True)


def test_random_resized_crops_of_vectors_are_those_of_one_hot_codes_for_1000_crops(embedding: CodeEmbedding) -> None:
    worst = 0.0
    for step in range(10):
        ids = torch.randint(0, CODES, (100, 1, 16, 20), generator=torch.Generator().manual_seed(step))
        boxes = torch.from_numpy(random_boxes(100, (16, 20), (0.08, 1.0), (0.75, 4 / 3), Draws(0, step)))
        one_hot = functional.one_hot(ids[:, 0], CODES).float().movedim(-1, 1)
        wide = torch.einsum("bkhw,kd->bdhw", crop_and_resize(one_hot, boxes, (14, 14)), embedding.table)
        worst = max(worst, float((crop_and_resize(embedding(ids), boxes, (14, 14)) - wide).abs().max()))
    assert worst <= 1e-5


def test_a_crop_is_what_interpolate_makes_of_it() -> None:
    torch.manual_seed(0)
    vectors = torch.randn(60, 3, 16, 20)
    boxes = random_boxes(60, (16, 20), (0.08, 1.0), (0.5, 2.0), Draws(3, 0))
    found = crop_and_resize(vectors, torch.from_numpy(boxes), (12, 10))
    for sample, (top, left, rows, columns) in enumerate(boxes.tolist()):
        cut = vectors[sample : sample + 1, :, top : top + rows, left : left + columns]
        wanted = functional.interpolate(cut, (12, 10), mode="bicubic", antialias=True)
        assert (found[sample] - wanted[0]).abs().max() <= 1e-5
    assert torch.equal(resize(vectors, (16, 20)), vectors)


def test_boxes_keep_within_the_grid_and_the_asked_share_of_it() -> None:
    boxes = random_boxes(5000, (16, 32), (0.25, 0.5), (0.75, 4 / 3), Draws(0, 0))
    top, left, rows, columns = boxes.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + rows <= 16).all()
    assert (left + columns <= 32).all()
    area = rows * columns / (16 * 32)
    assert 0.22 < area.min() < 0.27
    assert 0.47 < area.max() < 0.54
    assert top.min() == 0
    assert (top + rows).max() == 16


def test_a_sample_of_1024_codes_moves_2048_bytes_to_the_device() -> None:
    batch = {"codes": torch.zeros(3, 32, 32, dtype=torch.uint16)}
    assert batch["codes"].nbytes / 3 == 2048
    ids = ids_of(batch, torch.device("meta"), 1)
    assert (ids.device.type, ids.dtype, ids.shape) == ("meta", torch.int64, (3, 1, 32, 32))


def test_cutmix_of_vectors_is_that_of_one_hot_codes_and_says_the_share_of_each(embedding: CodeEmbedding) -> None:
    ids = torch.randint(0, CODES, (50, 1, 8, 12), generator=torch.Generator().manual_seed(1))
    draws = Draws(0, 1)
    boxes = torch.from_numpy(cutmix_boxes(draws.beta(1, 50), (8, 12), draws))
    partner = torch.randperm(50, generator=torch.Generator().manual_seed(2))
    mixed, own = mix_boxes(embedding(ids), embedding(ids)[partner], boxes)
    one_hot = functional.one_hot(ids[:, 0], CODES).float().movedim(-1, 1)
    wide = torch.einsum("bkhw,kd->bdhw", mix_boxes(one_hot, one_hot[partner], boxes)[0], embedding.table)
    assert (mixed - wide).abs().max() <= 1e-5
    taken = 1 - boxes[:, 2] * boxes[:, 3] / (8 * 12)
    assert torch.allclose(own, taken.float())
    assert 0 <= float(own.min()) < 0.3
    assert 0.8 < float(own.max()) <= 1


def test_cutmix_covers_the_drawn_share_where_it_is_not_cut_off() -> None:
    boxes = cutmix_boxes(np.full(2000, 0.75), (32, 32), Draws(0, 0))
    whole = (boxes[:, 0] > 0) & (boxes[:, 1] > 0) & (boxes[:, :2] + boxes[:, 2:] < 32).all(1)
    shares = boxes[whole, 2] * boxes[whole, 3] / 32**2
    assert whole.sum() > 100
    assert shares.mean() == pytest.approx(0.25, abs=0.01)


def test_mixed_targets_have_the_shares_of_the_mixed_samples() -> None:
    torch.manual_seed(0)
    vectors = torch.arange(6.0)[:, None, None, None].expand(6, 2, 4, 4)
    targets, partner = torch.eye(6), torch.tensor([3, 4, 5, 0, 1, 2])
    for spec in (AugmentSpec(cutmix=1.0, mixup=0), AugmentSpec(cutmix=0, mixup=0.8)):
        augmentation = Augmentation(spec.model_copy(update={"synonyms": 0.0}), (4, 4), [])
        mixed, soft = augmentation.mixed(vectors, targets, vectors[partner], targets[partner], Draws(0, 3))
        assert 0 < float(soft.max()) < 1
        assert torch.allclose(soft.sum(1), torch.ones(6))
        assert torch.allclose(mixed.mean((1, 2, 3)), soft @ torch.arange(6.0), atol=1e-6)
    off = AugmentSpec(cutmix=0, mixup=0, synonyms=0, swap=0, noise=0, crop_scale=(1, 1))
    embedding = CodeEmbedding((CODES,), 4, frozen=True)
    ids = torch.randint(0, CODES, (6, 1, 4, 4))
    found = Augmentation(off, (4, 4), []).mixtures(ids, targets, embedding, Draws(0, 0))
    assert torch.equal(found[0], embedding(ids))
    assert found[1] is targets
    assert smoothed_targets(torch.tensor([1]), 4, 0.2).tolist() == [pytest.approx([0.05, 0.85, 0.05, 0.05])]


def test_adapted_colors_have_mean_and_deviation_of_the_partner() -> None:
    torch.manual_seed(0)
    vectors = torch.randn(8, 5, 14, 14) * torch.rand(8, 5, 1, 1) * 3 + torch.randn(8, 5, 1, 1)
    partner = torch.arange(7, -1, -1)
    chosen = torch.tensor([True, False] * 4)
    adapted = adapt_color(vectors, chosen, colors(vectors)[partner])
    for statistic in (lambda x: x.mean((2, 3)), lambda x: x.std((2, 3), unbiased=False)):
        assert (statistic(adapted)[chosen] - statistic(vectors)[partner][chosen]).abs().max() <= 1e-4
    assert torch.equal(adapted[~chosen], vectors[~chosen])
    assert not torch.equal(adapted[chosen], vectors[partner][chosen])


def test_synonyms_are_the_nearest_other_codes_by_cosine() -> None:
    torch.manual_seed(0)
    codebook = torch.randn(50, 6) * torch.rand(50, 1) * 10
    table = synonym_table(codebook, 5)
    for code in range(50):
        similarity = functional.cosine_similarity(codebook, codebook[code : code + 1])
        similarity[code] = -2
        assert table[code].tolist() == similarity.argsort(descending=True)[:5].tolist()


def test_a_share_of_the_codes_of_chosen_samples_become_synonyms() -> None:
    torch.manual_seed(0)
    table = synonym_table(torch.randn(CODES, 6), 5)
    ids = torch.randint(0, CODES, (40, 1, 16, 16))
    chosen = torch.arange(40) < 20
    changed = replace_by_synonyms(ids, [table], 0.25, chosen, Draws(0, 0))
    assert torch.equal(changed[20:], ids[20:])
    moved = changed[:20] != ids[:20]
    assert float(moved.float().mean()) == pytest.approx(0.25, abs=0.02)
    assert (table[ids[:20][moved]] == changed[:20][moved][:, None]).any(1).all()


@pytest.mark.parametrize("grid", [(16, 16), (8, 14)])
def test_a_swap_moves_two_squares_and_loses_no_code(grid: tuple[int, int]) -> None:
    ids = torch.arange(grid[0] * grid[1]).view(1, 1, *grid).repeat(200, 2, 1, 1)
    chosen = torch.arange(200) % 2 == 0
    swapped = swap_squares(ids, 0.25, chosen, Draws(0, 0))
    assert torch.equal(swapped[1::2], ids[1::2])
    assert torch.equal(swapped[:, 0], swapped[:, 1])
    flat = swapped[:, 0].flatten(1)
    assert torch.equal(flat.sort(1).values, ids[:, 0].flatten(1))
    moved = (flat != ids[:, 0].flatten(1)).sum(1)[::2]
    side = (moved.double() / 2).sqrt()
    assert torch.equal(side, side.round())
    assert 0 < float(side.max()) <= min(grid) * 0.25
    sample = int(moved.argmax()) * 2
    assert torch.equal(flat[sample][flat[sample]], ids[sample, 0].flatten())  # twice is not at all


def test_noise_is_shared_by_a_channel_and_own_by_element() -> None:
    noise = add_noise(torch.zeros(400, 8, 6, 6), torch.arange(400) < 300, 0.5, Draws(0, 0))
    assert float(noise[300:].abs().max()) == 0
    channel = noise[:300].mean((2, 3))
    assert float(channel.std()) == pytest.approx(0.5 * (1 + 1 / 36) ** 0.5, rel=0.05)
    assert float((noise[:300] - channel[:, :, None, None]).std()) == pytest.approx(0.5, rel=0.05)


def test_what_is_drawn_is_a_function_of_seed_step_and_row() -> None:
    torch.manual_seed(0)
    augmentation = Augmentation(AugmentSpec(noise=0.5, color_adapt=0.5), (8, 8), [torch.randn(CODES, 4)])
    embedding = CodeEmbedding((CODES,), 4, frozen=True)
    ids = torch.randint(0, CODES, (16, 1, 10, 12))

    def augmented(draws: Draws) -> torch.Tensor:
        return augmentation.mixtures(ids, torch.eye(16), embedding, draws)[0]

    first = augmented(Draws(0, 5))
    assert first.shape == (16, 4, 8, 8)
    torch.manual_seed(99)
    assert torch.equal(first, augmented(Draws(0, 5)))
    for other in (Draws(1, 5), Draws(0, 6), Draws(0, 5).other_view()):
        assert not torch.equal(first, augmented(other))


@pytest.mark.parametrize("part", [8, 24, 50])
def test_rows_are_given_the_same_numbers_whoever_draws_them(part: int) -> None:
    whole = Draws(3, 7)
    wanted = (whole.random(2, 100), whole.normal(100, 3, 2), whole.uniform(100), whole.beta(0.5, 100))
    assert all(len(np.unique(one)) == np.asarray(one).size for one in wanted)
    for first in range(0, 100 - part + 1, part):
        mine = Draws(3, 7, first=first)
        assert mine.rng.random() == Draws(3, 7).rng.random()
        found = (mine.random(2, part), mine.normal(part, 3, 2), mine.uniform(part), mine.beta(0.5, part))
        rows = slice(first, first + part)
        assert np.array_equal(found[0], wanted[0][:, rows])
        for one, other in zip(found[1:], wanted[1:], strict=True):
            assert np.array_equal(one, other[rows])
