"""Which part of the batches this process gets: its rank among the processes that train together."""

from __future__ import annotations

import sys
from typing import Any


def current_rank() -> tuple[int, int]:
    """(rank, world) of torch.distributed or Ray Train, where one of them is running here; else (0, 1)."""
    import torch.distributed

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    train: Any = sys.modules.get("ray.train")  # a training worker has imported it
    if train is not None:
        try:
            context = train.get_context()
            return context.get_world_rank() or 0, context.get_world_size() or 1
        except RuntimeError:
            return 0, 1
    return 0, 1
