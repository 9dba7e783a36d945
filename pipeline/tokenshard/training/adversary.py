"""The adversarial term: a discriminator that learns beside the tokenizer, patch by patch.

Strided convolutions that judge overlapping patches (Isola et al. 2017, arXiv:1611.07004), trained by the hinge loss
(Lim and Ye 2017, arXiv:1705.02894) as in VQGAN. Group instead of batch normalization: what is learned does not depend
on how a batch is shared among processes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tokenshard.training.distributed import data_parallel

WIDTH, STRIDES, GROUPS = 64, 3, 8
RATE = 0.1
"""Its learning rate, as a share of the network's: with more it overshoots."""


class PatchDiscriminator(nn.Sequential):
    """float images [B, 3, H, W] in [-1, 1] -> one number a patch [B, 1, H / 8 - 2, W / 8 - 2]: high for real ones."""

    def __init__(self, width: int = WIDTH, strides: int = STRIDES) -> None:
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for level in range(1, strides + 1):
            inputs, outputs = (width << min(level + step, 3) for step in (-1, 0))
            layers.append(nn.Conv2d(inputs, outputs, 4, 2 if level < strides else 1, 1, bias=False))
            layers += [nn.GroupNorm(GROUPS, outputs), nn.LeakyReLU(0.2)]
        layers.append(nn.Conv2d(outputs, 1, 4, 1, 1))
        super().__init__(*layers)
        for layer in self:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, 0.0, 0.02)


class Adversary:
    """A discriminator with its optimizer."""

    def __init__(self, device: torch.device) -> None:
        self.discriminator = PatchDiscriminator().to(device)
        self.optimizer = torch.optim.AdamW(self.discriminator.parameters(), betas=(0.5, 0.9), weight_decay=0.0)
        self._judge = data_parallel(self.discriminator)

    def loss(self, made: Tensor) -> Tensor:
        """What reconstructions lose by being told from images; gradients reach them, not the discriminator."""
        self.discriminator.requires_grad_(False)
        loss: Tensor = -self.discriminator(made).mean()
        self.discriminator.requires_grad_(True)
        return loss

    def learn(self, images: Tensor, made: Tensor, lr: float) -> Tensor:
        """One step of the discriminator, ``lr`` being the network's; its hinge loss, 2 where it cannot tell, 0 where it
        is sure."""
        real, false = self._judge(torch.cat([images, made.detach()])).chunk(2)
        loss: Tensor = functional.relu(1 - real).mean() + functional.relu(1 + false).mean()
        for group in self.optimizer.param_groups:
            group["lr"] = RATE * lr
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.detach()
