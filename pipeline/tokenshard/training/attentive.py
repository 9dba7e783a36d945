"""The attentive probe: a classifier that looks at the positions of a frozen encoder through one learned query."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tokenshard.loading.loader import TokenLoader
from tokenshard.spec.training import OptimizerSpec
from tokenshard.training.augment.vectors import resize
from tokenshard.training.codes import ids_of
from tokenshard.training.models.vit import EPS, TokenEncoder
from tokenshard.training.optimizer import learning_rate


class AttentiveProbe(nn.Module):
    """Positions [B, N, D] -> logits [B, classes]: attention of a learned query, then a linear layer."""

    def __init__(self, width: int, heads: int, classes: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.norm_in, self.norm_out = nn.LayerNorm(width, EPS), nn.LayerNorm(width, EPS)
        self.key_value = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        k, v = self.key_value(self.norm_in(x)).view(batch, length, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        q = self.query.view(1, 1, self.heads, -1).transpose(1, 2).expand(batch, -1, -1, -1)
        pooled = functional.scaled_dot_product_attention(q, k, v).reshape(batch, width)
        logits: Tensor = self.head(self.norm_out(pooled))
        return logits


@torch.no_grad()
def positions(encoder: TokenEncoder, ids: Tensor, layer: int) -> Tensor:
    """[B, N, D] behind a block of the encoder."""
    x = encoder.patches(resize(encoder.embed(ids), encoder.config.grid))
    x = torch.cat([encoder.class_token.expand(len(x), -1, -1), x], 1)
    for block in encoder.blocks[:layer]:
        x = block(x)
    return x[:, 1:]


def attentive_accuracy(
    encoder: TokenEncoder,
    train: TokenLoader,
    test: TokenLoader,
    label: str,
    classes: int,
    layer: int,
    epochs: int = 30,
    seed: int = 0,
) -> float:
    """Accuracy on ``test`` of a probe trained on ``train``, a shuffling loader, behind a block."""
    device, levels = encoder.positions.device, len(encoder.config.alphabets)
    torch.manual_seed(seed)
    probe = AttentiveProbe(encoder.config.width, encoder.config.heads, classes).to(device)
    spec = OptimizerSpec(lr=1e-3)
    optimizer = torch.optim.AdamW(probe.parameters(), spec.lr, weight_decay=spec.weight_decay)
    steps, step = epochs * len(train), 0
    for epoch in range(epochs):
        train.set_epoch(epoch)
        for batch in train:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(spec, step, steps)
            logits = probe(positions(encoder, ids_of(batch, device, levels), layer))
            loss = functional.cross_entropy(logits, batch[label].to(device).long())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            step += 1
    right = count = 0
    test.set_epoch(0)
    with torch.inference_mode():
        for batch in test:
            labels = batch[label].to(device)
            logits = probe(positions(encoder, ids_of(batch, device, levels), layer))
            right += int((logits.argmax(1) == labels).sum())
            count += len(labels)
    return right / max(1, count)
