"""What two processes of `test_distributed.py` do, each started with the variables that torchrun sets: all the cases.

Leaves `<out>/<case>/rank-<n>.safetensors` with the weights at the end, and what a run leaves in `<out>/<case>/run`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from tokenshard.errors import JobError
from tokenshard.spec.train import TrainingLogSpec
from tokenshard.training.crops import PixelPool
from tokenshard.training.distributed import process_group
from training.small import photos, tiny, training

STEPS = 8
CASES: dict[str, dict[str, Any]] = {
    "vq": {"quantizer_options": {"size": 32, "restart": 0.5}},
    "vq-start": {"quantizer_options": {"size": 32, "start": 2, "rate": 0.3}},
    "vq-balance": {"quantizer_options": {"size": 32, "ema": False, "balance": 0.3}},
    "rvq": {"quantizer": "rvq", "quantizer_options": {"size": 16, "depth": 2}},
    "opq": {"quantizer": "opq", "quantizer_options": {"size": 16, "parts": 2}},
    "vqbridge": {"quantizer": "vqbridge", "quantizer_options": {"size": 64, "width": 16}},
    "bsq": {"quantizer": "bsq", "quantizer_options": {}},
    "gan": {"losses": {"gan": 0.1, "gan_from": 0.2}},
}
"""Recipes by case; the encoder is frozen from step 6."""


def recipe(case: str) -> Any:
    return tiny(steps=STEPS, decoder_only=0.25, **CASES[case])


def weights(run: Any) -> dict[str, torch.Tensor]:
    """Everything that a run has learned."""
    found = {f"learner.{name}": tensor.contiguous() for name, tensor in run.learner.state_dict().items()}
    return found | {f"average.{name}": tensor.contiguous() for name, tensor in run.average.network.state_dict().items()}


def steps(run: Any, until: int) -> Any:
    while run.step < until:
        run._one_step()
    return run


def main(out: Path) -> None:
    rank = int(os.environ["RANK"])
    pools = photos()

    def leave(case: str, run: Any) -> None:
        (out / case).mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file(weights(run), out / case / f"rank-{rank}.safetensors")

    for case in CASES:
        leave(case, steps(training(recipe(case), pools, out / case / "run"), STEPS))
    whole = training(recipe("vq"), pools, out / "whole" / "run")
    whole.run(TrainingLogSpec(every=4, checkpoint_every=4))
    for stop in (3, 7):
        where = out / f"stopped-{stop}" / "run"
        steps(training(recipe("vq"), pools, where), stop)._checkpoint()
        torch.distributed.barrier()
        resumed = training(recipe("vq"), pools, where)
        assert resumed.step == stop
        leave(f"stopped-{stop}", steps(resumed, STEPS))
    other = PixelPool.of([pools[0].image(0) // (1 + rank)])
    try:
        training(recipe("vq"), (other, pools[1]), out / "other" / "run")
    except JobError as error:
        (out / f"refused-{rank}.txt").write_text(str(error))


if __name__ == "__main__":
    torch.set_num_threads(1)
    with process_group("cpu"):
        main(Path(sys.argv[1]))
