"""Statistics over all processes that train together (torch.distributed). Alone, everything here is the identity.

Rank r of W holds rows [r * n, (r + 1) * n) of the global batch. What a codebook learns from is added up over all ranks,
so all of them hold equal codebooks, and these depend on the global batch only.
"""

from __future__ import annotations

import torch
import torch.distributed
from torch import Tensor


def rank_and_world() -> tuple[int, int]:
    """This process's number and how many there are; (0, 1) where no process group is up."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def summed(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Float tensors, each added up over all ranks; one message for all of them. Without gradient."""
    if rank_and_world()[1] == 1:
        return tensors
    flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
    torch.distributed.all_reduce(flat)
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    return tuple(part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True))


def rows_of_all(rows: Tensor) -> Tensor:
    """Rows [n, ...] of each rank, as many on all of them, one rank after the other: [world * n, ...]. Without
    gradient for those of other ranks."""
    rank, world = rank_and_world()
    if world == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(world)]
    torch.distributed.all_gather(parts, rows.detach().contiguous())
    parts[rank] = rows
    return torch.cat(parts)


def mean_of_all(mean: Tensor) -> Tensor:
    """The mean over all ranks of their means.

    Its gradient is that of the rank's own mean: averaged over the ranks, as the gradients of weights are, it is the
    gradient of what is computed from the common mean.
    """
    world = rank_and_world()[1]
    return mean if world == 1 else mean + (summed(mean)[0] / world - mean).detach()


def own_rows(rows: Tensor, chosen: Tensor) -> Tensor:
    """``rows[chosen]`` for numbers of rows of the global batch, with zeros for those of other ranks: to be summed."""
    rank, world = rank_and_world()
    if world == 1:
        return rows[chosen]
    place = chosen - rank * len(rows)
    mine = (place >= 0) & (place < len(rows))
    return rows[place.clamp(0, len(rows) - 1)] * mine[:, None]
