"""Balanced assignment: prices at which codes are used equally, as a regulariser of learned codebooks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tokenshard.errors import SpecError
from tokenshard.quantizers.balance import balancing_prices
from tokenshard.quantizers.registry import QUANTIZERS, STORED, make_quantizer, trainable_quantizer
from tokenshard.quantizers.search import nearest_in_training
from tokenshard.training.metrics import code_statistics


def crowded(count: int) -> torch.Tensor:
    """Latents [count, 4] of which nine in ten are close together."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(count, 4, generator=generator)
    rows[: 9 * count // 10] *= 0.1
    return rows


def perplexity(ids: torch.Tensor, size: int) -> float:
    return code_statistics(torch.bincount(ids.flatten(), minlength=size)).perplexity


def test_at_the_prices_every_code_is_chosen_about_equally_often() -> None:
    rows, codes = crowded(4096), torch.randn(64, 4, generator=torch.Generator().manual_seed(1))
    prices = balancing_prices(rows, codes, 0.3)
    plain = perplexity(nearest_in_training(rows, codes), 64)
    balanced = perplexity(nearest_in_training(rows, codes, prices), 64)
    assert plain < 20
    assert balanced > 58


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vq", {"ema": False, "init": "uniform"}),
        ("vq", {"restart": 0.0}),
        ("pq", {"parts": 2, "restart": 0.0}),
    ],
    ids=["by gradient", "by moving averages", "pq"],
)
def test_training_with_balance_spreads_the_ids_of_later_encoding(name: str, options: dict[str, Any]) -> None:
    found = {}
    z = crowded(2048).reshape(2, 32, 32, 4).permute(0, 3, 1, 2)
    for balance in (0.0, 0.3):
        quantizer = make_quantizer(name, dim=4, size=64, balance=balance, **options).train()
        parameters = list(quantizer.parameters())
        optimizer = torch.optim.Adam(parameters, 0.02) if parameters else None
        for _ in range(60):
            loss = quantizer(z).loss
            if optimizer:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        ids = quantizer.eval().encode(z)
        found[balance] = min(perplexity(level, 64) for level in ids.unbind(1))
    assert found[0.3] > 58 > found[0.0] + 3, found


def test_what_trained_quantizers_are_stored_as_is_not_among_those_to_train() -> None:
    assert "lookup" not in QUANTIZERS
    assert list(STORED) == ["lookup"]
    assert make_quantizer("lookup", dim=2, levels=[4]).levels == (4,)
    with pytest.raises(SpecError, match="is what trained ones are stored as; train one of vq, simvq, vqbridge"):
        trainable_quantizer("lookup", dim=2, size=4)
