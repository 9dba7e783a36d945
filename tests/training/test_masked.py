"""Masked token modeling: ratios, masks, and that nothing of a hidden code reaches the network."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenshard.errors import SpecError
from tokenshard.spec.training import MaskSpec
from tokenshard.training.augment.draws import Draws
from tokenshard.training.masks import draw_masks, mask_ratios
from tokenshard.training.models.masked import MaskedConfig, MaskedModel, check_whole_positions
from tokenshard.training.models.vit import EncoderConfig, TokenEncoder
from tokenshard.training.sampling import draw_codes

BERT = MaskSpec(schedule="cosine", low=0, drop=0)


def encoder(**changes: Any) -> EncoderConfig:
    fields: dict[str, Any] = {"alphabets": (391,), "dim": 8, "embedding": "frozen", "grid": (8, 12), "stem": "patch"}
    return EncoderConfig(**{**fields, "stride": 2, "width": 32, "depth": 2, "heads": 2, **changes})


def model(head: str = "tied", **changes: Any) -> MaskedModel:
    torch.manual_seed(0)
    return MaskedModel(MaskedConfig(encoder=encoder(**changes), width=32, depth=1, head=head)).eval()


@pytest.mark.parametrize(
    ("spec", "mean"),
    [
        (MaskSpec(mean=0.55, low=0.5), 0.694),
        (MaskSpec(mean=0.45, low=0.4, drop=0.4), 0.607),
        (BERT, 0.637),
        (BERT.model_copy(update={"schedule": "arccos"}), 0.637),
        (BERT.model_copy(update={"schedule": "uniform"}), 0.5),
    ],
)
def test_schedules_have_the_means_of_their_papers_over_100000_draws(spec: MaskSpec, mean: float) -> None:
    ratios = mask_ratios(spec, np.random.default_rng(0).random(100_000))
    assert ratios.mean() == pytest.approx(mean, abs=0.005)
    assert spec.low <= ratios.min() < ratios.max() <= 1


def test_each_sample_hides_a_share_of_its_own_and_the_encoder_never_sees_a_hidden_code_it_dropped() -> None:
    spec = MaskSpec()
    masks = draw_masks(spec, 400, 64, 1, False, Draws(0, 0))
    hidden = (masks.kept == 0).sum(1)
    assert len(hidden.unique()) > 20
    assert float(hidden.float().mean() / 64) == pytest.approx(0.70, abs=0.02)
    assert masks.visible.shape == (400, 32)
    dropped = torch.ones(400, 64, dtype=torch.bool).scatter(1, masks.visible, False)
    assert (masks.kept[dropped] == 0).all()
    assert (masks.visible.diff(dim=1) > 0).all()


@given(
    batch=st.integers(1, 5),
    positions=st.integers(1, 40),
    levels=st.integers(1, 16),
    schedule=st.sampled_from(["cosine", "arccos", "uniform"]),
    step=st.integers(0, 1000),
)
def test_residual_levels_are_hidden_deepest_first(
    batch: int, positions: int, levels: int, schedule: Any, step: int
) -> None:
    spec = MaskSpec(schedule=schedule, low=0, drop=0)
    masks = draw_masks(spec, batch, positions, levels, True, Draws(7, step))
    ratios = mask_ratios(spec, Draws(7, step).random(batch))
    hidden = torch.arange(levels) >= masks.kept[..., None]  # [B, N, L]
    assert hidden.sum((1, 2)).tolist() == np.clip(np.ceil(ratios * positions * levels), 1, positions * levels).tolist()
    assert (hidden.int().diff(dim=2) >= 0).all()
    assert ((masks.kept >= 0) & (masks.kept <= levels)).all()


@pytest.mark.parametrize("spec", [MaskSpec(), BERT])
def test_hidden_codes_change_no_output(spec: MaskSpec) -> None:
    module = model()
    ids = torch.randint(0, 391, (4, 1, 8, 12))
    masks = draw_masks(spec, 4, 24, 1, False, Draws(0, 0))
    other = torch.where(module.by_code(masks.kept)[:, None] > 0, ids, torch.randint(0, 391, ids.shape))
    assert not torch.equal(ids, other)
    with torch.no_grad():
        difference = module(ids, *masks) - module(other, *masks)
        seen = module(ids, *masks) - module(390 - ids, *masks)
    assert float(difference.abs().max()) == 0
    assert float(seen.abs().max()) > 0


def test_deeper_hidden_levels_change_no_output() -> None:
    module = model("summed", alphabets=(16, 16, 16))
    ids = torch.randint(0, 16, (4, 3, 8, 12))
    masks = draw_masks(BERT, 4, 24, 3, True, Draws(0, 0))
    hidden = torch.arange(3)[:, None, None] >= module.by_code(masks.kept)[:, None]
    other = torch.where(hidden, torch.randint(0, 16, ids.shape), ids)
    with torch.no_grad():
        assert float((module(ids, *masks) - module(other, *masks)).abs().max()) == 0


def test_the_overlapping_stem_would_leak_and_is_refused() -> None:
    module = model()
    module.encoder.stem = TokenEncoder(encoder(stem="overlap")).stem
    ids = torch.randint(0, 391, (4, 1, 8, 12))
    positions = module.encoder.patches(module.encoder.embed(ids))
    one = ids.clone()
    one[:, :, :2, :2] = (one[:, :, :2, :2] + 1) % 391
    changed = (module.encoder.patches(module.encoder.embed(one)) - positions).abs().amax(2) > 0
    assert changed[:, 1:].any()  # a neighbour sees into the first position
    module.encoder.stem = TokenEncoder(encoder()).stem
    positions = module.encoder.patches(module.encoder.embed(ids))
    changed = (module.encoder.patches(module.encoder.embed(one)) - positions).abs().amax(2) > 0
    assert changed.sum(0).tolist() == [4] + [0] * 23
    with pytest.raises(SpecError, match="needs stem `patch`"):
        check_whole_positions(encoder(stem="overlap"))
    with pytest.raises(SpecError, match="9x12 codes is no multiple of the stride 2"):
        check_whole_positions(encoder(grid=(9, 12)))


@pytest.mark.parametrize("codes", [391, 1024])
def test_the_loss_starts_at_the_log_of_the_number_of_codes(codes: int) -> None:
    module = model(alphabets=(codes,))
    ids = torch.randint(0, codes, (16, 1, 8, 12))
    masks = draw_masks(MaskSpec(), 16, 24, 1, False, Draws(0, 0))
    loss = module.nll(module(ids, *masks), ids, masks.kept).mean()
    assert float(loss) == pytest.approx(math.log(codes), abs=0.1)


def test_neither_loss_nor_gradient_comes_from_visible_positions() -> None:
    module = model()
    ids = torch.randint(0, 391, (4, 1, 8, 12))
    masks = draw_masks(MaskSpec(), 4, 24, 1, False, Draws(0, 0))
    hidden = module(ids, *masks).detach().requires_grad_()
    nll = module.nll(hidden, ids, masks.kept)
    assert nll.shape == (int((masks.kept == 0).sum()), 4)
    nll.sum().backward()
    assert hidden.grad is not None
    rows = hidden.grad.abs().amax(2) > 0
    assert torch.equal(rows, masks.kept == 0)


def test_codes_of_positions_and_back() -> None:
    module = model(alphabets=(391, 391))
    ids = torch.randint(0, 391, (3, 2, 8, 12))
    codes = module.codes_of(ids)
    assert codes.shape == (3, 24, 4, 2)
    assert torch.equal(codes[0, 7].T, ids[0, :, 2:4, 2:4].flatten(1))
    assert torch.equal(module.grid_of(codes), ids)
    per_position = torch.arange(24)[None]
    assert module.by_code(per_position)[0, 2:4, 2:4].tolist() == [[7, 7], [7, 7]]


@pytest.mark.parametrize(("head", "levels"), [("tied", 1), ("tied", 2), ("summed", 3)])
def test_drawn_samples_are_codes_of_the_grid_and_repeatable(head: str, levels: int) -> None:
    module = model(head, alphabets=(16,) * levels)
    ids = draw_codes(module, 5, Draws(0, 0), steps=6)
    assert ids.shape == (5, levels, 8, 12)
    assert ((ids >= 0) & (ids < 16)).all()
    assert torch.equal(ids, draw_codes(module, 5, Draws(0, 0), steps=6))
    assert not torch.equal(ids, draw_codes(module, 5, Draws(1, 0), steps=6))


def test_the_network_is_one_graph() -> None:
    module = model()
    ids = torch.randint(0, 391, (2, 1, 8, 12))
    masks = draw_masks(MaskSpec(), 2, 24, 1, False, Draws(0, 0))
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert torch.equal(compiled(ids, *masks), module(ids, *masks))
