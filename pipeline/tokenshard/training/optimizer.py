"""AdamW as vision transformers are trained with it: weight decay of matrices, rates by layer, warm-up and cosine."""

from __future__ import annotations

import math
import re

import torch
from torch import nn

from tokenshard.spec.training import OptimizerSpec

_BLOCK = re.compile(r"encoder\.blocks\.(\d+)\.")


def make_optimizer(module: nn.Module, spec: OptimizerSpec, fused: bool = False) -> torch.optim.AdamW:
    """AdamW over what learns in ``module``. Vectors have no weight decay; each group holds its `scale` of the rate."""
    matches = (_BLOCK.match(name) for name, _ in module.named_parameters())
    depth = 1 + max((int(match[1]) for match in matches if match), default=-1)
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and not name.endswith(("class_token", "shown"))
            groups.setdefault((layer_of(name, depth), decays), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "weight_decay": spec.weight_decay if decays else 0.0,
                "scale": spec.layer_decay ** (depth + 1 - layer),
            }
            for (layer, decays), parameters in sorted(groups.items(), key=lambda item: item[0])
        ],
        spec.lr,
        spec.betas,
        fused=fused,
    )


def layer_of(name: str, depth: int) -> int:
    """0 for the stem and what comes before it, 1 … ``depth`` for the blocks of the encoder, ``depth`` + 1 above."""
    match = _BLOCK.match(name)
    if match:
        return int(match[1]) + 1
    return 0 if name.startswith("encoder.") else depth + 1


def learning_rate(spec: OptimizerSpec, step: int, steps: int) -> float:
    """Of a step from 0: linear warm-up, then half a cosine down to ``min_lr``."""
    warmup = round(spec.warmup * steps)
    if step < warmup:
        return spec.lr * (step + 1) / warmup
    place = (step - warmup) / max(1, steps - warmup)
    return spec.min_lr + (spec.lr - spec.min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, place)))
