"""All quantizers: ids in range, exact in any precision, gradients to the latents, and equal once exported."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tokenshard.errors import SpecError
from tokenshard.quantizers.base import Quantizer
from tokenshard.quantizers.binary import LFQ
from tokenshard.quantizers.lookup import Lookup
from tokenshard.quantizers.registry import make_quantizer
from tokenshard.quantizers.rvq import RVQ
from tokenshard.quantizers.search import nearest
from tokenshard.quantizers.simvq import CodebookByGradient, SimVQ
from tokenshard.quantizers.vq import VQ
from tokenshard.quantizers.vqbridge import VQBridge

METHODS: list[tuple[str, dict[str, Any]]] = [
    ("vq", {"dim": 4, "size": 32}),
    ("vq", {"dim": 4, "size": 32, "normalized": True}),
    ("vq", {"dim": 4, "size": 32, "rate": 0.3}),
    ("vq", {"dim": 4, "size": 32, "ema": False}),
    ("vq", {"dim": 4, "size": 32, "balance": 0.3}),
    ("simvq", {"dim": 4, "size": 32}),
    ("vqbridge", {"dim": 4, "size": 64, "width": 16}),
    ("vqbridge", {"dim": 4, "size": 64, "width": 16, "skip": False}),
    ("rvq", {"dim": 4, "size": 16, "depth": 3}),
    ("pq", {"dim": 4, "size": 16, "parts": 2}),
    ("opq", {"dim": 4, "size": 16, "parts": 2}),
    ("fsq", {"dim": 3, "values": [8, 5, 5]}),
    ("lfq", {"dim": 6}),
    ("bsq", {"dim": 6}),
]
IDS = [f"{name}-{'-'.join(options)}" for name, options in METHODS]
every_method = pytest.mark.parametrize(("name", "options"), METHODS, ids=IDS)


def latents(dim: int, *, batch: int = 8, side: int = 8, seed: int = 0) -> Tensor:
    """[batch, dim, side, side] of a few clusters."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(40, dim, generator=generator)
    chosen = centres[torch.randint(40, (batch * side * side,), generator=generator)]
    rows = chosen + 0.1 * torch.randn(chosen.shape, generator=generator)
    return rows.reshape(batch, side, side, dim).permute(0, 3, 1, 2).contiguous()


def trained(name: str, options: dict[str, Any], steps: int = 30) -> Quantizer:
    """After some steps on other latents, by its own loss."""
    quantizer = make_quantizer(name, **options).train()
    parameters = list(quantizer.parameters())
    optimizer = torch.optim.Adam(parameters, 0.02) if parameters else None
    for step in range(steps):
        loss = quantizer(latents(options["dim"], seed=step % 5)).loss
        if optimizer:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return quantizer.eval()


@every_method
def test_ids_are_in_range_and_the_vectors_are_those_of_the_ids(name: str, options: dict[str, Any]) -> None:
    quantizer = trained(name, options)
    z = latents(options["dim"], seed=9)
    found = quantizer(z)
    assert found.ids.shape == (8, len(quantizer.levels), 8, 8)
    assert found.ids.dtype == torch.int64
    for level, size in enumerate(quantizer.levels):
        assert 0 <= int(found.ids[:, level].min()) <= int(found.ids[:, level].max()) < size
    assert len(found.ids.unique()) > 4
    torch.testing.assert_close(found.vectors, quantizer.vectors(found.ids))
    assert (quantizer.encode(z) == found.ids).float().mean() > 0.999


@pytest.mark.parametrize(
    ("name", "options"),
    [(name, options) for name, options in METHODS if name not in ("rvq", "pq", "opq", "fsq") and "rate" not in options],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else value,
)
def test_codewords_quantize_to_themselves(name: str, options: dict[str, Any]) -> None:
    quantizer = trained(name, options)
    ids = torch.arange(quantizer.levels[0]).reshape(1, 1, 1, -1)
    vectors = quantizer.vectors(ids)
    assert torch.equal(quantizer.vectors(quantizer.encode(vectors)), vectors)


@every_method
def test_what_is_exported_gives_the_same_ids_and_vectors(name: str, options: dict[str, Any]) -> None:
    quantizer = trained(name, options)
    exported = quantizer.exported()
    z = latents(options["dim"], seed=9)
    ids = quantizer.encode(z)
    assert torch.equal(exported.encode(z), ids)
    assert torch.equal(exported.vectors(ids), quantizer.vectors(ids))
    assert not list(exported.parameters())
    again = make_quantizer(exported.name, **exported.options())
    again.load_state_dict(exported.state_dict())
    assert torch.equal(again.encode(z), ids)
    if name not in ("fsq", "lfq", "bsq"):
        assert isinstance(exported, Lookup)


@every_method
def test_options_make_the_same_quantizer_again(name: str, options: dict[str, Any]) -> None:
    quantizer = trained(name, options)
    again = make_quantizer(name, **quantizer.options())
    again.load_state_dict(quantizer.state_dict())
    z = latents(options["dim"], seed=9)
    assert torch.equal(again.eval().encode(z), quantizer.encode(z))


@every_method
def test_gradients_reach_the_latents(name: str, options: dict[str, Any]) -> None:
    quantizer = make_quantizer(name, **options).train()
    z = latents(options["dim"]).requires_grad_()
    quantizer(z).vectors.square().sum().backward()
    assert z.grad is not None
    assert (z.grad.abs().sum((0, 2, 3)) > 0).all()


@every_method
def test_autocast_changes_no_bit(name: str, options: dict[str, Any]) -> None:
    quantizer = trained(name, options)
    z = latents(options["dim"], seed=9)
    plain = quantizer(z)
    ids, vectors = quantizer.encode(z), quantizer.vectors(plain.ids)
    with torch.autocast("cpu", torch.bfloat16):
        cast = quantizer(z)
        assert torch.equal(quantizer.encode(z), ids)
        assert torch.equal(quantizer.vectors(plain.ids), vectors)
        assert torch.equal(quantizer.exported().vectors(plain.ids), vectors)
    assert cast.vectors.dtype == cast.loss.dtype == torch.float32
    assert torch.equal(cast.ids, plain.ids)
    assert torch.equal(cast.vectors, plain.vectors)


@every_method
def test_ids_do_not_depend_on_the_batch_nor_on_the_layout(name: str, options: dict[str, Any]) -> None:
    quantizer = trained(name, options)
    z = latents(options["dim"], seed=9)
    ids = quantizer.encode(z)
    assert torch.equal(torch.cat([quantizer.encode(one[None]) for one in z]), ids)
    assert torch.equal(quantizer.encode(z.contiguous(memory_format=torch.channels_last)), ids)


def test_fsq_never_leaves_its_range_whatever_the_latents() -> None:
    quantizer = make_quantizer("fsq", dim=3, size=256)
    extremes = torch.tensor([-1e30, -100.0, -1e-30, 0.0, 1e-30, 100.0, 1e30])
    z = torch.cartesian_prod(extremes, extremes, extremes).T[None]
    ids = quantizer.encode(z)
    assert 0 <= int(ids.min()) < int(ids.max()) < 240
    assert quantizer.vectors(ids).abs().max() <= 1


def test_the_search_is_exact_and_takes_the_first_of_equals() -> None:
    generator = torch.Generator().manual_seed(0)
    codebook = torch.randint(-4, 5, (50, 6), generator=generator).float()
    codebook[30] = codebook[7]
    z = torch.randint(-4, 5, (400, 6), generator=generator).float()
    z[0] = codebook[30]
    penalty = torch.randint(0, 9, (50,), generator=generator).float()
    penalty[30] = penalty[7] = 0
    distances = ((z[:, None] - codebook) ** 2).sum(2) + penalty  # whole numbers: no rounding
    assert torch.equal(nearest(z, codebook, penalty), torch.from_numpy(distances.numpy().argmin(1)))
    assert nearest(z, codebook, penalty)[0] == 7


def test_vq_learns_the_clusters_and_restarts_dead_codes() -> None:
    # codes of the start are far from all latents but a few
    quantizer = VQ(4, 64, restart=0.1).train()
    idle = VQ(4, 64, restart=0.0).train()
    for each in (quantizer, idle):
        for step in range(60):
            if step == 1:  # all but two codes die
                each.codebook[2:] += 100
                each.sums[2:] += 100 * each.use[2:, None]
            each(latents(4, seed=0))
    z = latents(4, seed=0)
    errors = [float((each.eval()(z).vectors - z).square().mean()) for each in (quantizer, idle)]
    used = [len(each.encode(z).unique()) for each in (quantizer, idle)]
    assert used[0] >= 36
    assert used[1] <= 4
    assert errors[0] < 0.02 < errors[1]


def test_vq_passes_latents_unquantized_until_it_starts() -> None:
    quantizer = VQ(4, 16, start=3).train()
    z = latents(4)
    for step in range(5):
        found = quantizer(z)
        assert torch.equal(found.vectors, z) == (step < 3), step
        assert (found.loss == 0) == (step < 3), step


def test_a_rate_makes_ids_cheaper_for_some_distortion() -> None:
    def entropy_and_error(rate: float) -> tuple[float, float]:
        quantizer = trained("vq", {"dim": 4, "size": 64, "rate": rate}, 60)
        z = latents(4, seed=1, side=16)
        found = quantizer(z)
        share = torch.bincount(found.ids.flatten(), minlength=64) / found.ids.numel()
        entropy = -(share * share.clamp_min(1e-12).log2()).sum()
        return float(entropy), float((found.vectors - z).square().mean())

    (plain_bits, plain_error), (bits, error) = entropy_and_error(0.0), entropy_and_error(3.0)
    assert bits < plain_bits - 0.1
    assert error >= plain_error


def test_every_depth_of_rvq_decodes_and_more_levels_are_closer() -> None:
    quantizer = trained("rvq", {"dim": 4, "size": 16, "depth": 3}, 60)
    z = latents(4, seed=1)
    ids = quantizer.encode(z)
    errors = [float((quantizer.vectors(ids[:, :depth]) - z).square().mean()) for depth in (1, 2, 3)]
    assert errors[0] > 1.5 * errors[1] > 1.5 * 1.5 * errors[2]


def test_dropout_of_rvq_leaves_out_last_levels_of_some_samples() -> None:
    quantizer = RVQ(4, 16, 3, dropout=0.5)
    z = latents(4, batch=64)
    quantizer.train()(z)
    quantizer.train()
    before = [quantizer.part(level).codes().clone() for level in range(3)]
    found = quantizer(z)
    planes = [before[level][found.ids[:, level]].movedim(-1, 1) for level in range(3)]
    sums = [planes[0], planes[0] + planes[1], planes[0] + planes[1] + planes[2]]
    depth = [next(n for n in range(3) if torch.allclose(found.vectors[i], sums[n][i], atol=1e-5)) for i in range(64)]
    assert 25 <= depth.count(2) <= 60
    assert depth.count(0) > 2
    assert depth.count(1) > 2
    assert torch.allclose(quantizer.eval()(z).vectors, quantizer.vectors(quantizer.encode(z)), atol=1e-5)


def test_each_id_of_pq_is_of_its_part_alone() -> None:
    quantizer = trained("pq", {"dim": 4, "size": 16, "parts": 2})
    z = latents(4, seed=1)
    before = quantizer.encode(z)
    z[:, 2:] = -z[:, 2:]
    after = quantizer.encode(z)
    assert torch.equal(before[:, 0], after[:, 0])
    assert (before[:, 1] != after[:, 1]).float().mean() > 0.5


def test_a_rotation_spares_parts_that_depend_on_each_other() -> None:
    # cut as they stand, the first part has nearly all of the variance
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(1, 4, 64, 64, generator=generator) * torch.tensor([3.0, 3.0, 0.1, 0.1])[:, None, None]
    errors = {}
    for name in ("pq", "opq"):
        quantizer = make_quantizer(name, dim=4, size=16, parts=2).train()
        parameters = list(quantizer.parameters())
        optimizer = torch.optim.Adam(parameters, 0.01) if parameters else None
        for _ in range(150):
            loss = quantizer(z).loss
            if optimizer:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        errors[name] = float((quantizer.eval()(z).vectors.detach() - z).square().sum(1).mean())
    assert errors["opq"] < 0.8 * errors["pq"]


@pytest.mark.parametrize("quantizer", [SimVQ(4, 256), VQBridge(4, 256)], ids=["simvq", "vqbridge"])
def test_one_step_of_a_codebook_that_is_computed_moves_every_code(quantizer: CodebookByGradient) -> None:
    before = quantizer.codes().detach().clone()
    optimizer = torch.optim.SGD(quantizer.parameters(), 0.1)
    found = quantizer(latents(4, batch=1, side=2))
    assert len(found.ids.unique()) <= 4
    found.loss.backward()
    optimizer.step()
    assert ((quantizer.codes() - before).abs().amax(1) > 0).all()


def test_the_entropy_loss_of_lfq_rewards_sure_latents_and_bits_that_are_used_evenly() -> None:
    quantizer = LFQ(4, commitment=0.0, entropy=1.0)
    sure = torch.randint(0, 2, (1, 4, 32, 32), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    assert quantizer(sure).loss < quantizer(0.05 * sure).loss
    assert quantizer(sure).loss < quantizer(sure.abs()).loss


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vqq", {}, "unknown quantizer 'vqq'; known: vq, simvq"),
        ("vq", {"dim": 4}, "vq: .*size"),
        ("vq", {"dim": 4, "size": 8, "rat": 1}, "vq: .*rat"),
        ("vq", {"dim": 4, "size": 8, "init": "zeros"}, "init is normal or uniform, not 'zeros'"),
        ("vq", {"dim": 4, "size": 8, "rate": 0.1, "balance": 0.1}, "set one of them to 0"),
        ("vqbridge", {"dim": 4, "size": 1000}, "size 1000 is not the square of a multiple of 4; take e.g. 1024"),
        ("vqbridge", {"dim": 4, "size": 36}, "not the square of a multiple of 4"),
        ("vqbridge", {"dim": 4, "size": 64, "width": 10}, "width 10 cannot be shared by 4 heads"),
        ("pq", {"dim": 6, "size": 8, "parts": 4}, "dim 6 cannot be cut into 4 equal parts"),
        ("opq", {"dim": 4, "size": 8, "parts": 2, "normalized": True}, "opq: parts cannot be normalized"),
        ("fsq", {"dim": 3, "size": 1000}, "size must be one of 256, 1024"),
        ("fsq", {"dim": 2, "values": [8, 8, 8]}, "need dim 3"),
        ("fsq", {"dim": 2, "values": [8, 1]}, "at least 2 values"),
        ("lfq", {"dim": 17}, "number of bits, 1 to 16, not 17"),
    ],
)
def test_mistakes_are_told(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        make_quantizer(name, **options)
