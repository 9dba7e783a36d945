"""Quantizers without a codebook: ids and vectors are a bijection over the whole range, in any precision."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from tokenshard.quantizers.registry import make_quantizer


@pytest.fixture(params=["float32", "bfloat16"], autouse=True)
def precision(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test once as it is, and once inside an autocast to bfloat16, which has 8 bits of mantissa."""
    with torch.autocast("cpu", torch.bfloat16, enabled=request.param == "bfloat16"):
        yield


@pytest.mark.parametrize("values", [[8, 6, 5], [8, 5, 5, 5], [7, 5, 5, 5, 5], [8, 8, 8, 5, 5, 5], [2, 3]], ids=str)
def test_fsq_ids_and_vectors_are_a_bijection(values: list[int]) -> None:
    quantizer = make_quantizer("fsq", dim=len(values), values=values)
    ids = torch.arange(math.prod(values)).reshape(1, 1, -1)
    vectors = quantizer.vectors(ids)
    digits = np.array(list(itertools.product(*(range(value) for value in reversed(values)))))[:, ::-1]
    half = np.array(values) // 2
    assert np.array_equal(vectors[0].T.numpy(), ((digits - half) / half).astype(np.float32))
    # latents whose squeezed place is the vector itself
    reach = (torch.tensor(values) - 1) * 1.001 / 2
    move = (torch.tensor(values) % 2 == 0) / 2
    bounded = vectors * torch.tensor(half)[None, :, None]
    z = torch.atanh((bounded + move[None, :, None]) / reach[None, :, None]) - torch.atanh(move / reach)[None, :, None]
    assert torch.equal(quantizer.encode(z), ids)
    assert torch.equal(quantizer(z).ids, ids)
    assert torch.equal(quantizer(z).vectors, vectors)


@pytest.mark.parametrize("name", ["lfq", "bsq"])
def test_all_ids_of_sign_quantizers_survive_a_round_trip(name: str) -> None:
    quantizer = make_quantizer(name, dim=16)
    ids = torch.arange(1 << 16).reshape(1, 1, 256, 256)
    vectors = quantizer.vectors(ids)
    assert torch.equal(quantizer.encode(0.01 * vectors), ids)
    assert torch.equal(quantizer(vectors).ids, ids)
    assert len(vectors.flatten(2)[0].T.unique(dim=0)) == 1 << 16
    length = vectors.square().sum(1).sqrt()
    torch.testing.assert_close(length, torch.full_like(length, 1.0 if name == "bsq" else 4.0))
