"""The two-level head for large codebooks: first the cluster of a code, then the code within it (coarse to fine)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tokenshard.errors import SpecError
from tokenshard.tokenizers.kmeans import integer_kmeans
from tokenshard.tokenizers.nearest import build_tree, nearest
from tokenshard.training.heads.base import LevelHead, gumbel, in_parts
from tokenshard.training.models.vit import initialise

ITERATIONS = 20
REACH = 2000.0
"""Codebooks are scaled to this largest coordinate and rounded, so that the clusters are the same everywhere."""


def cluster_codes(codebook: Tensor, clusters: int | None = None, seed: int = 0) -> Tensor:
    """int64 [V]: the cluster of each code, by k-means of the codebook [V, d]; clusters are numbered without gaps.

    By default there are about 4 √V of them, which is what CTF (arXiv:2503.16194) found best for 16,384 codes: 512.
    """
    count = len(codebook)
    wanted = clusters or 2 ** round(float(np.log2(4 * count**0.5)))
    if wanted >= count:
        raise SpecError(f"{wanted} clusters are not fewer than the {count} codes; lower decoder.clusters or use tied")
    scaled = codebook.detach().cpu().double().numpy()
    points = np.round(scaled * (REACH / max(1e-12, float(np.abs(scaled).max())))).astype(np.int16)
    centroids = integer_kmeans(points, wanted, seed, ITERATIONS)
    reach = float(np.sqrt((points.astype(np.int64) ** 2).sum(axis=1).max()))
    ids, _ = nearest(points, build_tree(centroids, reach))
    return torch.from_numpy(np.unique(ids, return_inverse=True)[1].astype(np.int64))


class TwoLevelHead(LevelHead):
    """p(code) = p(cluster) p(code | cluster), a true likelihood of the code. A row costs the number of clusters plus
    the size of the largest one, instead of V.

    cluster: int64 [V], the cluster of each code. Before training all codes are equally likely.
    """

    cluster: Tensor
    place: Tensor
    members: Tensor
    codes_of: Tensor

    def __init__(self, features: int, cluster: Tensor) -> None:
        super().__init__()
        self.codes = len(cluster)
        sizes = torch.bincount(cluster)
        clusters, largest = len(sizes), int(sizes.max())
        order = cluster.argsort(stable=True)
        starts = sizes.cumsum(0) - sizes
        place = torch.empty_like(cluster)
        place[order] = torch.arange(self.codes) - starts[cluster[order]]
        self.row_cost = clusters + largest + 2 * features
        self.register_buffer("cluster", cluster)
        self.register_buffer("place", place, persistent=False)
        self.register_buffer("members", torch.arange(largest) < sizes[:, None], persistent=False)
        codes_of = torch.zeros(clusters, largest, dtype=torch.int64)
        codes_of[cluster, place] = torch.arange(self.codes)
        self.register_buffer("codes_of", codes_of, persistent=False)
        self.coarse = nn.Linear(features, clusters)
        self.query = nn.Linear(features, features)
        self.given = nn.Embedding(clusters, features)
        self.norm = nn.LayerNorm(features)
        self.fine = nn.Linear(features, largest, bias=False)
        self.fine_bias = nn.Parameter(torch.zeros(clusters, largest))
        initialise(self)
        with torch.no_grad():
            self.coarse.bias.copy_(sizes.float().log())
            nn.init.normal_(self.given.weight, std=0.02)

    def nll(self, features: Tensor, ids: Tensor) -> Tensor:
        return in_parts(self._nll, self.row_cost, features, ids)

    def _nll(self, features: Tensor, ids: Tensor) -> Tensor:
        cluster = self.cluster[ids]
        coarse = functional.cross_entropy(self.coarse(features).float(), cluster, reduction="none")
        fine = functional.cross_entropy(self._within(features, cluster), self.place[ids], reduction="none")
        return coarse + fine

    def log_probabilities(self, features: Tensor) -> Tensor:
        coarse: Tensor = self.coarse(features).float().log_softmax(1)
        out: Tensor = coarse.new_empty(len(features), self.codes)
        for cluster, members in enumerate(self.members):
            given = torch.full((len(features),), cluster, device=features.device)
            fine = self._within(features, given).log_softmax(1)
            out[:, self.codes_of[cluster][members]] = coarse[:, cluster, None] + fine[:, members]
        return out

    def sample(self, features: Tensor, temperature: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """First the cluster, then the code within it: nothing is V wide."""
        coarse = self.coarse(features).float()
        cluster = (coarse + temperature * gumbel(coarse.shape, generator, coarse.device)).argmax(1)
        fine = self._within(features, cluster)
        place = (fine + temperature * gumbel(fine.shape, generator, fine.device)).argmax(1)
        log_p = coarse.log_softmax(1).gather(1, cluster[:, None]) + fine.log_softmax(1).gather(1, place[:, None])
        return self.codes_of[cluster, place], log_p[:, 0]

    def _within(self, features: Tensor, cluster: Tensor) -> Tensor:
        """Logits [M, largest] of the places within a cluster [M]; -inf where it has no code."""
        query = self.norm(functional.gelu(self.query(features) + self.given(cluster)))
        logits: Tensor = self.fine(query).float() + self.fine_bias[cluster]
        return logits.masked_fill(~self.members[cluster], -torch.inf)
