"""Heads with one logit a code, or one a cluster of codes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tokenshard.training.heads.base import LevelHead, in_parts
from tokenshard.training.models.embedding import CodeEmbedding
from tokenshard.training.models.vit import initialise


class TiedHead(LevelHead):
    """The head of masked language models: logits are products of features with vectors of the codes, plus a bias.

    The vectors are a learned function of the codebook [V, d] of a level of ``embedding``, which itself gets no gradient
    here: but for the bias the head does not grow with the number of codes.
    """

    def __init__(self, features: int, embedding: CodeEmbedding, level: int) -> None:
        super().__init__()
        self.codes = self.row_cost = embedding.alphabets[level]
        # a bias behind the last layer would add the same to all logits
        self.project = nn.Sequential(
            nn.Linear(embedding.dim, features), nn.GELU(), nn.Linear(features, features, bias=False)
        )
        self.bias = nn.Parameter(torch.zeros(self.codes))
        self._source = (embedding, level)  # in a tuple: a part of the encoder, not of this module
        initialise(self)

    def logits(self, features: Tensor, vectors: Tensor) -> Tensor:
        return (features @ vectors.T).float() + self.bias

    def vectors(self) -> Tensor:
        """[V, h]."""
        embedding, level = self._source
        found: Tensor = self.project(embedding.codebook(level).detach())
        return found

    def nll(self, features: Tensor, ids: Tensor) -> Tensor:
        vectors = self.vectors()

        def part(features: Tensor, ids: Tensor) -> Tensor:
            return functional.cross_entropy(self.logits(features, vectors), ids, reduction="none")

        return in_parts(part, self.row_cost, features, ids)

    def log_probabilities(self, features: Tensor) -> Tensor:
        found: Tensor = self.logits(features, self.vectors()).log_softmax(1)
        return found


class VQLogitsHead(LevelHead):
    """VQ-Logits (arXiv:2505.10202): one logit a cluster, which all its codes share. A baseline: codes of a cluster
    cannot be told apart, so its loss is at least the mean log of the cluster sizes."""

    cluster: Tensor
    sizes: Tensor

    def __init__(self, features: int, cluster: Tensor) -> None:
        """``cluster``: int64 [V], the cluster of each code."""
        super().__init__()
        self.codes = len(cluster)
        self.register_buffer("cluster", cluster)
        self.register_buffer("sizes", torch.bincount(cluster).float(), persistent=False)
        self.row_cost = len(self.sizes)
        self.linear = nn.Linear(features, len(self.sizes))
        initialise(self)

    def nll(self, features: Tensor, ids: Tensor) -> Tensor:
        return in_parts(self._nll, self.row_cost, features, ids)

    def _nll(self, features: Tensor, ids: Tensor) -> Tensor:
        logits: Tensor = self.linear(features).float()
        own = logits.gather(1, self.cluster[ids][:, None])[:, 0]
        return (logits + self.sizes.log()).logsumexp(1) - own

    def log_probabilities(self, features: Tensor) -> Tensor:
        logits: Tensor = self.linear(features).float()
        by_cluster: Tensor = logits - (logits + self.sizes.log()).logsumexp(1, keepdim=True)
        found: Tensor = by_cluster[:, self.cluster]
        return found
