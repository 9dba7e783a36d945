"""Heads for large codebooks and residual codes: true likelihoods, found without anything as wide as the codebook."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tokenshard.errors import SpecError
from tokenshard.quantizers.lookup import Lookup
from tokenshard.training.heads import base
from tokenshard.training.heads.base import LevelHead
from tokenshard.training.heads.flat import TiedHead, VQLogitsHead
from tokenshard.training.heads.parallel import ParallelHead
from tokenshard.training.heads.summed import SummedHead
from tokenshard.training.heads.two_level import TwoLevelHead, cluster_codes
from tokenshard.training.models.embedding import CodeEmbedding

V, H = 200, 16


def embedding(codes: int = V, levels: int = 1) -> CodeEmbedding:
    torch.manual_seed(0)
    return CodeEmbedding((codes,) * levels, 8, frozen=True)


def stirred(head: LevelHead) -> LevelHead:
    """The head with weights that are not those of the start."""
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return head


def heads() -> list[LevelHead]:
    book = embedding()
    cluster = cluster_codes(book.table, 20)
    return [stirred(head) for head in (TiedHead(H, book, 0), TwoLevelHead(H, cluster), VQLogitsHead(H, cluster))]


@pytest.mark.parametrize("head", heads(), ids=lambda head: type(head).__name__)
def test_the_loss_is_that_of_the_explicit_distribution(head: LevelHead) -> None:
    features, ids = torch.randn(500, H), torch.randint(0, V, (500,))
    log_p = head.log_probabilities(features)
    assert torch.allclose(log_p.exp().sum(1), torch.ones(500), atol=1e-5)
    assert (head.nll(features, ids) + log_p.gather(1, ids[:, None])[:, 0]).abs().max() <= 1e-5


def test_vq_logits_are_the_softmax_over_all_codes_of_the_logit_of_their_cluster() -> None:
    head = heads()[2]
    assert isinstance(head, VQLogitsHead)
    features = torch.randn(50, H)
    explicit = head.linear(features)[:, head.cluster].log_softmax(1)
    assert (head.log_probabilities(features) - explicit).abs().max() <= 1e-5
    floor = head.sizes[head.cluster].log().mean()
    assert head.nll(features, torch.randint(0, V, (50,))).mean() >= 0.5 * floor


@pytest.mark.parametrize("codes", [200, 1024])
def test_two_levels_start_with_all_codes_equally_likely(codes: int) -> None:
    head = TwoLevelHead(H, cluster_codes(embedding(codes).table))
    nll = head.nll(torch.nn.functional.layer_norm(torch.randn(400, H), (H,)), torch.randint(0, codes, (400,)))
    assert float(nll.mean()) == pytest.approx(math.log(codes), abs=0.1)


@pytest.mark.parametrize("head", heads(), ids=lambda head: type(head).__name__)
def test_samples_have_the_frequencies_of_the_distribution_and_their_likelihood(head: LevelHead) -> None:
    features = torch.randn(1, H).expand(20_000, -1)
    ids, log_p = head.sample(features, 1.0, torch.Generator().manual_seed(0))
    p = head.log_probabilities(features[:1])[0]
    assert torch.allclose(log_p, p[ids], atol=1e-5)
    found = torch.bincount(ids, minlength=V) / 20_000
    assert (found - p.exp()).abs().sum() < 0.12  # 200 codes: about 0.08 by chance


class Widest(TorchDispatchMode):
    """The largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else [made]:
            if isinstance(one, torch.Tensor):
                self.numel = max(self.numel, one.numel())
        return made


@pytest.mark.parametrize("kind", [TwoLevelHead, VQLogitsHead])
def test_nothing_as_wide_as_a_large_codebook_is_made(kind: type[LevelHead]) -> None:
    codes, rows = 16_384, 4096
    cluster = torch.arange(codes) % 512
    head = kind(H, cluster)  # type: ignore[call-arg]
    features = torch.randn(rows, H, requires_grad=True)
    with Widest() as widest:
        head.nll(features, torch.randint(0, codes, (rows,))).mean().backward()  # type: ignore[no-untyped-call]
    assert widest.numel <= rows * 600 < rows * codes / 20


def test_rows_are_taken_in_parts_with_the_same_loss_and_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    for head in heads():
        features, ids = torch.randn(300, H), torch.randint(0, V, (300,))
        results = []
        for limit in (base.LOGITS, 40 * head.row_cost):
            monkeypatch.setattr(base, "LOGITS", limit)
            own = features.clone().requires_grad_()
            with Widest() as widest:
                loss = head.nll(own, ids)
                loss.sum().backward()  # type: ignore[no-untyped-call]
            results.append((loss, own.grad, widest.numel))
        (loss, gradient, wide), (parts, parts_gradient, narrow) = results
        assert torch.allclose(loss, parts, atol=1e-6)
        assert gradient is not None
        assert parts_gradient is not None
        assert torch.allclose(gradient, parts_gradient, atol=1e-5)
        assert narrow < wide or not isinstance(head, TiedHead)  # those of the others are narrow as it is


def test_clusters_hold_similar_codes_and_are_numbered_without_gaps() -> None:
    torch.manual_seed(0)
    centres = 10 * torch.randn(12, 8)
    codebook = (centres[:, None] + 0.1 * torch.randn(12, 20, 8)).flatten(0, 1)
    cluster = cluster_codes(codebook, 12)
    assert cluster.unique().tolist() == list(range(int(cluster.max()) + 1))
    first = cluster.view(12, 20)
    assert all(len(group.unique()) <= 2 for group in first)
    assert len(cluster_codes(torch.randn(1024, 8)).unique()) == 128  # the power of two next to 4 √V
    with pytest.raises(SpecError, match="200 clusters are not fewer than the 200 codes"):
        cluster_codes(embedding().table, 200)


def test_parallel_levels_are_independent() -> None:
    book = embedding(levels=2)
    head = ParallelHead(stirred(TiedHead(H, book, level)) for level in range(2))
    features, ids = torch.randn(50, H), torch.randint(0, V, (50, 2))
    kept = torch.zeros(50, dtype=torch.int64)
    parts = [level.nll(features, ids[:, n]) for n, level in enumerate(head.levels)]  # type: ignore[operator]
    assert torch.allclose(head.nll(features, ids, kept), parts[0] + parts[1])
    drawn, score = head.sample(features, ids, kept, 1.0, torch.Generator().manual_seed(0))
    assert torch.allclose(score, -head.nll(features, drawn, kept), atol=1e-4)


def residual_codes(rows: int, depth: int = 4) -> tuple[CodeEmbedding, torch.Tensor]:
    """A residual codebook and codes as its quantizer makes them."""
    torch.manual_seed(1)
    books = [torch.randn(64, 8) * 0.25**level for level in range(depth)]
    book = CodeEmbedding((64,) * depth, 8, frozen=True)
    book.fill(books)
    return book, Lookup.of(books).encode(torch.randn(rows, 8, 1))[..., 0]


def test_the_density_of_the_summed_head_is_that_of_the_mixture() -> None:
    book, ids = residual_codes(40)
    head = SummedHead(H, book, 3)
    features, kept = torch.randn(40, H), torch.randint(0, 4, (40,))
    means, deviations, weights = head.mixture(features)
    normal = torch.distributions.Independent(
        torch.distributions.Normal(means, deviations.exp()[..., None].expand_as(means)), 1
    )
    mixture = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(logits=weights), normal)
    z = torch.stack([sum(book.codebook(j)[i[j]] for j in range(int(k), 4)) for i, k in zip(ids, kept, strict=True)])  # type: ignore[arg-type,misc]
    assert torch.allclose(head.targets(ids, kept), z, atol=1e-6)
    assert torch.allclose(head.nll(features, ids, kept), -mixture.log_prob(z), atol=1e-4)


def test_the_summed_head_learns_a_batch_so_that_its_mean_gives_the_codes_back() -> None:
    book, ids = residual_codes(64)
    head = SummedHead(64, book, 2)
    features, kept = torch.eye(64) * 8, torch.arange(64) % 4
    optimizer = torch.optim.Adam(head.parameters(), 0.01)
    for step in range(800):
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * (1 - step / 800)
        optimizer.zero_grad()
        head.nll(features, ids, kept).mean().backward()
        optimizer.step()
    with torch.no_grad():
        found = head.quantized(head.expected(features), ids, kept)
        drawn, _ = head.sample(features, ids, kept, 0.0, torch.Generator().manual_seed(0))
    hidden = torch.arange(4) >= kept[:, None]
    assert torch.equal(found[~hidden], ids[~hidden])
    assert float((found == ids)[hidden].float().mean()) >= 0.99
    assert float((drawn == ids)[hidden].float().mean()) >= 0.99
