"""`vq`: vector quantization with one learned codebook. The default for training.

van den Oord et al. 2017 (arXiv:1711.00937), with the codebook as moving averages of the latents (its appendix A.1) and
restarts of dead codes (Dhariwal et al. 2020, arXiv:2005.00341). Options: the codebook learned by gradient instead,
codes and latents of length one (Yu et al. 2021, arXiv:2110.04627), rate-aware assignment (Chou, Lookabaugh and Gray
1989, entropy-constrained vector quantization), and its opposite, balanced assignment (see :mod:`.balance`).

Where several processes train together, all learn from the global batch: see :mod:`.distributed`.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from tokenshard.errors import SpecError
from tokenshard.quantizers.balance import balancing_prices
from tokenshard.quantizers.base import Quantized, Quantizer, from_rows, no_autocast, straight_through, to_rows
from tokenshard.quantizers.distributed import own_rows, rank_and_world, summed
from tokenshard.quantizers.lookup import Lookup
from tokenshard.quantizers.search import nearest, nearest_in_training


class VQ(Quantizer):
    """One codebook of ``size`` codes with ``dim`` axes.

    ema: the codebook follows the latents as a moving average with ``decay``; otherwise it is learned by gradient
    normalized: latents and codes have length 1; the nearest code is that of the highest cosine
    commitment: weight of the pull of the latents to their codes
    rate: squared distance, in multiples of the mean quantization error, that a bit of an id's code length costs. Codes
        are then chosen by distance and by how often they occur: ids cost fewer bits after entropy coding
    balance: in training, choose codes at prices that make a batch use all of them equally; the temperature of
        :func:`.balance.balancing_prices`, e.g. 0.3; 0 turns it off
    restart: codes used less than this share of the mean use are put where a random latent is; 0 turns it off (ema only)
    start: training steps in which latents pass unquantized; then codes start at random latents (ema only)
    init: codes at first: normal with mean length 1, or uniform within ±1/size as in the paper
    """

    name = "vq"
    codebook: Tensor
    sums: Tensor
    use: Tensor
    error: Tensor
    steps: Tensor

    def __init__(
        self,
        dim: int,
        size: int,
        *,
        ema: bool = True,
        normalized: bool = False,
        decay: float = 0.99,
        commitment: float = 0.25,
        rate: float = 0.0,
        balance: float = 0.0,
        restart: float = 0.1,
        start: int = 0,
        init: Literal["normal", "uniform"] = "normal",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if rate and balance:
            raise SpecError("vq: rate prefers frequent codes and balance rare ones; set one of them to 0")
        if init not in ("normal", "uniform"):
            raise SpecError(f"vq: init is normal or uniform, not {init!r}")
        self.dim, self.levels = dim, (size,)
        self.ema, self.normalized, self.decay = ema, normalized, decay
        self.commitment, self.rate, self.balance, self.restart = commitment, rate, balance, restart
        self.start, self.init, self.seed = start, init, seed
        generator = torch.Generator().manual_seed(seed)
        if init == "normal":
            codes = torch.randn(size, dim, generator=generator) / dim**0.5
        else:
            codes = (2 * torch.rand(size, dim, generator=generator) - 1) / size
        codes = functional.normalize(codes, dim=1) if normalized else codes
        if ema:
            self.register_buffer("codebook", codes)
            self.register_buffer("sums", codes.clone())
        else:
            self.codebook = nn.Parameter(codes)
        self.register_buffer("use", torch.ones(size))
        self.register_buffer("error", torch.ones(()))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self._known_steps: int | None = None

    def codes(self) -> Tensor:
        """The codebook [size, dim] as it is searched."""
        return functional.normalize(self.codebook, dim=1) if self.normalized else self.codebook

    def penalty(self) -> Tensor | None:
        """What rate-aware assignment adds to squared distances [size], or None without it."""
        if not self.rate:
            return None
        share = (self.use + 1e-3 * self.use.mean()) / (1.001 * self.use.sum())
        return self.rate * self.error * -torch.log2(share)

    def forward(self, z: Tensor) -> Quantized:
        with no_autocast(z):
            rows = to_rows(z)
            if self.normalized:
                rows = functional.normalize(rows, dim=1)
            if self.training and self.ema:
                self._start(rows.detach())
            codes = self.codes()
            ids = nearest_in_training(rows.detach(), codes.detach(), self._prices(rows.detach(), codes.detach()))
            chosen = codes[ids]
            loss = self.commitment * functional.mse_loss(rows, chosen.detach())
            if not self.ema:
                loss = loss + functional.mse_loss(chosen, rows.detach())
            vectors = from_rows(straight_through(rows, chosen.detach() if self.ema else chosen), z)
            if self.training:
                self._update(rows.detach(), ids, chosen.detach())
                if self.ema and self.steps_made <= self.start:
                    vectors, loss = from_rows(rows, z), 0 * loss
            return Quantized(vectors, from_rows(ids[:, None], z), loss)

    @torch.no_grad()
    def encode(self, z: Tensor) -> Tensor:
        with no_autocast(z):
            rows = to_rows(z)
            if self.normalized:
                rows = functional.normalize(rows, dim=1)
            return from_rows(nearest(rows, self.codes(), self.penalty())[:, None], z)

    def vectors(self, ids: Tensor) -> Tensor:
        return self.codes()[ids[:, 0].long()].movedim(-1, 1)

    def options(self) -> dict[str, Any]:
        names = ("ema", "normalized", "decay", "commitment", "rate", "balance", "restart", "start", "init", "seed")
        return {"dim": self.dim, "size": self.levels[0], **{name: getattr(self, name) for name in names}}

    def exported(self) -> Lookup:
        return Lookup.of([self.codes()], [self.penalty()], self.normalized)

    @property
    def steps_made(self) -> int:
        """Training steps made, read from the device only once: waiting for it at every step would be slow."""
        if self._known_steps is None:
            self._known_steps = int(self.steps)
        return self._known_steps

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._known_steps = None

    def _prices(self, rows: Tensor, codes: Tensor) -> Tensor | None:
        """What is added to squared distances [size] in the search of a training step."""
        if self.balance and self.training:
            return balancing_prices(rows, codes, self.balance)
        return self.penalty()

    def _drawn(self, rows: Tensor) -> Tensor:
        """For each code a random latent of the global batch, this rank's share of them (the others are zero):
        a function of the seed and of the steps made so far."""
        generator = torch.Generator().manual_seed((self.seed << 32) + self.steps_made)
        total = len(rows) * rank_and_world()[1]
        chosen = torch.randint(total, (len(self.use),), generator=generator)
        return own_rows(rows, chosen.to(rows.device, non_blocking=True))

    @torch.no_grad()
    def _start(self, rows: Tensor) -> None:
        """Codes where random latents are, at every step until quantization starts."""
        if self.steps_made > self.start:
            return
        self.codebook.copy_(summed(self._drawn(rows))[0])
        self.use.fill_(len(rows) * rank_and_world()[1] / len(self.use))
        self.sums.copy_(self.codebook * self.use[:, None])

    @torch.no_grad()
    def _update(self, rows: Tensor, ids: Tensor, chosen: Tensor) -> None:
        total = len(rows) * rank_and_world()[1]
        counts = torch.zeros_like(self.use).index_add_(0, ids, torch.ones_like(rows[:, 0]))
        error = (rows - chosen).square().sum()
        if self.ema:
            sums = torch.zeros_like(self.sums).index_add_(0, ids, rows)
            counts, error, sums, drawn = summed(counts, error, sums, self._drawn(rows))
        else:
            counts, error = summed(counts, error)
        first = self.steps_made <= self.start
        age = self.steps_made - self.start
        decay = 0.9 if first else min(self.decay, (age + 1) / (age + 10))  # follow a young encoder closely
        self.use.lerp_(counts, 1 - decay)
        self.error.copy_(error / total) if first else self.error.lerp_(error / total, 1 - decay)
        if self.ema:
            self.sums.lerp_(sums, 1 - decay)
            if self.restart:
                mean_use = total / len(self.use)
                dead = self.use < self.restart * mean_use
                self.use.masked_fill_(dead, 3 * self.restart * mean_use)
                self.sums.copy_(torch.where(dead[:, None], drawn * self.use[:, None], self.sums))
            use = self.use[:, None]
            codebook = torch.where(use > 1e-6, self.sums / use, self.codebook)  # unused codes stay where they are
            self.codebook.copy_(functional.normalize(codebook, dim=1) if self.normalized else codebook)
        self._known_steps = self.steps_made + 1
        self.steps += 1
