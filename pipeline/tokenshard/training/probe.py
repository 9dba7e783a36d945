"""How much an encoder knows, measured without training it: nearest neighbours, and a linear classifier on features.

Features are means over positions, behind any block: middle layers of generative models often know more than the last
one (iGPT, VIM), so the layer may be chosen on held-out training samples.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from tokenshard.loading.loader import TokenLoader
from tokenshard.training.augment.vectors import resize
from tokenshard.training.codes import ids_of
from tokenshard.training.models.vit import TokenEncoder

CHUNK = 1 << 24
"""Similarities held at a time."""
TEMPERATURE = 0.07
"""Of the votes of neighbours, as in DINO (arXiv:2104.14294)."""
HELD_OUT = 5
"""One in so many training samples chooses the layer."""


class Features(NamedTuple):
    """Features float32 [N, layers, D] and labels int64 [N] of the samples of a dataset."""

    x: Tensor
    y: Tensor

    def layer(self, number: int) -> Features:
        """Those behind one block, [N, 1, D]."""
        return Features(self.x[:, number, None], self.y)


@torch.no_grad()
def read_features(encoder: TokenEncoder, loader: TokenLoader, label: str, layers: list[int]) -> Features:
    """Means over positions behind blocks ``layers`` (0: before the first) of all samples of a loader."""
    encoder.eval()
    device, levels = encoder.positions.device, len(encoder.config.alphabets)
    found, labels = [], []
    loader.set_epoch(0)
    for batch in loader:
        vectors = resize(encoder.embed(ids_of(batch, device, levels)), encoder.config.grid)
        found.append(torch.stack(_means(encoder, vectors, layers), 1).float().cpu())
        labels.append(batch[label].long())
    return Features(torch.cat(found), torch.cat(labels))


def _means(encoder: TokenEncoder, vectors: Tensor, layers: list[int]) -> list[Tensor]:
    x = encoder.patches(vectors)
    x = torch.cat([encoder.class_token.expand(len(x), -1, -1), x], 1)
    means = {0: x[:, 1:].mean(1)}
    for number, block in enumerate(encoder.blocks, 1):
        x = block(x)
        means[number] = x[:, 1:].mean(1)
    return [means[layer] for layer in layers]


def standardized(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Features [N, D] with mean 0 and deviation 1 over the training samples: BatchNorm without weights."""
    mean, deviation = train.mean(0), train.std(0, unbiased=False).clamp_min(1e-6)
    return (train - mean) / deviation, (test - mean) / deviation


def knn_accuracy(train: Features, test: Features, neighbours: int, classes: int) -> float:
    """Share of the test samples whose class gets most votes of its nearest training samples by cosine similarity.

    A vote weighs exp(similarity / 0.07). Features have one layer.
    """
    a, b = (functional.normalize(one, dim=1) for one in standardized(train.x[:, 0], test.x[:, 0]))
    right = 0
    step = max(1, CHUNK // len(a))
    for start in range(0, len(b), step):
        similar, nearest = (b[start : start + step] @ a.T).topk(min(neighbours, len(a)), 1)
        votes = torch.zeros(len(similar), classes)
        votes.scatter_add_(1, train.y[nearest], ((similar - 1) / TEMPERATURE).exp())
        right += int((votes.argmax(1) == test.y[start : start + step]).sum())
    return right / max(1, len(b))


def linear_accuracy(train: Features, test: Features, classes: int, decay: float = 1e-3, steps: int = 100) -> float:
    """Accuracy of multinomial logistic regression on standardized features of one layer, fitted by L-BFGS.

    decay: weight of half the squared norm of the weights, beside the mean loss
    """
    a, b = standardized(train.x[:, 0], test.x[:, 0])
    weight = torch.zeros(classes, a.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=steps, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(functional.linear(a, weight, bias), train.y)
        loss = loss + decay / 2 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    with torch.inference_mode():
        return float((functional.linear(b, weight, bias).argmax(1) == test.y).float().mean())


def best_layer(train: Features, neighbours: int, classes: int) -> int:
    """Place in ``train.x`` of the layer whose features tell the classes of held-out training samples apart best.

    By k nearest neighbours; every fifth sample is held out.
    """
    held_out = torch.arange(len(train.y)) % HELD_OUT == 0
    own, other = Features(train.x[~held_out], train.y[~held_out]), Features(train.x[held_out], train.y[held_out])
    scores = [
        knn_accuracy(own.layer(layer), other.layer(layer), neighbours, classes) for layer in range(train.x.shape[1])
    ]
    return max(range(len(scores)), key=lambda layer: (scores[layer], layer))
