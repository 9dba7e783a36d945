"""MaxSim on a device of torch is MaxSim."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tokenshard.retrieval import device
from tokenshard.retrieval.exact import Multivectors, maxsim

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("name", DEVICES)
def test_scores_are_those_of_exact_late_interaction(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    sizes = [5, 0, 1, 40, 7, 0, 12, 3]
    pages = Multivectors.of([rng.standard_normal((size, 16)).astype("f4") - 1 for size in sizes])
    query = rng.standard_normal((9, 16)).astype("f4") / 4 + 1  # most similarities are negative
    (expected,) = maxsim(Multivectors.of([query]), pages)
    monkeypatch.setattr(device, "_SIMILARITIES", 9 * 14)  # several pages at a time, and one that is more than that
    scorer = device.DeviceScorer.of(pages, name)
    tolerance = 1e-5 if name == "cpu" else 2e-2
    np.testing.assert_allclose(scorer.scores(query), expected, rtol=tolerance)
    chosen = np.array([0, 3, 6])
    np.testing.assert_allclose(scorer.scores(query, chosen, threads=2), expected[chosen], rtol=tolerance)
