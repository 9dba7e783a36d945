"""What predicts codes from features: the contract of heads, and the walk over rows in parts of bounded memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

LOGITS = 1 << 23
"""Numbers a head may hold at a time, whatever the number of rows and codes."""


class Head(nn.Module, ABC):
    """Predicts the hidden codes of M places from features [M, h]. Codes are ids [M, L], of which the first ``kept`` [M]
    levels are known."""

    by_level: bool = False
    """whether it can be asked for the last levels alone"""

    @abstractmethod
    def nll(self, features: Tensor, ids: Tensor, kept: Tensor) -> Tensor:
        """Negative log-likelihood of the hidden codes of each place, float32 [M], in nats."""

    @abstractmethod
    def sample(
        self, features: Tensor, ids: Tensor, kept: Tensor, temperature: float, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Ids [M, L] whose hidden levels are drawn, and the log-likelihood [M] of what was drawn."""


class LevelHead(nn.Module, ABC):
    """Predicts one level: a distribution over V codes from features [M, h]."""

    codes: int
    row_cost: int
    """numbers held for a row in training"""

    @abstractmethod
    def nll(self, features: Tensor, ids: Tensor) -> Tensor:
        """-log p of ids [M], float32 [M]."""

    @abstractmethod
    def log_probabilities(self, features: Tensor) -> Tensor:
        """float32 [M, V]. Training never makes anything so wide of all rows at once."""

    def likeliest(self, features: Tensor) -> Tensor:
        """The id int64 [M] with the highest probability."""
        parts = torch.split(features, max(1, LOGITS // self.codes))
        return torch.cat([self.log_probabilities(part).argmax(1) for part in parts])

    def sample(self, features: Tensor, temperature: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Ids int64 [M] drawn from the distribution at that temperature, and their log p (at temperature 1)."""
        ids, scores = [], []
        for part in torch.split(features, max(1, LOGITS // self.codes)):
            log_p = self.log_probabilities(part)
            drawn = (log_p + temperature * gumbel(log_p.shape, generator, log_p.device)).argmax(1)
            ids.append(drawn)
            scores.append(log_p.gather(1, drawn[:, None])[:, 0])
        return torch.cat(ids), torch.cat(scores)


def in_parts(function: Callable[..., Tensor], row_cost: int, *rows: Tensor) -> Tensor:
    """``function`` of tensors with the same number of rows, a part of the rows at a time.

    Where there are several parts, what they held is computed again in the backward pass instead of being kept.
    """
    size = max(1, LOGITS // row_cost)
    if len(rows[0]) <= size:
        return function(*rows)
    parts = zip(*(torch.split(tensor, size) for tensor in rows), strict=True)
    return torch.cat([checkpoint(function, *part, use_reentrant=False) for part in parts])


def gumbel(shape: torch.Size | tuple[int, ...], generator: torch.Generator, device: torch.device) -> Tensor:
    """float32 numbers of the standard Gumbel distribution."""
    uniform = torch.rand(shape, generator=generator, device=device).clamp_(1e-20, 1 - 1e-7)
    return -(-uniform.log()).log()
